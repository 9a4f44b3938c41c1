"""Scores of groups of runs, by task and over all tasks, and their learning curves. Only runs that have ended are
results; others are kept apart."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from floq.analysis.metrics import SUCCESS, Metric, area, curve, last, primary_metric
from floq.analysis.report.groups import RunGroup
from floq.analysis.statistics import (
    UNKNOWN,
    Estimate,
    Profile,
    iqm,
    iqm_interval,
    mean_interval,
    performance_profile,
    probability_of_improvement,
    wilson_interval,
)
from floq.runs.record import DamagedRun, RunRecord
from floq.utils.errors import UserError, nearest

FEW = 3  # with fewer seeds an interval over seeds is too wide to be useful
MANY = 6  # groups, up to which every pair is compared
Over = Literal["seeds", "episodes", "nothing"]
"""The population of an interval: other seeds, or only other episodes of the same policies."""

# --- Scores ---


@dataclass(frozen=True)
class Cell:
    """A group on a task: its runs that have ended, their last values and areas under the curve, and the mean of the
    former with its interval; the runs that have not ended; and those that are not counted, since their seed has a newer
    run, or one that ended."""

    runs: tuple[RunRecord, ...]
    values: np.ndarray
    areas: np.ndarray
    estimate: Estimate
    over: Over
    unfinished: tuple[RunRecord, ...]
    repeated: tuple[RunRecord, ...]


@dataclass(frozen=True)
class TaskScores:
    """A task, the metric of its runs, and its groups by name."""

    name: str
    family: str
    metric: Metric
    cells: dict[str, Cell]

    @cached_property
    def lines(self) -> list[tuple[str, RunRecord, np.ndarray, np.ndarray]]:
        """The learning curve of each run, finished or not, that has one: its group, the run, steps and values."""
        runs = [(name, run) for name, cell in self.cells.items() for run in (*cell.runs, *cell.unfinished)]
        return [(name, run, *found) for name, run in runs if len((found := curve(run, self.metric))[0])]

    @cached_property
    def means(self) -> dict[str, "Mean"]:
        """The mean learning curve of each group that has one."""
        found = {name: mean(cell, self.metric) for name, cell in self.cells.items()}
        return {name: each for name, each in found.items() if each is not None}


@dataclass(frozen=True)
class Aggregate:
    """A group over all tasks of one metric: interquartile means of last values and areas, and performance profile, of
    the runs that have ended; `tasks` and `runs` are their numbers."""

    iqm: Estimate
    area_iqm: Estimate
    profile: Profile
    tasks: int
    runs: int


@dataclass(frozen=True)
class Report:
    """Contents of a report on some runs. Groups are compared by the last values of their runs, or `by_area` under their
    curves, as those of an experiment are; with more than `MANY` groups, each with the `reference` alone. `metric`: that
    of the tasks over which scores are aggregated."""

    runs: tuple[RunRecord, ...]
    damaged: tuple[DamagedRun, ...]
    groups: tuple[RunGroup, ...]
    tasks: tuple[TaskScores, ...]
    reference: str
    metric: Metric = SUCCESS
    by_area: bool = False

    @property
    def state_counts(self) -> dict[str, int]:
        """Number of runs in each state, with the damaged ones."""
        counts = {state: sum(run.state == state for run in self.runs) for state in ("finished", "running", "stopped")}
        return {state: n for state, n in (counts | {"damaged": len(self.damaged)}).items() if n}

    @property
    def protocol(self) -> str:
        """The evaluation protocols of the runs."""
        return "; ".join(sorted({str(run.records.get("protocol", "")) for run in self.runs} - {""}))

    @cached_property
    def aggregates(self) -> dict[str, Aggregate]:
        """Aggregates by group name, of groups with a finished run on a task with the metric. Empty if each group has
        only one such run, unless they are those of an experiment."""
        found = {}
        for group in self.groups:
            cells = [cell for task in self._tasks if (cell := task.cells.get(group.name)) and cell.runs]
            if cells:
                values, areas = [cell.values for cell in cells], [cell.areas for cell in cells]
                last_iqm, area_iqm = (Estimate(iqm(scores), *iqm_interval(scores)) for scores in (values, areas))
                profile = performance_profile(areas if self.by_area else values, self.thresholds)
                found[group.name] = Aggregate(last_iqm, area_iqm, profile, len(cells), sum(map(len, values)))
        return found if self.by_area or any(aggregate.runs > 1 for aggregate in found.values()) else {}

    @property
    def _tasks(self) -> list[TaskScores]:
        return [task for task in self.tasks if task.metric is self.metric]

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Thresholds of performance profiles: all rates, or the range of the scores."""
        scores = [x for group in self.groups for x in self.scores(group.name, self._tasks).values()]
        if self.metric.is_rate or not scores:
            return np.linspace(0, 1, 51)
        low, high = np.min(np.concatenate(scores)), np.max(np.concatenate(scores))
        return np.linspace(low - 0.1 * (high - low), high, 51)

    @cached_property
    def improvements(self) -> dict[tuple[str, str], tuple[Estimate, int]]:
        """Probability that a run of the first group is better than one of the second, and the number of tasks that both
        share: of the pairs that an experiment names, of all with up to `MANY` groups, else of each group and the
        reference."""
        ranked = [task for task in self.tasks if task.metric.more_is_better]
        scores = {group.name: self.scores(group.name, ranked) for group in self.groups}
        names = [name for name, by_task in scores.items() if by_task]
        pairs = [(name, other) for name in names for other in (names if len(names) <= MANY else [self.reference])]
        if self.by_area:
            pairs = [(group.name, group.against) for group in self.groups if group.against]
        found = {}
        for first, second in pairs:
            x, y = scores[first], scores[second]
            shared = [task for task in x if task in y]
            if first != second and shared:
                estimate = probability_of_improvement([x[task] for task in shared], [y[task] for task in shared])
                found[first, second] = estimate, len(shared)
        return found

    @cached_property
    def repeated(self) -> set[RunRecord]:
        """Runs that are not counted, since their seed has another one."""
        return {run for task in self.tasks for cell in task.cells.values() for run in cell.repeated}

    def scores(self, group: str, tasks: Sequence[TaskScores]) -> dict[str, np.ndarray]:
        """Return the scores of a group's finished runs by task; tasks without such runs are left out."""
        found = {task.name: cell for task in tasks if (cell := task.cells.get(group)) and cell.runs}
        return {name: cell.areas if self.by_area else cell.values for name, cell in found.items()}


def assemble(
    groups: Sequence[RunGroup],
    damaged: Sequence[DamagedRun] = (),
    reference: str | None = None,
    metric: Metric | None = None,
) -> Report:
    """Assemble the report of these groups.

    Args:
        groups: as `group_runs` finds them, or those of an experiment.
        damaged: runs that cannot be read.
        reference: the name of a group; by default the first of those with the most results.
        metric: that of an experiment; by default each task has the first that its runs have.

    Raises:
        UserError: there is no such group.
    """
    names, runs = [group.name for group in groups], list(dict.fromkeys(run for group in groups for run in group.runs))
    if reference is not None and reference not in names:
        raise UserError(f"--reference={reference}: choose one of {'; '.join(names)}{nearest(reference, names)}")
    by_task: dict[str, list[RunRecord]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.task.removesuffix("-v0")):  # the default task before its siblings
        by_task[run.task].append(run)
    tasks = []
    for name, members in by_task.items():
        own = metric or primary_metric(members)
        cells = {g.name: _cell([run for run in g.runs if run.task == name], own) for g in groups if name in g.tasks}
        tasks.append(TaskScores(name, members[0].family, own, cells))
    if reference is None and groups:
        reference = max(groups, key=lambda group: sum(run.ends for run in group.runs)).name
    found = tuple(runs), tuple(damaged), tuple(groups), tuple(tasks), reference or ""
    return Report(*found, metric or SUCCESS, metric is not None)


def _cell(runs: Sequence[RunRecord], metric: Metric) -> Cell:
    has_ended = {run: run.ends and math.isfinite(last(run, metric)) for run in runs}
    counted = {run.seed: run for run in sorted(runs, key=lambda run: (run.seed, has_ended[run], run.changed))}.values()
    ended = tuple(run for run in counted if has_ended[run])
    values, areas = (np.array([score(run, metric) for run in ended]) for score in (last, area))
    estimate, over = interval(values, metric, [_episodes(run) for run in ended])
    unfinished = tuple(run for run in counted if not has_ended[run])
    return Cell(ended, values, areas, estimate, over, unfinished, tuple(run for run in runs if run not in counted))


def _episodes(run: RunRecord) -> int:
    return int(np.nan_to_num(run.summary_value("eval_episodes"))) or int(run.settings.get("eval_episodes") or 0)


def interval(values: np.ndarray, metric: Metric, episodes: Sequence[int]) -> tuple[Estimate, Over]:
    """Compute the mean over seeds, its 95% interval, and the population of that interval. With fewer than `FEW` seeds,
    or seeds without spread, a success rate gets the interval over all its episodes, and other metrics get none.

    Args:
        values: one per seed.
        metric: their metric.
        episodes: number of episodes behind each value, 0 where unknown.
    """
    if not len(values):
        return Estimate(math.nan, *UNKNOWN), "nothing"
    mean = float(values.mean())
    if len(values) >= FEW and values.std() > 0:
        low, high = mean_interval(values)
        return (Estimate(mean, max(low, 0.0), min(high, 1.0)) if metric.is_rate else Estimate(mean, low, high)), "seeds"
    if metric.is_rate and all(episodes):
        successes = sum(round(value * count) for value, count in zip(values, episodes, strict=True))
        return Estimate(mean, *wilson_interval(successes, sum(episodes))), "episodes"
    return Estimate(mean, *UNKNOWN), "nothing"


# --- Learning curves ---


class Mean(NamedTuple):
    """Mean over `number` runs at the steps that they share, and its interval, infinite where unknown."""

    steps: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: Over
    number: int


def mean(cell: Cell, metric: Metric) -> Mean | None:
    """Compute the mean curve of the runs that have ended; of all runs while none has. None if they share no step, or
    for a single run that has not ended."""
    curves = {run: curve(run, metric) for run in (*cell.runs, *cell.unfinished)}
    shown = [run for run, (steps, _) in curves.items() if len(steps)]
    averaged = [run for run in shown if run.ends] or (shown if len(shown) > 1 else [])
    steps = np.array(sorted(set.intersection(*(set(curves[run][0]) for run in averaged)))) if averaged else np.array([])
    if not len(steps):
        return None
    values = np.array([curves[run][1][np.isin(curves[run][0], steps)] for run in averaged])
    episodes = [int(run.settings.get("eval_episodes") or 0) for run in averaged]
    estimates, overs = zip(*(interval(column, metric, episodes) for column in values.T), strict=True)
    _, low, high = np.transpose(estimates)
    return Mean(steps, values.mean(axis=0), low, high, "seeds" if "seeds" in overs else overs[-1], len(averaged))
