"""Intervals for success rates, aggregates of the scores of several runs on several tasks, and paired differences.

Scores are given task by task, each with one number per run; tasks may have different numbers of runs. Where runs of
several tasks or groups belong together, the scores of a task are given by seed. Bootstrap intervals follow Agarwal et
al. 2021 (arXiv 2108.13264): runs are resampled within each task, since the tasks of a benchmark are fixed and its seeds
are a sample. Resamples of few seeds spread too little: below `MIN_BOOTSTRAP_SEEDS`, use Student's intervals.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy  # each part is loaded at its first use
from jaxtyping import Float

Runs = Sequence[float] | np.ndarray
Scores = Sequence[Runs]
SeedScores = Sequence[Mapping[int, float]]
"""For each task the scores by seed."""
UNKNOWN = float("-inf"), float("inf")
RESAMPLES = 2000
MIN_BOOTSTRAP_SEEDS = 10  # on each task: the percentile bootstrap of fewer is far too narrow
MAX_SIGN_FLIPS = 9999  # up to which, 13 pairs, all are tried
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


class PairedDifference(NamedTuple):
    """Mean difference of two groups over pairs of runs with the same seed, and its interval; the p-value of no
    difference; and the numbers of pairs, and of seeds that only one of the groups has."""

    estimate: Estimate
    p: float
    pairs: int
    unpaired: int


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the Wilson score interval of a policy's true success rate."""
    interval = scipy.stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Compute Student's t interval of the mean over independent seeds. It is not clipped: an end beyond the possible
    range shows that there are few seeds."""
    if len(values) < 2:
        return UNKNOWN
    mean, half = np.mean(values), scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * scipy.stats.sem(values)
    return float(mean - half), float(mean + half)


def mean_estimate(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """Compute the mean over independent seeds and Student's t interval; infinite for values that all agree, whose
    spread is not known, and for less than two. The mean of none is NaN."""
    agree = len(values) < 2 or np.allclose(values, values[0])
    mean = float(np.mean(values)) if len(values) else math.nan
    return Estimate(mean, *(UNKNOWN if agree else mean_interval(values, confidence)))


def mean_over_tasks(scores: SeedScores, confidence: float = 0.95) -> Estimate:
    """Compute the mean over tasks of their mean scores, and Student's interval over seeds: for each seed its mean over
    tasks first. Infinite unless every seed has run all tasks: seeds that lack one say nothing of the mean over all."""
    if any(task.keys() != scores[0].keys() for task in scores):
        return Estimate(float(np.mean([np.mean(list(task.values())) for task in scores])), *UNKNOWN)
    return mean_estimate([float(np.mean([task[seed] for task in scores])) for seed in scores[0]], confidence)


def paired_difference(x: SeedScores, y: SeedScores, confidence: float = 0.95) -> PairedDifference:
    """Compute the mean difference x - y over pairs of runs with the same seed: for each seed, the mean over the tasks
    that both have run with it. Scores that are not finite are left out.

    The interval is Student's. p is that of the two-sided sign-flip test: if both are equally good, each difference has
    either sign with equal probability. It is exact up to 13 pairs, and at least 2 / 2^pairs. A single pair has neither.

    Raises:
        ValueError: the two have different numbers of tasks.
    """
    by_seed, seeds = defaultdict(list), {seed for task in (*x, *y) for seed in task}
    for own, other in zip(x, y, strict=True):
        for seed in own.keys() & other.keys():
            if math.isfinite(difference := own[seed] - other[seed]):
                by_seed[seed].append(difference)
    differences = [float(np.mean(by_seed[seed])) for seed in sorted(by_seed)]
    return PairedDifference(
        mean_estimate(differences, confidence),
        sign_flip_p(differences) if len(differences) > 1 else math.nan,
        len(differences),
        len(seeds) - len(differences),
    )


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Compute the p-value of the two-sided sign-flip permutation test of at least two paired differences: the
    probability of a mean as far from 0 if each sign is random. With more sign flips than `MAX_SIGN_FLIPS`, of so many
    random ones."""
    options: Any = {"n_resamples": MAX_SIGN_FLIPS, "rng": np.random.default_rng(seed)}
    test = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples", vectorized=True, **options)
    return float(test.pvalue)


def bootstrap_estimate(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Estimate:
    """Compute the mean of estimates that were each made from a bootstrap resample, and Student's interval of the true
    value: mean +- t s sqrt(1 + 1/k), for k estimates with standard deviation s.

    s^2 is the variance of a single estimate around the truth, and their mean has the error of the data all the same,
    plus a k-th of what the resamples add. Infinite with fewer than `MIN_RESAMPLES`."""
    count, mean = len(values), float(np.mean(values))
    if count < MIN_RESAMPLES:
        return Estimate(mean, *UNKNOWN)
    half = float(scipy.stats.t.ppf((1 + confidence) / 2, count - 1) * np.std(values, ddof=1) * np.sqrt(1 + 1 / count))
    return Estimate(mean, mean - half, mean + half)


def iqm(scores: Scores) -> float:
    """Compute the interquartile mean of all runs of all tasks: the mean without the best and the worst quarter, each
    rounded down to whole runs (Agarwal et al., arXiv 2108.13264)."""
    return float(_iqm(*scores, axis=-1))


def iqm_interval(scores: Scores, confidence: float = 0.95) -> tuple[float, float]:
    """Compute the stratified bootstrap interval of the interquartile mean; (-inf, inf) if a task has a single run."""
    low, high = stratified_bootstrap(scores, _iqm, confidence)
    return float(low), float(high)


def probability_of_improvement(x: Scores, y: Scores, confidence: float | None = 0.95) -> Estimate:
    """Compute the probability that a run of `x` scores more than a run of `y` on the same task, a tie counting one
    half: Mann-Whitney's U over the number of pairs, on average over tasks. Its interval resamples the runs of both; it
    is infinite if a task has a single run, or with `confidence` None.

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


def performance_profile(scores: Scores, thresholds: Runs, confidence: float | None = 0.95) -> Profile:
    """Compute the share of runs that score more than each threshold, on average over tasks with equal weights, and its
    pointwise stratified bootstrap interval, infinite if a task has a single run, or with `confidence` None."""
    above = [np.asarray(runs, float) > np.asarray(thresholds, float)[:, None] for runs in scores]  # (thresholds, runs)

    def share(*tasks: np.ndarray, axis: int) -> Any:
        return np.mean([task.mean(axis=axis) for task in tasks], axis=0)

    low, high = stratified_bootstrap(above, share, confidence)
    return Profile(*np.broadcast_arrays(share(*above, axis=-1), low, high))


def stratified_bootstrap(
    scores: Sequence[Any], statistic: Callable[..., Any], confidence: float | None = 0.95, seed: int = 0
) -> tuple[Any, Any]:
    """Compute the percentile bootstrap interval of a statistic, with runs resampled within each task. The same scores
    and seed give the same interval.

    Args:
        scores: for each task an array whose last axis is that of the runs.
        statistic: called with these and `axis=-1`, and with resamples, which have further leading axes.
        confidence: of the interval; None for none.
        seed: of the resamples.

    Returns:
        (low, high); (-inf, inf) if a task has a single run, or there is no `confidence`.
    """
    samples = [np.asarray(runs, float) for runs in scores]
    if confidence is None or any(runs.shape[-1] < 2 for runs in samples):
        return UNKNOWN
    options: Any = {"n_resamples": RESAMPLES, "confidence_level": confidence, "rng": np.random.default_rng(seed)}
    found = scipy.stats.bootstrap(samples, statistic, method="percentile", vectorized=True, axis=-1, **options)
    return found.confidence_interval.low, found.confidence_interval.high


def _iqm(*scores: Runs, axis: int) -> Any:
    return scipy.stats.trim_mean(
        np.concatenate([np.asarray(runs, float) for runs in scores], axis=axis), 0.25, axis=axis
    )


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
