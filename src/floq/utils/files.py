"""Paths given by users, durable and atomic writes, and folders locked by one process at a time. No JAX in here."""

import contextlib
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from floq.utils.errors import UserError
from floq.utils.machine import given_data_memory
from floq.utils.untrusted import SIZE_LIMIT, size_limit

try:
    import fcntl
except ImportError:  # Windows has no such locks; runs there are not guarded
    fcntl = None

SUFFIX = r"\.[A-Za-z]\w*$"  # of a file; names of datasets and environments have none
LOCK_RETRY_S = 0.05  # seconds; `is_locked` takes far less

# --- Paths ---


def user_path(text: str | Path) -> Path:
    """Return a path with `~` expanded. Raises UserError if the user that it names does not exist."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder") from error


def looks_like_path(text: str) -> bool:
    """Return whether a text denotes a file or folder and not a name: `/data/x`, `./x`, `~/x`, `x/`, `x.npz`."""
    return text[:1] in ("/", ".", "~") or text.endswith("/") or re.search(SUFFIX, text) is not None


def check_writable(folder: Path, remedy: str) -> None:
    """Raise UserError, ending in `remedy`, if the folder could not be created or written to. Creates nothing."""
    there = folder
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write to {folder}: {remedy}")


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders that are empty; the deepest must come first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


# --- Arrays larger than the memory ---


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


# --- Durable writes ---


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk. Where folders cannot be flushed, it has no effect."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(path: Path, content: bytes) -> None:
    """Write a new file and flush it to the disk. An OSError names the file."""
    with _name_in_errors(path), open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def append(path: Path, content: bytes) -> None:
    """Append to a file, all of `content` or, if the disk is full, nothing. An OSError names the file. The content is
    not flushed to the disk: call `sync`."""
    with _name_in_errors(path), open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(before)
            raise


def replace(path: Path, content: bytes) -> None:
    """Replace a file atomically. A reader, now or after a crash, finds the old content or the new; on failure, the old.
    An OSError names the file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial, content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def replace_folder(final: Path, partial: Path, previous: Path) -> None:
    """Rename the folder `partial`, whose files are on the disk, to `final`. An existing `final` is called `previous`
    meanwhile: a kill between the two renames leaves it there, an error restores it."""
    sync(partial)
    if final.exists():
        shutil.rmtree(previous, ignore_errors=True)
        final.rename(previous)
    try:
        partial.rename(final)
    except OSError:
        with contextlib.suppress(OSError):
            previous.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(previous, ignore_errors=True)


@contextlib.contextmanager
def _name_in_errors(path: Path) -> Iterator[None]:
    """Add the file's name to an error of writing, which lacks it, unlike one of opening."""
    try:
        yield
    except OSError as error:
        raise error if error.filename else OSError(error.errno, error.strerror, str(path)) from error


# --- Locks ---


@contextlib.contextmanager
def lock_folder(folder: Path, busy: str) -> Iterator[None]:
    """Lock the folder for this process. Raises UserError with the message `busy` if another process has locked it. The
    lock ends with the process, however it ends."""
    handle = os.open(folder, os.O_RDONLY) if fcntl else -1
    try:
        if not _try_lock(handle, shared=False):
            time.sleep(LOCK_RETRY_S)  # `is_locked` of another process may have had it for a moment
            if not _try_lock(handle, shared=False):
                raise UserError(busy)
        yield
    finally:
        if fcntl:
            os.close(handle)


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked the folder (see `lock_folder`), without disturbing it. False where there are
    no such locks, as on Windows, and for a folder that cannot be read."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _try_lock(handle, shared=True)  # so that several processes may check at once
    finally:
        os.close(handle)


def _try_lock(handle: int, shared: bool) -> bool:
    """Return whether the lock was free, and is taken until the handle is closed."""
    try:
        if fcntl:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
