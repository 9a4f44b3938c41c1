"""Arrays of a dataset that do not fit into the memory: in nameless files that are mapped. No JAX in here."""

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from floq.utils.errors import UserError
from floq.utils.machine import given_data_memory
from floq.utils.untrusted import SIZE_LIMIT, size_limit


def fits_memory(nbytes: int) -> bool:
    """Return whether an array with so many bytes is kept in memory, and not in a file that is mapped."""
    given = given_data_memory()
    return nbytes <= (size_limit() if given is None else min(given, size_limit()))


def empty_array(shape: tuple[int, ...], dtype: np.dtype, what: str = "the dataset") -> np.ndarray:
    """Make an array to be filled, in memory if it fits; otherwise in a nameless file in the folder for temporary files,
    which is gone when the array is. Raises UserError if that has not as much room, naming what is read."""
    nbytes = math.prod(shape) * dtype.itemsize
    if fits_memory(nbytes):
        return np.empty(shape, dtype)
    with _named_if_full(what, nbytes), tempfile.TemporaryFile(dir=_temporary_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes)  # a full disk would kill the process later
        return np.memmap(file, dtype, "w+", shape=shape)


class RowStore:
    """Arrays whose rows are put end to end: records in such a file as soon as they do not fit into memory."""

    def __init__(self, what: str):
        self._what, self._parts, self._rows, self._nbytes = what, list[np.ndarray](), 0, 0
        self._file: Any = None

    def append(self, rows: np.ndarray) -> None:
        """Append rows of the same type. Raises UserError if the disk has no room."""
        self._parts.append(rows)
        self._rows, self._nbytes = self._rows + len(rows), self._nbytes + rows.nbytes
        if rows.dtype.fields is not None and (self._file or not fits_memory(self._nbytes)):
            with _named_if_full(self._what, self._nbytes):
                self._file = self._file or tempfile.TemporaryFile(dir=_temporary_folder())  # noqa: SIM115
                for part in self._parts:
                    self._file.write(part.tobytes())
            self._parts = [rows[:0].copy()]

    def joined(self) -> np.ndarray:
        """Return all rows. Nothing may be appended after that."""
        if self._file is None:
            return np.concatenate(self._parts)
        with _named_if_full(self._what, self._nbytes), self._file:
            self._file.flush()
            return np.memmap(self._file, self._parts[0].dtype, "r+", shape=(self._rows, *self._parts[0].shape[1:]))


def _temporary_folder() -> str:
    """Return the folder for temporary files; where TMPDIR is not set /var/tmp, since /tmp may lie in memory."""
    return os.environ.get("TMPDIR") or ("/var/tmp" if os.path.isdir("/var/tmp") else tempfile.gettempdir())


@contextlib.contextmanager
def _named_if_full(what: str, nbytes: int) -> Iterator[None]:
    """Turn an error of writing so many bytes to a temporary file into a UserError."""
    if nbytes > SIZE_LIMIT:
        raise UserError(f"{what} has {nbytes / 1e9:,.0f} GB of observations, more than floq reads: give a part of it")
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} has {nbytes / 1e9:,.3g} GB of observations, for which there is no room in {_temporary_folder()} "
            f"({error.strerror}): name a folder on a larger disk in the environment variable TMPDIR"
        ) from error
