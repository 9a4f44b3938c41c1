"""The one exception that is the user's business."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's input is wrong. The message is one line that says what is wrong and how to mend it; the command line
    prints it without a traceback and exits with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word closest to `word`, or nothing if none is close."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""
