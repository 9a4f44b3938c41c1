"""The cells of a sweep: runs that one process trains as one program, and what comes of trying to."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from floq import checkpoint
from floq.config import Config
from floq.errors import Failed, Interrupted, UserError
from floq.progress import Display
from floq.recovery import stopped_together
from floq.resuming import resume_fleet
from floq.run import Run
from floq.run_data import fetch_missing
from floq.sweep_plan import runs_of
from floq.train import fleets, train_fleet


@dataclass(frozen=True)
class Cell:
    """Runs that fit one program, and what they are called."""

    label: str
    configs: tuple[Config, ...]


class Outcome(NamedTuple):
    """How a cell ended: its runs came to their end, it cannot be trained, or somebody stopped it. What failed says why
    in a line, and where nobody foresaw it in a traceback too."""

    state: Literal["done", "failed", "stopped"]
    line: str = ""
    trace: str = ""


def cells_of(labels: Mapping[Config, str], most: int | None = None) -> list[Cell]:
    """These runs as cells, none of more than `most` runs; by default of all that fit one program. A program with too
    many is divided evenly, and neighbours stay together.

    Args:
        labels: what each run is called.
        most: runs of a cell.
    """
    configs, cells = list(labels), []
    for numbers in fleets(configs):
        parts = -(-len(numbers) // (most or len(numbers)))
        for part in range(parts):
            first, last = (len(numbers) * i // parts for i in (part, part + 1))
            own = tuple(configs[number] for number in numbers[first:last])
            cells.append(Cell(", ".join(dict.fromkeys(labels[config] for config in own)), own))
    return cells


def attempt(cell: Cell, show: bool = True) -> Outcome:
    """Train a cell in this process; a failure is an outcome. Raises Interrupted: a signal ended it."""
    try:
        train_cell(cell.configs, show)
    except Interrupted:
        raise
    except (UserError, Failed) as error:
        return Outcome("failed", " ".join(str(error).split()))
    except Exception as error:
        return Outcome("failed", repr(error)[:300], traceback.format_exc())
    return Outcome("done")


def train_cell(configs: Sequence[Config], show: bool = True) -> None:
    """Train those of these runs that have not ended. What was begun goes on in the folders that it has, from its
    checkpoints if it has any; runs that stopped far from each other go on one group after another."""
    fresh: list[Config] = []
    begun: list[Run] = []
    for config in configs:
        runs = runs_of(config)
        if any(run.has_ended for run in runs):
            continue
        if runs:
            begun.append(max(runs, key=_newest_step))
        else:
            fresh.append(config)
    if begun:
        fetch_missing([run.config for run in begun], Display(show))  # as the plan says, which is theirs
    for group in _that_go_on_together(begun):
        resume_fleet([run.folder for run in group], show=show, draw=False)
    if fresh:
        train_fleet(fresh, show=show, draw=False)


def _that_go_on_together(runs: Sequence[Run]) -> list[list[Run]]:
    if runs and stopped_together(runs):
        return [list(runs)]
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(_newest_step(run), []).append(run)
    return list(groups.values())


def _newest_step(run: Run) -> int:
    """Of its checkpoints; 0 before the first."""
    return max(checkpoint.steps(run.folder / "checkpoints"), default=0)
