"""Intervals against known numbers."""

import numpy as np
import pytest

from floq.analysis.statistics import mean_interval, wilson_interval


def test_wilson_interval_of_45_in_50():
    """The textbook formula, computed here: centre (p + z^2/2n) / (1 + z^2/n)."""
    p, n, z = 0.9, 50, 1.959964
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert wilson_interval(45, 50) == pytest.approx((centre - half, centre + half), abs=1e-6)


def test_wilson_interval_stays_in_the_unit_interval_and_has_width_at_its_ends():
    low, high = wilson_interval(50, 50)
    assert 0.9 < low < 0.95
    assert high == pytest.approx(1.0)
    assert wilson_interval(0, 50)[1] == pytest.approx(1 - low)


def test_mean_interval_by_hand():
    """Mean 2, standard error 1 / sqrt(3), Student's quantile of two degrees of freedom 4.3027."""
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5)
    assert mean_interval([0.5]) == (-float("inf"), float("inf"))
