"""Paths that people type, and folders that one process at a time may write to. No JAX in here."""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from floq.utils.errors import UserError

# --- Files that are there whole or not at all, even after a power failure ---


def sync(path: Path) -> None:
    """Have a file as it is, or the names in a folder, on the disk when this returns. Some file systems, and Windows,
    cannot do so for folders; there the names come when they come."""
    with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(path: Path, content: bytes) -> None:
    """Write a new file, on the disk when this returns. An OSError names the file."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _named(error, path) from error


def append(path: Path, content: bytes) -> None:
    """Write to the end of a file, whole or, if the disk is full, as if nothing had been written. An OSError names the
    file. `sync` brings it to the disk."""
    try:
        with open(path, "ab", buffering=0) as file:
            before = file.tell()
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(before)
                raise
    except OSError as error:
        raise _named(error, path) from error


def replace(path: Path, content: bytes) -> None:
    """Write a file in place of what had its name. Whoever reads it, now or after a crash, finds the old one or the new
    one; if that fails, the old one. An OSError names the file."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial, content)
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync(path.parent)


def replace_folder(final: Path, partial: Path, aside: Path) -> None:
    """Let a folder, the files in which are on the disk, take the name `final`. What had that name is called `aside`
    until then: a kill between the two leaves it there, an error brings it back."""
    sync(partial)
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    try:
        partial.rename(final)
    except OSError:
        with contextlib.suppress(OSError):
            aside.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _named(error: OSError, path: Path) -> OSError:
    """The same error; writing does not say to which file, opening does."""
    return error if error.filename else OSError(error.errno, error.strerror, str(path))


DATA_FILES = (".npz", ".hdf5", ".h5")
LOCK_RETRY_S = 0.05  # seconds; `is_held` takes far less

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
                time.sleep(LOCK_RETRY_S)  # somebody may only have looked, with `is_held`
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
