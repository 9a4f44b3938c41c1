"""Intervals against known numbers."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from floq.analysis.statistics import (
    UNKNOWN,
    area_under_curve,
    iqm,
    iqm_interval,
    mean_estimate,
    mean_interval,
    mean_over_tasks,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    sign_flip_p,
    stratified_bootstrap,
    wilson_interval,
)


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
    assert mean_interval([0.5]) == UNKNOWN
    assert mean_estimate([1.0, 2.0, 3.0]) == (2.0, low, high)
    assert mean_estimate([0.1 + 0.2, 0.3]) == (pytest.approx(0.3), *UNKNOWN)  # seeds that agree tell no spread


# --- pairs of runs ---


def test_the_mean_over_tasks_is_taken_for_each_seed_first():
    """Seeds 0, 1, 2 have means 1, 2, 3, though their scores differ by 20 between tasks."""
    tasks = [{0: 11.0, 1: 12.0, 2: 13.0}, {2: -7.0, 0: -9.0, 1: -8.0}]
    assert mean_over_tasks(tasks) == (2.0, *mean_interval([1.0, 2.0, 3.0]))


def test_seeds_that_lack_a_task_leave_the_interval_open():
    """Tasks weigh the same: (1 + 4) / 2."""
    assert mean_over_tasks([{0: 0.0, 1: 2.0}, {0: 4.0}]) == (2.5, *UNKNOWN)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12])
def test_sign_flips_against_all_of_them(count):
    """With ties and zeros among the differences, as rates of five episodes have."""
    differences = np.random.default_rng(count).integers(-2, 4, count) / 5
    means = [np.mean(differences * signs) for signs in itertools.product((1, -1), repeat=count)]
    as_far = np.abs(means) >= abs(np.mean(differences)) - 1e-12
    assert sign_flip_p(differences) == pytest.approx(np.mean(as_far))


def test_sign_flips_of_many_pairs_are_random_and_repeat():
    """Against the normal approximation: of 40 differences, half of which are 1 and half 0, the mean is 4.5 deviations
    from 0; of 1 and -1 alternating it is 0."""
    assert sign_flip_p([1.0, 0.0] * 20) < 1e-3
    assert sign_flip_p([1.0, -1.0] * 20) == 1
    noise = np.random.default_rng(0).normal(0.2, 1, 40)
    z = noise.sum() / np.sqrt(np.square(noise).sum())
    assert sign_flip_p(noise) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.02)
    assert sign_flip_p(noise) == sign_flip_p(noise)


def test_paired_differences_by_hand():
    """Seeds 0, 1 and 2 differ by (1 + 3) / 2, 1 and 3 (the second task has none of seed 1); seeds 3, 4 and 5 have no
    partner, the last since its score is NaN. All differences are positive: 2 of 8 signs are as extreme."""
    x = [{0: 2.0, 1: 5.0, 2: 4.0, 3: 9.0, 5: math.nan}, {0: 3.0, 2: 3.0}]
    y = [{2: 1.0, 1: 4.0, 0: 1.0, 5: 0.0}, {0: 0.0, 1: 7.0, 2: 0.0, 4: 1.0}]
    found = paired_difference(x, y)
    assert found.estimate == (2.0, *mean_interval([2.0, 1.0, 3.0]))
    assert found[1:] == (2 / 8, 3, 3)
    assert paired_difference(y, x).estimate.value == -2


def test_a_single_pair_has_no_interval_and_no_p():
    found = paired_difference([{0: 1.0, 1: 2.0}], [{0: 0.5, 2: 1.0}])
    assert (found.estimate, found.pairs, found.unpaired) == ((0.5, *UNKNOWN), 1, 2)
    assert math.isnan(found.p)
    none = paired_difference([{0: 1.0}], [{1: 1.0}])
    assert math.isnan(none.estimate.value)
    assert math.isnan(none.p)
    assert (none.pairs, none.unpaired) == (0, 2)
    same = paired_difference([{0: 1.0, 1: 2.0}], [{0: 1.0, 1: 2.0}])
    assert (same.estimate, same.p) == ((0.0, *UNKNOWN), 1)
    with pytest.raises(ValueError, match="zip"):
        paired_difference([{0: 1.0}], [])


# --- scores of several runs on several tasks ---


def test_iqm_by_hand():
    """Of eight numbers the middle four; of nine, where a quarter is two and a bit, the middle five."""
    assert iqm([[9.0, 1.0, 2.0, 3.0], [4.0, 100.0, -50.0, 5.0]]) == pytest.approx((2 + 3 + 4 + 5) / 4)
    assert iqm([[0.0, 0.0, 1.0], [2.0, 3.0, 4.0, 5.0, 9.0, 9.0]]) == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)
    assert iqm([[0.25]]) == 0.25
    for count in range(1, 20):
        runs = np.random.default_rng(count).normal(size=count)
        assert iqm([runs]) == pytest.approx(stats.trim_mean(runs, 0.25))


def test_the_bootstrap_against_all_resamples():
    """Two tasks of two and three runs: 4 x 27 equally probable resamples, whose quantiles are known."""
    scores = [[0.0, 1.0], [0.0, 2.0, 7.0]]

    def mean_of_means(*tasks, axis):
        return np.mean([runs.mean(axis=axis) for runs in tasks], axis=0)

    everything = [
        (np.mean(first) + np.mean(second)) / 2
        for first in itertools.product(scores[0], repeat=2)
        for second in itertools.product(scores[1], repeat=3)
    ]
    low, high = stratified_bootstrap(scores, mean_of_means, confidence=0.8)
    assert low == pytest.approx(np.quantile(everything, 0.1), abs=0.1)
    assert high == pytest.approx(np.quantile(everything, 0.9), abs=0.1)


def test_the_bootstrap_stays_within_tasks():
    """Runs that agree within each task leave nothing open, however far apart the tasks are."""
    assert iqm_interval([[0.0, 0.0], [1.0, 1.0, 1.0]]) == pytest.approx((2 / 3, 2 / 3))


def test_the_bootstrap_repeats_and_says_nothing_of_one_run():
    scores = [np.random.default_rng(0).uniform(size=9)]
    assert iqm_interval(scores) == iqm_interval(scores)
    mean = lambda runs, axis: runs.mean(axis=axis)  # noqa: E731
    assert stratified_bootstrap(scores, mean) != stratified_bootstrap(scores, mean, seed=1)
    assert iqm_interval([[0.1, 0.4], [0.9]]) == (-np.inf, np.inf)


def test_probability_of_improvement_by_hand():
    """Task one: of six pairs three are won and two tied, 4/6. Task two: all four are won."""
    x, y = [[1.0, 2.0, 3.0], [5.0, 6.0]], [[1.0, 3.0], [0.0, 1.0]]
    found = probability_of_improvement(x, y)
    first = (0.5 + 0 + 1 + 0 + 1 + 0.5) / 6
    assert found.value == pytest.approx((first + 1) / 2)
    assert found.low < found.value < found.high <= 1
    assert probability_of_improvement(y, x).value == pytest.approx(1 - found.value)
    assert probability_of_improvement([[1.0]], [[0.0, 2.0]]) == (0.5, *UNKNOWN)
    assert probability_of_improvement(x, y, None) == (found.value, *UNKNOWN)
    with pytest.raises(ValueError, match="2 and of 1 tasks"):
        probability_of_improvement(x, y[:1])


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 9).astype(float), rng.integers(0, 4, 7).astype(float)
    u = stats.mannwhitneyu(x, y, method="asymptotic").statistic
    assert probability_of_improvement([x], [y]).value == pytest.approx(u / 63)


def test_probability_of_improvement_resamples_both():
    """One of two runs against the same two: by all 16 resamples, 0 has probability 1/16, so has 1."""
    scores = [[0.0, 1.0]]
    assert probability_of_improvement(scores, scores, confidence=0.9)[1:] == (0.0, 1.0)
    assert probability_of_improvement(scores, scores, confidence=0.6)[1:] == (0.25, 0.75)


def test_performance_profile_by_hand():
    """Tasks weigh the same, though the second has more runs; a run at the threshold is not above it."""
    found = performance_profile([[0.0, 1.0], [0.5, 0.5, 0.5, 1.0]], [0.0, 0.5, 1.0])
    np.testing.assert_allclose(found.share, [(1 / 2 + 1) / 2, (1 / 2 + 1 / 4) / 2, 0])
    # Above 0: the first task's share is 0, 1/2 or 1 with probabilities 1/4, 1/2, 1/4, the second's always 1.
    np.testing.assert_allclose((found.low[0], found.high[0]), (0.5, 1.0))
    assert (found.low[2], found.high[2]) == (0, 0)
    alone = performance_profile([[0.3]], [0.2, 0.4])
    np.testing.assert_array_equal(alone.share, [1, 0])
    assert np.isneginf(alone.low).all()
    assert np.isposinf(alone.high).all()


def test_area_under_curve_by_hand():
    """Over unequal intervals: 0.5 on average over one step, 1 over three."""
    assert area_under_curve([0.0, 1.0, 4.0], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 3) / 4)
    assert area_under_curve([1000.0, 2000.0], [0.2, 0.4]) == pytest.approx(0.3)
    assert area_under_curve([7.0], [0.2]) == 0.2
    for steps, values in (([0.0, 0.0], [1.0, 1.0]), ([0.0, 1.0], [1.0]), ([], [])):
        with pytest.raises(ValueError, match="increasing steps"):
            area_under_curve(steps, values)
