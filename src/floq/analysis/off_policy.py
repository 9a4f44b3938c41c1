"""The result of an off-policy evaluation: estimates of the values of policies, intervals, what stands beside them, and
warnings of what an estimate cannot show.

Each seed learns from its own bootstrap resample of the episodes. The spread over seeds is therefore the standard error
of one estimate, and not that of the mean: all seeds share the episodes, whose sampling error does not average out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from floq.analysis.health import MARGIN, outside_range
from floq.analysis.statistics import MIN_RESAMPLES, Estimate, bootstrap_estimate
from floq.utils.progress import Display

NEIGHBOURS = 16  # states whose actions a policy's action is compared with
MAX_FAR = 0.25  # share of far actions above which to warn; the data's own have 0.05
PRECISE = 0.01  # share of the range of returns that the standard error of a measured return may have
NEAR = 0.05  # root mean square difference of actions in [-1, 1] that is never far
FALL = 0.05  # share of the loss by which its last third lies below the second, above which to warn

# --- Measured returns ---


def standard_error(values: Sequence[float] | np.ndarray) -> float:
    """Compute the standard error of the mean of independent values; infinite for a single one."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


def rank_correlation(estimates: Sequence[float], truths: Float[np.ndarray, "policies starts"]) -> float | None:
    """Compute Kendall's rank correlation of estimates and measured returns over the pairs of policies that the measured
    returns tell apart: by at least two standard errors of their difference over the same starts. None without such a
    pair."""
    agree = []
    for one, other in combinations(range(len(estimates)), 2):
        difference = truths[one] - truths[other]
        if abs(difference.mean()) >= 2 * standard_error(difference) and difference.any():
            agree.append(np.sign(difference.mean()) * np.sign(estimates[one] - estimates[other]))
    return float(np.mean(agree)) if agree else None


# --- The result ---


@dataclass(frozen=True)
class PolicyValue:
    """The evaluation of one policy, in units of its discounted return.

    `seeds`: the estimate of each. `data_return`: what the data earned from where its episodes start; what is cut off is
    worth what the evaluation's critic says. `training_critic`: the value by the critic that the policy was trained
    with, if there is one. `td_error`: on held-out data. `far_actions`: see that function. `truth`: the measured return
    from each start, if it was measured.
    """

    policy: str
    seeds: tuple[float, ...]
    data_return: float
    training_critic: float | None
    td_error: float
    far_actions: float
    warnings: tuple[str, ...] = ()
    truth: tuple[float, ...] | None = None

    @property
    def estimate(self) -> Estimate:
        """The value of the policy and its 95% interval."""
        return bootstrap_estimate(self.seeds)


@dataclass(frozen=True)
class OffPolicyEvaluation:
    """The evaluation of policies on the same data with the same seeds. `starts`: where values are meant, data or env.
    `return_range`: of the discounted returns that the rewards of the data allow."""

    discount: float
    starts: str
    return_range: tuple[float, float]
    policies: tuple[PolicyValue, ...]

    @property
    def best(self) -> PolicyValue:
        """The policy with the highest estimate."""
        return max(self.policies, key=lambda policy: policy.estimate.value)

    def difference(self, policy: PolicyValue) -> Estimate:
        """Return how much better the policy is than the best, and the 95% interval, from differences of each seed."""
        return bootstrap_estimate(np.subtract(policy.seeds, self.best.seeds))

    @property
    def rank_correlation(self) -> float | None:
        """Kendall's rank correlation with the measured returns, see `rank_correlation`."""
        truths = [policy.truth for policy in self.policies if policy.truth is not None]
        values = [policy.estimate.value for policy in self.policies]
        return rank_correlation(values, np.array(truths)) if len(truths) == len(values) else None

    @property
    def regret(self) -> float | None:
        """How much less the policy of the highest estimate earned than the best of them (regret@1)."""
        means = [np.mean(policy.truth) for policy in self.policies if policy.truth is not None]
        return float(max(means) - np.mean(self.best.truth)) if len(means) > 1 and self.best.truth else None

    @property
    def imprecision(self) -> float:
        """The largest standard error of a measured return, as a share of the range; 0 where none was measured."""
        low, high = self.return_range
        errors = [standard_error(policy.truth) for policy in self.policies if policy.truth is not None]
        return max(errors, default=0.0) / (high - low or 1.0)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each policy, as in `ope.csv`; numbers that are not known are None."""
        return [self._row(policy) for policy in self.policies]

    def _row(self, policy: PolicyValue) -> dict[str, Any]:
        value, low, high = policy.estimate
        row: dict[str, Any] = {"policy": policy.policy, "estimate": value, "low": low, "high": high}
        if len(self.policies) > 1:
            row |= dict(zip(("difference", "difference_low", "difference_high"), self.difference(policy), strict=True))
        row |= {"data_return": policy.data_return, "training_critic": policy.training_critic}
        row |= {"td_error": policy.td_error, "far_actions": policy.far_actions}
        if policy.truth is not None:
            measured = float(np.mean(policy.truth))
            row |= {"truth": measured, "truth_error": standard_error(policy.truth), "error": value - measured}
        row |= {"warnings": "; ".join(policy.warnings)}
        return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the content of `ope.json`."""
        policies = [
            row | {"seeds": list(policy.seeds), "warnings": list(policy.warnings)}
            for row, policy in zip(self.rows(), self.policies, strict=True)
        ]
        found = {"discount": self.discount, "starts": self.starts, "return_range": list(self.return_range)}
        return found | {
            "policies": policies,
            "rank_correlation": self.rank_correlation,
            "regret": self.regret,
        }

    @property
    def short_names(self) -> list[str]:
        """The names of the policies; only the steps, if all are checkpoints of one run."""
        parts = [policy.policy.rpartition("_") for policy in self.policies]
        same = len(parts) > 1 and len({run for run, *_ in parts}) == 1
        return [step if same else policy.policy for (*_, step), policy in zip(parts, self.policies, strict=True)]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of the table for the terminal, the best policy first."""
        header = ["policy", "estimate (95%)", "to the best", "measured", "data", "own critic", "TD error"]
        rows, pairs = [], zip(self.short_names, self.policies, strict=True)
        for name, policy in sorted(pairs, key=lambda pair: -pair[1].estimate.value):
            difference = "" if policy is self.best else _plus_minus(self.difference(policy))
            truth = policy.truth and f"{np.mean(policy.truth):.3g} ± {standard_error(policy.truth):.1g}"
            others = (policy.data_return, policy.training_critic, policy.td_error)
            known = ["" if x is None else f"{x:.3g}" for x in others]
            rows.append([name, _plus_minus(policy.estimate), difference, truth or "", *known])
        kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
        return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _plus_minus(estimate: Estimate) -> str:
    """Format a symmetric interval as `-88.1 ± 1.5`; only the value where it is not known."""
    half = estimate.high - estimate.value
    return f"{estimate.value:.3g} ± {half:.2g}" if math.isfinite(half) else f"{estimate.value:.3g}"


def show_evaluation(result: OffPolicyEvaluation, display: Display) -> None:
    """Print the table of an evaluation, and what to bear in mind."""
    whose = "the data's" if result.starts == "data" else "the environment's"
    display.columns(
        f"discounted return from where {whose} episodes start, discount {result.discount:g}", *result.table()
    )
    for name, policy in zip(result.short_names, result.policies, strict=True):
        for warning in policy.warnings:
            display.note(f"warning {name}: {warning}")
    if len(result.policies[0].seeds) < MIN_RESAMPLES:
        display.note(f"note    no intervals: they need at least {MIN_RESAMPLES} --seeds")
    if (most := result.imprecision) > PRECISE:
        display.note(
            f"note    the measured returns have standard errors of up to {most:.1%} of the range: more --truth"
        )
    if result.rank_correlation is not None:
        display.note(
            f"  ranks       {result.rank_correlation:+.2f} (Kendall) for policies whose returns differ clearly"
        )
    if result.regret is not None:
        display.note(
            f"  regret      {result.regret:.4g}: the policy of the highest estimate, less than the best of them"
        )


# --- Warnings ---


def far_actions(
    states: Float[np.ndarray, "n obs"], actions: Float[np.ndarray, "n act"], of_policy: Float[np.ndarray, "n act"]
) -> float:
    """Return the share of a policy's actions that lie far from the data: farther from the nearest action in the
    `NEIGHBOURS` nearest states than 95% of the data's own actions do, and more than `NEAR`.

    Args:
        states: of transitions of the data; distances are in standard deviations.
        actions: of these transitions.
        of_policy: an action of the policy in each of these states.
    """
    spread = states.std(axis=0)
    scaled = (states - states.mean(axis=0)) / np.where(spread < 1e-6, 1.0, spread)
    count = min(NEIGHBOURS + 1, len(states))
    near = KDTree(scaled).query(scaled, k=count)[1].reshape(len(states), count)
    others = near != np.arange(len(states))[:, None]  # a state is its own neighbour

    def distances(chosen: np.ndarray) -> np.ndarray:
        apart = np.sqrt(np.mean(np.square(chosen[:, None] - actions[near]), axis=-1))
        return np.where(others, apart, np.inf).min(axis=1)

    limit = max(float(np.quantile(distances(actions), 0.95)), NEAR)
    return float(np.mean(distances(of_policy) > limit))


def still_falls(losses: Float[np.ndarray, "seeds rows"]) -> bool:
    """Return whether the mean loss over seeds still falls: in the last third of the rows it lies below the second third
    by more than `FALL` of it, and by more than two standard errors."""
    curve = losses.mean(axis=0)
    third = len(curve) // 3
    if third < 2:
        return False
    before, last = curve[-2 * third : -third], curve[-third:]
    fall, noise = before.mean() - last.mean(), math.hypot(standard_error(before), standard_error(last))
    return bool(fall > max(FALL * abs(before.mean()), 2 * noise))


def warnings_of(
    value: float,
    far: float,
    losses: Float[np.ndarray, "seeds rows"],
    return_range: tuple[float, float],
    updates: int,
    enough: int,
) -> tuple[str, ...]:
    """Return the warnings about the estimate `value` of a policy of whose actions the share `far` is far from the data,
    made with so many updates where `enough` let it forget where it began."""
    low, high = return_range
    found = [outside_range(value, low, high, MARGIN * (high - low))]
    if far > MAX_FAR:
        found.append(f"{far:.0%} of the policy's actions are far from the data's: their values are extrapolated")
    if still_falls(losses):
        found.append("the loss still falls: give more --offline_steps")
    if updates < enough:
        found.append(f"{updates:,} updates are fewer than 5 / (tau (1 - discount)) = {enough:,}: too few to converge")
    return tuple(warning for warning in found if warning is not None)
