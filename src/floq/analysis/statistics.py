"""Intervals for success rates, and what the scores of several runs on several tasks come to.

Scores are given task by task, each with one number per run; tasks may have different numbers of runs. Aggregates and
their intervals follow Agarwal et al. 2021 (arXiv 2108.13264): runs are resampled within each task, since the tasks of a
benchmark are fixed and its seeds are a sample.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats

Runs = Sequence[float] | np.ndarray
Scores = Sequence[Runs]
UNKNOWN = float("-inf"), float("inf")
RESAMPLES = 2000


class Estimate(NamedTuple):
    """A number and the interval around it."""

    value: float
    low: float
    high: float


class Profile(NamedTuple):
    """For each threshold, the share of runs that score more, and its interval."""

    share: Float[np.ndarray, " thresholds"]
    low: Float[np.ndarray, " thresholds"]
    high: Float[np.ndarray, " thresholds"]


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate: what this many episodes say about the policy's true rate."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean over independent seeds: what this many seeds say about others. Not clipped: an
    end beyond what is possible shows that the seeds are few."""
    if len(values) < 2:
        return UNKNOWN
    mean, half = np.mean(values), stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(mean - half), float(mean + half)


def iqm(scores: Scores) -> float:
    """Interquartile mean of all runs of all tasks together: the mean of what is left without the best and the worst
    quarter, each rounded down to whole runs."""
    ordered = np.sort(np.concatenate(scores))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())  # scipy.stats.trim_mean, at a fiftieth of its time


def stratified_bootstrap(
    scores: Scores,
    statistic: Callable[[Scores], float],
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of the scores, with runs resampled within each task. The same scores
    and seed give the same interval.

    Returns:
        (low, high); (-inf, inf) if a task has a single run, which says nothing about others.
    """
    return _interval(_resampled(scores, statistic, resamples, seed), confidence) if _spread(scores) else UNKNOWN


def _spread(scores: Scores) -> bool:
    return all(len(runs) > 1 for runs in scores)


def _resampled(scores: Scores, statistic: Callable[[Scores], Any], resamples: int, seed: int) -> np.ndarray:
    """The statistic of each resample. SciPy's bootstrap would do, but spells its seed differently from version to
    version, has no statistics that are curves of several samples of different sizes, and takes longer."""
    rng, tasks = np.random.default_rng(seed), [np.asarray(runs, float) for runs in scores]
    drawn = [runs[rng.integers(len(runs), size=(resamples, len(runs)))] for runs in tasks]
    return np.array([statistic(resample) for resample in zip(*drawn, strict=True)])


def _interval(resampled: np.ndarray, confidence: float) -> tuple[Any, Any]:
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def probability_of_improvement(
    x: Scores, y: Scores, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """How probably a run of `x` scores more than a run of `y` on the same task, a tie counting one half: Mann-Whitney's
    U over the number of pairs, on average over tasks. Its interval resamples the runs of both.

    Raises:
        ValueError: the two have different numbers of tasks.
    """
    if len(x) != len(y):
        raise ValueError(f"scores of {len(x)} and of {len(y)} tasks")

    def mean_over_tasks(both: Scores) -> float:
        return float(np.mean([_probability(a, b) for a, b in zip(both[: len(x)], both[len(x) :], strict=True)]))

    both = [*x, *y]
    return Estimate(mean_over_tasks(both), *stratified_bootstrap(both, mean_over_tasks, confidence, resamples, seed))


def _probability(x: Runs, y: Runs) -> float:
    """Of one task. Written out, since SciPy's test computes a p-value at each call, and the bootstrap has thousands."""
    differences = np.subtract.outer(np.asarray(x, float), np.asarray(y, float))
    return float(np.mean((1 + np.sign(differences)) / 2))


def performance_profile(
    scores: Scores, thresholds: Runs, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Profile:
    """The share of runs that score more than each threshold, on average over tasks, each with the same weight; and its
    pointwise percentile bootstrap interval, infinite if a task has a single run."""
    levels = np.asarray(thresholds, float)

    def share(tasks: Scores) -> np.ndarray:
        return np.mean([np.greater.outer(np.asarray(runs, float), levels).mean(axis=0) for runs in tasks], axis=0)

    if not _spread(scores):
        return Profile(share(scores), *(np.full(levels.shape, end) for end in UNKNOWN))
    return Profile(share(scores), *_interval(_resampled(scores, share, resamples, seed), confidence))


def area_under_curve(steps: Runs, values: Runs) -> float:
    """The area under a learning curve over the range of its steps: the value's average over training, straight between
    evaluations. A single evaluation is its own average.

    Raises:
        ValueError: the steps do not increase, or there are not as many values.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if steps.shape != values.shape or not len(steps) or not (np.diff(steps) > 0).all():
        raise ValueError("give increasing steps, and a value for each")
    if len(steps) == 1:
        return float(values[0])
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
