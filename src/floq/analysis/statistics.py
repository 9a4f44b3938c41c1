"""Intervals for success rates, and aggregates of the scores of several runs on several tasks.

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
MIN_RESAMPLES = 5  # of `bootstrap_estimate`


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
    """Compute the Wilson score interval of a policy's true success rate."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Student's t interval of the mean over independent seeds. It is not clipped: an end beyond the possible
    range shows that there are few seeds."""
    if len(values) < 2:
        return UNKNOWN
    mean, half = np.mean(values), stats.t.ppf((1 + confidence) / 2, len(values) - 1) * stats.sem(values)
    return float(mean - half), float(mean + half)


def bootstrap_estimate(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """Compute the mean of estimates that were each made from a bootstrap resample, and Student's interval of the true
    value: mean +- t s sqrt(1 + 1/k), for k estimates with standard deviation s.

    s^2 is the variance of a single estimate around the truth, and their mean has the error of the data all the same,
    plus a k-th of what the resamples add. Infinite with fewer than `MIN_RESAMPLES`."""
    count, mean = len(values), float(np.mean(values))
    if count < MIN_RESAMPLES:
        return Estimate(mean, *UNKNOWN)
    half = float(stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / count))
    return Estimate(mean, mean - half, mean + half)


def iqm(scores: Scores) -> float:
    """Compute the interquartile mean of all runs of all tasks: the mean without the best and the worst quarter, each
    rounded down to whole runs (Agarwal et al., arXiv 2108.13264)."""
    return float(_iqm(*scores, axis=-1))


def iqm_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the stratified bootstrap interval of the interquartile mean; (-inf, inf) if a task has a single run."""
    low, high = stratified_bootstrap(scores, _iqm, confidence)
    return float(low), float(high)


def probability_of_improvement(x: Scores, y: Scores, confidence: float = 0.95) -> Estimate:
    """Compute the probability that a run of `x` scores more than a run of `y` on the same task, a tie counting one
    half: Mann-Whitney's U over the number of pairs, on average over tasks. Its interval resamples the runs of both; it
    is infinite if a task has a single run.

    Raises:
        ValueError: the two have different numbers of tasks.
    """
    if len(x) != len(y):
        raise ValueError(f"scores of {len(x)} and of {len(y)} tasks")

    def probability(*both: np.ndarray, axis: int) -> Any:
        pairs = zip(both[: len(x)], both[len(x) :], strict=True)
        wins = [np.sign(a[..., :, None] - b[..., None, :]).mean(axis=(-2, -1)) for a, b in pairs]
        return (1 + np.mean(wins, axis=0)) / 2

    both = [np.asarray(runs, float) for runs in (*x, *y)]
    low, high = stratified_bootstrap(both, probability, confidence)
    return Estimate(float(probability(*both, axis=-1)), float(low), float(high))


def performance_profile(scores: Scores, thresholds: Runs, confidence: float = 0.95) -> Profile:
    """Compute the share of runs that score more than each threshold, on average over tasks with equal weights, and its
    pointwise stratified bootstrap interval, infinite if a task has a single run."""
    above = [np.asarray(runs, float) > np.asarray(thresholds, float)[:, None] for runs in scores]  # (thresholds, runs)

    def share(*tasks: np.ndarray, axis: int) -> Any:
        return np.mean([task.mean(axis=axis) for task in tasks], axis=0)

    low, high = stratified_bootstrap(above, share, confidence)
    return Profile(*np.broadcast_arrays(share(*above, axis=-1), low, high))


def stratified_bootstrap(
    scores: Sequence[Any], statistic: Callable[..., Any], confidence: float = 0.95, seed: int = 0
) -> tuple[Any, Any]:
    """Compute the percentile bootstrap interval of a statistic, with runs resampled within each task. The same scores
    and seed give the same interval.

    Args:
        scores: for each task an array whose last axis is that of the runs.
        statistic: called with these and `axis=-1`, and with resamples, which have further leading axes.
        confidence: of the interval.
        seed: of the resamples.

    Returns:
        (low, high); (-inf, inf) if a task has a single run.
    """
    samples = [np.asarray(runs, float) for runs in scores]
    if any(runs.shape[-1] < 2 for runs in samples):
        return UNKNOWN
    options: Any = {"n_resamples": RESAMPLES, "confidence_level": confidence, "rng": np.random.default_rng(seed)}
    found = stats.bootstrap(samples, statistic, method="percentile", vectorized=True, axis=-1, **options)
    return found.confidence_interval.low, found.confidence_interval.high


def _iqm(*scores: Runs, axis: int) -> Any:
    return stats.trim_mean(np.concatenate([np.asarray(runs, float) for runs in scores], axis=axis), 0.25, axis=axis)


def area_under_curve(steps: Runs, values: Runs) -> float:
    """Compute the area under a learning curve divided by the range of its steps, by the trapezoidal rule: the value's
    average over training. A single evaluation is its own average.

    Raises:
        ValueError: the steps do not increase, or the number of values differs.
    """
    steps, values = np.asarray(steps, float), np.asarray(values, float)
    if steps.shape != values.shape or not len(steps) or not (np.diff(steps) > 0).all():
        raise ValueError("give increasing steps, and a value for each")
    if len(steps) == 1:
        return float(values[0])
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))
