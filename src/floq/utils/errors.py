"""Exceptions whose messages are shown to the user."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message is one line that says what is wrong and how to correct it; the command
    line prints it without a traceback and exits with code 2."""


class Failed(Exception):
    """A part of the work failed, the rest is done. The message is one line with the part and the cause; the command
    line prints it and exits with code 1."""


class Interrupted(Exception):
    """A signal ended a run. `signum` is its number; the message says where the checkpoint is."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def in_one_line(error: BaseException) -> str:
    """Return an exception's message without line breaks; preceded by its type, unless it is a UserError or ValueError
    with a message."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text and isinstance(error, UserError | ValueError) else f"{name}: {text}" if text else name


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word closest to `word`, or an empty text if none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
