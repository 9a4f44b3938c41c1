"""The folder `checkpoints` of a run: which steps are there, and what kills and accidents left beside them. No JAX.

<step>/          complete
.<step>.partial  being written; a kill leaves it behind
.<step>.old      complete, and being replaced by one of the same step
<step>.damaged   found unreadable by `--resume`, which went back to an older one; nobody reads it again
"""

import re
import shutil
from pathlib import Path

from floq.utils.files import replace_folder, sync

MANIFEST = "manifest.json"
STEP = "0|[1-9][0-9]{0,14}"


def steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order. Changes nothing."""
    return sorted(_complete(folder))


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return _complete(folder).get(step, folder / str(step))


def put(partial: Path, folder: Path, step: int) -> Path:
    """Let a checkpoint that has been written whole appear under its name, in place of one of the same step, which was
    saved before, with other evaluations pending."""
    final = folder / str(step)
    replace_folder(final, partial, folder / f".{step}.old")
    return final


def mend(folder: Path) -> list[Path]:
    """Bring back what a kill left aside, and delete what it left half-written. For whoever holds the run's folder.

    Returns:
        What was set aside as damaged, since it has the name of a checkpoint and is none.
    """
    for aside in folder.glob(".*.old"):
        final = folder / aside.name.strip(".").removesuffix(".old")
        if (aside / MANIFEST).exists() and not final.exists():
            aside.rename(final)
        else:
            shutil.rmtree(aside, ignore_errors=True)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    named = [path for path in folder.glob("*") if re.fullmatch(STEP, path.name)]
    return [set_aside(folder, int(path.name)) for path in named if not (path / MANIFEST).exists()]


def set_aside(folder: Path, step: int) -> Path:
    """Rename a damaged checkpoint, so that nobody reads it; somebody may want to look at it."""
    aside, number = folder / f"{step}.damaged", 1
    while aside.exists():
        number += 1
        aside = folder / f"{step}.damaged-{number}"
    path_of(folder, step).rename(aside)
    return aside


def steps_set_aside(folder: Path) -> list[int]:
    """The steps of checkpoints that were found damaged."""
    return sorted(
        int(p.name.split(".")[0]) for p in folder.glob("*") if re.fullmatch(rf"({STEP})\.damaged(-\d+)?", p.name)
    )


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps: the run goes on from this one, and its logs are cut back to it."""
    for later in steps(folder):
        if later > step:
            _remove(folder, later)
    sync(folder)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for step in steps(folder)[:-keep]:
        _remove(folder, step)


def _remove(folder: Path, step: int) -> None:
    """Delete a checkpoint, of which a kill leaves nothing that looks like one."""
    partial = folder / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    path_of(folder, step).rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def _complete(folder: Path) -> dict[int, Path]:
    """The complete checkpoints by step. One that was being replaced stands in while its successor is not there."""
    found = {}
    for pattern in (rf"\.({STEP})\.old", f"({STEP})"):
        for path in folder.glob("*"):
            if (match := re.fullmatch(pattern, path.name)) and (path / MANIFEST).exists():
                found[int(match[1])] = path
    return found
