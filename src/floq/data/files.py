"""Open data files from strangers: never a pickle, never more than a limit, damage explained."""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from floq.errors import UserError

SIZE_LIMIT = 64 * 2**30  # bytes that one file may unpack to; the largest published state dataset has 3 GiB
ANEW = "delete it and fetch or collect it again"


def open_npz(path: Path, keys: Sequence[str], remedy: str = ANEW) -> dict[str, np.ndarray]:
    """The arrays of an npz file that are named in `keys`, as far as it has them.

    Raises:
        UserError: the file is missing or damaged, holds pickled objects, or would unpack to more than `size_limit()`.
            The message for a damaged one ends in `remedy`.
    """
    check_exists(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {f"{key}.npy" for key in keys}
            check_size(sum(e.file_size for e in archive.infolist() if e.filename in entries), path)
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file}
    except UserError:
        raise
    except Exception as error:  # a damaged zip or header raises nearly anything: zlib.error, TokenError, TypeError, ...
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


def check_exists(path: Path) -> None:
    """Raises UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")


def check_size(declared: int, source: object) -> None:
    """Raises UserError if `source` says that it unpacks to more bytes than `size_limit()`."""
    limit = size_limit()
    if declared > limit:
        raise UserError(
            f"{source} would unpack to {declared / 2**30:,.1f} GiB, more than the {limit / 2**30:,.1f} GiB that this "
            "machine can hold: is it what it should be?"
        )


def size_limit() -> int:
    """Bytes that one file may unpack to: `SIZE_LIMIT`, or this machine's memory if that is less."""
    try:
        return min(SIZE_LIMIT, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not a Unix
        return SIZE_LIMIT
