"""Learning curves of a group on a task: each run's, and their mean with its interval."""

from typing import NamedTuple

import numpy as np

from floq.analysis.metrics import Metric, curve
from floq.analysis.report.runs import RunRecord
from floq.analysis.report.scores import Cell, Over, interval


class Line(NamedTuple):
    """One run's curve."""

    run: RunRecord
    steps: np.ndarray
    values: np.ndarray


class Mean(NamedTuple):
    """The mean over `number` runs, which have ended or not, at the steps that all of them have, and its interval,
    infinite where it is not known."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: Over
    number: int
    has_ended: bool


def lines(cell: Cell, metric: Metric) -> list[Line]:
    """The curves of all runs, ended or not, that have one."""
    found = [Line(run, *curve(run, metric)) for run in (*cell.runs, *cell.unfinished)]
    return [line for line in found if len(line.steps)]


def mean(cell: Cell, metric: Metric) -> Mean | None:
    """Over the runs that have ended; over all while none has. None if they have no step in common, or if
    a single run, which has not ended, is its own curve."""
    shown = lines(cell, metric)
    ended = [line for line in shown if line.run.ends]
    chosen = ended or (shown if len(shown) > 1 else [])
    common = set.intersection(*(set(line.steps) for line in chosen)) if chosen else set()
    if not common:
        return None
    steps = np.array(sorted(common))
    values = np.array([line.values[np.isin(line.steps, steps)] for line in chosen])
    episodes = [int(line.run.settings.get("eval_episodes") or 0) for line in chosen]
    found = [interval(column, metric, episodes) for column in values.T]
    low, high = (np.array([estimate[end] for estimate, _ in found]) for end in (1, 2))
    over: Over = "seeds" if any(o == "seeds" for _, o in found) else found[-1][1]
    return Mean(steps, values.mean(axis=0), low, high, over, len(chosen), bool(ended))
