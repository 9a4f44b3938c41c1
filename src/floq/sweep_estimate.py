"""How long the cells of a sweep will take, by finished runs of the same programs."""

import dataclasses
import math
from collections.abc import Sequence

from floq import checkpoint
from floq.config import Config
from floq.errors import UserError
from floq.folders import user_path
from floq.progress import Display
from floq.run import Run
from floq.sweep_cells import Cell
from floq.sweep_plan import runs_of
from floq.train import program_of

ASIDE = {name: "any" for name in ("save_dir", "project_name", "run_group", "dataset_dir")}
ASIDE |= {"logger": (), "on_divergence": "stop"}
ASIDE |= {"keep_checkpoints": None, "checkpoint_minutes": None}


def show_cells(cells: Sequence[Cell], slots: int, machines: str, save_dir: str, display: Display) -> None:
    """The cells as a table, with the hours of each where a finished run below `save_dir` tells its speed.

    Args:
        slots: how many cells are trained at once.
        machines: where, in words.
    """
    known, rows, hours = seconds_per_step(save_dir), [], []
    for number, cell in enumerate(cells, 1):
        steps = [config.total_steps - _step(config) for config in cell.configs]
        hours.append(sum(steps) * known.get(_kind(cell.configs[0]), math.nan) / 3600)
        rows.append([cell.label, str(number), str(len(steps)), f"{sum(steps):,}", _shown(hours[-1])])
    display.columns("cells", ("what", "cell", "runs", "steps left", "hours"), rows)
    display.note(f"plan    {len(cells)} cells, {min(slots, len(cells))} at once, on {machines}")
    timed = [x for x in hours if not math.isnan(x)]
    if not timed:
        display.note(f"time    unknown: no finished run of these programs below {save_dir} to go by")
        return
    about = max(max(timed), sum(timed) / slots)
    rest = f", and {len(hours) - len(timed)} cells of unknown length" if len(timed) < len(hours) else ""
    display.note(
        f"time    about {_shown(about)} hours{rest}, by finished runs of these programs below {save_dir}; runs that an "
        "accelerator trains side by side take less"
    )


def seconds_per_step(save_dir: str) -> dict[Config, float]:
    """By kind of program, what a step of one run takes with its evaluations, as the fastest of its finished runs tells:
    others may have had to share the machine."""
    found: dict[Config, float] = {}
    for path in user_path(save_dir).glob("*/*/*/*/summary.json"):
        try:
            run = Run.open(path.parent)
            summary = run.summary
            each = summary["seconds"] / summary["steps"] / summary["runs_in_fleet"]
        except (UserError, KeyError, TypeError, ZeroDivisionError):
            continue  # damaged, or of another version: it tells nothing
        kind = _kind(run.config)
        found[kind] = min(each, found.get(kind, math.inf))
    return found


def _kind(config: Config) -> Config:
    """What runs have in common that take the same time for a step: the program, whatever its data lies in and, with
    one phase, however many steps there are."""
    steps = {}
    if not config.online_steps:
        steps = {"offline_steps": 1}
    elif not config.offline_steps:
        steps = {"online_steps": config.num_envs}
    return dataclasses.replace(program_of(config), **ASIDE, **steps)


def _step(config: Config) -> int:
    """Up to which step a run that has not ended is kept."""
    saved = (checkpoint.steps(run.folder / "checkpoints") for run in runs_of(config))
    return max((step for steps in saved for step in steps), default=0)


def _shown(hours: float) -> str:
    return "-" if math.isnan(hours) else f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
