"""What the machine does to runs while they train: disks that fill up, folders that vanish. Told in one line."""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from floq.checkpoint_folder import steps
from floq.errors import Failed
from floq.run import Run

FULL = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of the quota", errno.EFBIG: "raise the limit"}
CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)
BROKEN = (errno.EIO, errno.ESTALE)


@contextlib.contextmanager
def told(runs: Sequence[Run]) -> Iterator[None]:
    """Within this, an error of writing to the folders of these runs becomes one line that says what to do.

    Raises:
        Failed: in place of an OSError that the folders or their disk are to blame for.
    """
    try:
        yield
    except OSError as error:
        folders = [run.folder for run in runs]
        if not _concerns(error, folders):
            raise
        raise Failed(_line(error, folders)) from error


def _concerns(error: OSError, folders: Sequence[Path]) -> bool:
    """Whether it is about these folders. The error of a full disk need not say where."""
    if error.filename is None:
        return error.errno in FULL or error.errno in BROKEN
    path = Path(os.fsdecode(error.filename)).absolute() if not isinstance(error.filename, int) else Path()
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def _line(error: OSError, folders: Sequence[Path]) -> str:
    what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    gone = [folder for folder in folders if not folder.is_dir()]
    left = [folder for folder in folders if folder not in gone]
    go_on = f"floq train --resume {' '.join(map(str, left))}"
    if gone:
        deleted = f"{' '.join(map(str, gone))} vanished while it was trained, and what was learned there with it"
        return f"{deleted}; the others go on with {go_on}" if left else f"{deleted}: start it again"
    saved = min((steps(folder / "checkpoints") or [0])[-1] for folder in folders)
    kept = f"the checkpoint of step {saved} is whole" if saved else "there was no checkpoint yet"
    remedy = "see to that"
    if error.errno in FULL:
        remedy = FULL[error.errno]
    elif error.errno in CLOSED:
        remedy = "make the folder writable"
    return f"{what}; {kept}: {remedy}, then go on with {go_on}"
