"""Paths given by users, durable and atomic writes, and folders locked by one process at a time. No JAX in here."""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from floq.utils.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks; runs there are not guarded
    fcntl = None

SUFFIX = r"\.[A-Za-z]\w*$"  # of a file; names of datasets and environments have none
LOCK_RETRY_S = 0.05  # seconds; `is_locked` takes far less

# --- Paths ---


def user_path(text: str | Path) -> Path:
    """Return a path with `~` expanded. Raises UserError if the user that it names does not exist, or the system refuses
    to look there."""
    try:
        path = Path(text).expanduser()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        return path
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{text}: {getattr(error, 'strerror', error)}: give another path") from error


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
