"""Paths that people type, and folders that one process at a time may write to. No JAX in here."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from floq.errors import UserError

DATA_FILES = (".npz", ".hdf5", ".h5")
GLANCE = 0.05  # seconds; `is_held` takes far less

try:
    import fcntl
except ImportError:  # Windows has no such locks; runs there are not guarded
    fcntl = None


def user_path(text: str | Path) -> Path:
    """A path with `~` written out. Raises UserError if it names a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: there is no such home folder") from error


def looks_like_path(text: str) -> bool:
    """Whether a person who wrote this meant a file or folder and not a name: `/data/x`, `./x`, `~/x`, `x.npz`."""
    return text[:1] in ("/", ".", "~") or text.endswith((*DATA_FILES, "/"))


def check_writable(folder: Path, remedy: str) -> None:
    """Raises UserError, ending in `remedy`, if the folder could not be made or written to; makes nothing."""
    there = folder
    while not os.path.exists(there) and there != there.parent:
        there = there.parent
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise UserError(f"cannot write to {folder}: {remedy}")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, or none of them. Raises FileExistsError if it is there, or another OSError."""
    missing = [f for f in (folder, *folder.parents) if not os.path.exists(f)]
    try:
        folder.mkdir(parents=True)
    except OSError:
        remove_empty(missing)
        raise


def remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, the deepest first, that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def exclusive(folder: Path, busy: str) -> Iterator[None]:
    """Hold the folder for this process. Raises UserError with the message `busy` if another one holds it. The lock ends
    with the process, however it ends."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            if not _locks(handle, fcntl.LOCK_EX):
                time.sleep(GLANCE)  # somebody may only have looked, with `is_held`
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(busy) from error
        yield
    finally:
        os.close(handle)


def is_held(folder: Path) -> bool:
    """Whether a process holds the folder (see `exclusive`), which does not notice being asked. False where there are no
    such locks, as on Windows, and for a folder that may not be read."""
    if fcntl is None:
        return False
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _locks(handle, fcntl.LOCK_SH)  # shared, so that any number may look at once
    finally:
        os.close(handle)


def _locks(handle: int, kind: int) -> bool:
    """Whether a lock of this kind is to be had now. It ends when the handle is closed."""
    assert fcntl is not None
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
