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
    MIN_BOOTSTRAP_SEEDS,
    UNKNOWN,
    Estimate,
    PairedDifference,
    Profile,
    iqm,
    iqm_interval,
    mean_interval,
    mean_over_tasks,
    paired_difference,
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
    """A group over all tasks of one metric: averages of last values and areas, and performance profile, of the runs
    that have ended; `tasks` is their number."""

    last: Estimate
    area: Estimate
    profile: Profile
    tasks: int


class Comparison(NamedTuple):
    """The first group against the second on the tasks of a metric that both have: paired differences, and the
    probability that a run of the first is better."""

    first: str
    second: str
    area: PairedDifference
    last: PairedDifference
    better: Estimate
    tasks: int


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
    def has_many_seeds(self) -> bool:
        """Whether each group has `MIN_BOOTSTRAP_SEEDS` runs or more that have ended on each of its tasks: then averages
        are interquartile means, and they, probabilities and profiles have bootstrap intervals. Otherwise averages are
        means with Student's intervals, and the others have none."""
        counts = [len(cell.runs) for task in self.tasks for cell in task.cells.values() if cell.runs]
        return min(counts, default=0) >= MIN_BOOTSTRAP_SEEDS

    @property
    def _confidence(self) -> float | None:
        return 0.95 if self.has_many_seeds else None

    @cached_property
    def aggregates(self) -> dict[str, Aggregate]:
        """Aggregates by group name, of groups with a finished run on a task with the metric. Empty if each group has
        only one such run, unless they are those of an experiment."""
        found, runs = {}, []
        for group in self.groups:
            values, areas = (self.scores(group.name, self._tasks, by_area) for by_area in (False, True))
            if values:
                profile = _by_run(areas if self.by_area else values), self.thresholds, self._confidence
                both = self._average(values), self._average(areas)
                found[group.name] = Aggregate(*both, performance_profile(*profile), len(values))
                runs.append(sum(map(len, values)))
        return found if self.by_area or max(runs, default=0) > 1 else {}

    def _average(self, scores: Sequence[dict[int, float]]) -> Estimate:
        if self.has_many_seeds:
            return Estimate(iqm(_by_run(scores)), *iqm_interval(_by_run(scores)))
        return _clip(mean_over_tasks(scores), self.metric)

    @property
    def _tasks(self) -> list[TaskScores]:
        return self._tasks_of(self.metric)

    def _tasks_of(self, metric: Metric) -> list[TaskScores]:
        return [task for task in self.tasks if task.metric is metric]

    @cached_property
    def thresholds(self) -> np.ndarray:
        """Thresholds of performance profiles: all rates, or the range of the scores."""
        scores = [x for group in self.groups for x in _by_run(self.scores(group.name, self._tasks))]
        if self.metric.is_rate or not scores:
            return np.linspace(0, 1, 51)
        low, high = np.min(np.concatenate(scores)), np.max(np.concatenate(scores))
        return np.linspace(low - 0.1 * (high - low), high, 51)

    def comparisons(self, metric: Metric) -> list[Comparison]:
        """Compare groups on their tasks with this metric: the pairs that an experiment names, all with up to `MANY`
        groups, the reference always second, else each with the reference. None by a metric that does not rank."""
        tasks = self._tasks_of(metric) if metric.more_is_better else []
        names = [group.name for group in self.groups if self.scores(group.name, tasks)]
        names.sort(key=lambda name: name != self.reference)
        pairs = [(first, second) for place, second in enumerate(names) for first in names[place + 1 :]]
        if self.by_area:
            pairs = [(group.name, group.against) for group in self.groups if group.against]
        elif len(names) > MANY:
            pairs = [(first, second) for first, second in pairs if second == self.reference]
        found = []
        for pair in pairs:
            shared = [task for task in tasks if all(self.scores(name, [task]) for name in pair)]
            if shared:
                x, y = (_by_run(self.scores(name, shared)) for name in pair)
                area, last = (
                    paired_difference(self.scores(pair[0], shared, by_area), self.scores(pair[1], shared, by_area))
                    for by_area in (True, False)
                )
                better = probability_of_improvement(x, y, self._confidence)
                found.append(Comparison(*pair, area, last, better, len(shared)))
        return found

    @cached_property
    def repeated(self) -> set[RunRecord]:
        """Runs that are not counted, since their seed has another one."""
        return {run for task in self.tasks for cell in task.cells.values() for run in cell.repeated}

    def scores(self, group: str, tasks: Sequence[TaskScores], by_area: bool | None = None) -> list[dict[int, float]]:
        """Return the scores of a group's finished runs, for each task by seed: those by which groups are compared,
        unless `by_area` says which. Tasks without such runs are left out."""
        by_area = self.by_area if by_area is None else by_area
        cells = [cell for task in tasks if (cell := task.cells.get(group)) and cell.runs]
        return [
            dict(zip([run.seed for run in cell.runs], (cell.areas if by_area else cell.values).tolist(), strict=True))
            for cell in cells
        ]


def _by_run(scores: Sequence[dict[int, float]]) -> list[np.ndarray]:
    return [np.array(list(task.values())) for task in scores]


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
        return _clip(Estimate(mean, *mean_interval(values)), metric), "seeds"
    if metric.is_rate and all(episodes):
        successes = sum(round(value * count) for value, count in zip(values, episodes, strict=True))
        return Estimate(mean, *wilson_interval(successes, sum(episodes))), "episodes"
    return Estimate(mean, *UNKNOWN), "nothing"


def _clip(estimate: Estimate, metric: Metric) -> Estimate:
    """Clip a known interval to the values that the metric can have."""
    value, low, high = estimate
    return Estimate(value, max(low, 0.0), min(high, 1.0)) if metric.is_rate and math.isfinite(low) else estimate


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
