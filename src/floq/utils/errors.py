"""The exceptions that are the user's business."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message is one line that says what is wrong and how to mend it; the command line
    prints it without a traceback and exits with code 2."""


class Failed(Exception):
    """A part of the work failed, the rest is done. The message is one line that says which and why; the command line
    prints it and exits with code 1."""


class Interrupted(Exception):
    """A signal ended a run. `signum` is its number; the message says where the checkpoint is."""

    def __init__(self, message: str, signum: int):
        super().__init__(message)
        self.signum = signum


def in_one_line(error: BaseException) -> str:
    """What an exception says, without line breaks; with its type unless the message speaks for itself."""
    text = " ".join(str(error).split())
    name = type(error).__name__
    return text if text and isinstance(error, UserError | ValueError) else f"{name}: {text}" if text else name


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or nothing if none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
