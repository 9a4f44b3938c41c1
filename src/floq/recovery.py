"""Where stopped runs go on from: their newest checkpoint, or the one before where that was damaged."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from floq import checkpoint
from floq.checkpoint import Checkpoint, Damaged
from floq.checkpoint_folder import mend, remove_after, set_aside, steps, steps_set_aside
from floq.data.replay import Recorded
from floq.errors import UserError
from floq.run import Run
from floq.weights import own_checkpoint


class Found(NamedTuple):
    """What a run goes on from: its checkpoint and what it had seen online; neither if it starts anew."""

    saved: Checkpoint | None = None
    replay: Recorded | None = None

    @property
    def step(self) -> int:
        return self.saved.step if self.saved else 0


def newest_common(runs: Sequence[Run], note: Callable[[str], object]) -> list[Found]:
    """For each run the checkpoint of the newest step that all of them have and that can be read; of step 0 for all if
    one has none yet, and starts anew. They differ where a fleet was killed while it saved. A checkpoint that is damaged
    is renamed, not deleted. For whoever holds the folders of the runs.

    Args:
        runs: in their folders, as they are configured there.
        note: called with a line for each checkpoint that is damaged.

    Raises:
        UserError: a run is past the others by more than a save, none of its checkpoints can be read, or they do not
            belong to it.
    """
    folders = [run.folder / "checkpoints" for run in runs]
    for folder in folders:
        for aside in mend(folder):
            note(f"damaged {aside} lacks its manifest")
    if not stopped_together(runs):
        listed = ", ".join(map(str, _newest(folders)))
        raise UserError(f"these runs stopped at different steps ({listed}): resume them one by one")
    while True:
        known = [steps(folder) for folder in folders]
        common = set(known[0]).intersection(*known)
        if not common:
            if any(steps_set_aside(folder) for folder in folders):
                raise UserError(f"{_without(folders)} has no checkpoint left that can be read: start the run again")
            return [Found()] * len(runs)
        found = [_read(run, max(common), note) for run in runs]
        if all(found):
            return [one for one in found if one]


def forget_later(runs: Sequence[Run], step: int) -> None:
    """Delete the checkpoints after this step, where some of the runs were further: they would be gone back to while
    the rows of the logs before them are not there."""
    for run in runs:
        remove_after(run.folder / "checkpoints", step)


def _read(run: Run, step: int, note: Callable[[str], object]) -> Found | None:
    """What the run has of that step; None if it is damaged, and set aside now."""
    folder = run.folder / "checkpoints"
    try:
        saved = own_checkpoint(run, step)
        replay = checkpoint.load_replay(folder, step)
    except Damaged as error:
        aside = set_aside(folder, step)
        note(f"damaged {str(error).rsplit(':', 1)[0]}; it is {aside.name} now, and the run goes back to an older one")
        return None
    if replay is None and step > saved.config.offline_steps:
        raise UserError(
            f"{folder / str(step)} has no {checkpoint.REPLAY}, which only the newest {checkpoint.REPLAYS_KEPT} "
            f"checkpoints of a run keep: start a new run from its weights, with --restore_path={run.folder} "
            f"--restore_epoch={step}"
        )
    return Found(saved, replay)


def stopped_together(runs: Sequence[Run]) -> bool:
    """Whether these runs can go on as one fleet: they are at one step, or apart by the save during which they were
    killed."""
    folders = [run.folder / "checkpoints" for run in runs]
    newest, common = _newest(folders), set(steps(folders[0])).intersection(*map(steps, folders))
    save_interval, num_envs = runs[0].config.save_interval, runs[0].config.num_envs
    return len(set(newest)) == 1 or max(newest) - max(common, default=0) < save_interval + num_envs


def _newest(folders: Sequence[Path]) -> list[int]:
    """How far each run has come; a checkpoint that was set aside counts."""
    return [max([*steps(folder), *steps_set_aside(folder)], default=0) for folder in folders]


def _without(folders: Sequence[Path]) -> Path:
    """The first of these folders that holds no checkpoint, or simply the first."""
    return next((folder for folder in folders if not steps(folder)), folders[0])
