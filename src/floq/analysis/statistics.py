"""Intervals for success rates: of one evaluation, and over seeds."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate: what this many episodes say about the policy's true rate."""
    interval = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds and its Student t interval: (mean, low, high). With one value the interval is infinite.

    A t interval ignores that rates end at 0 and 1; for three seeds that all reach 1.0 it has no width, which says that
    these seeds agree and not that every seed would.
    """
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return mean, -np.inf, np.inf
    half = float(stats.t.ppf((1 + confidence) / 2, len(array) - 1) * stats.sem(array))
    return mean, mean - half, mean + half
