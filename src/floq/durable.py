"""Files that are there whole or not at all, even after a power failure. No JAX in here."""

import contextlib
import os
import shutil
from pathlib import Path


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
