"""Early signs that values go wrong: what training warns of, and reports list. No JAX in here."""

import math
from collections.abc import Mapping
from typing import Any

from floq.analysis.report.runs import RunRecord

OUTSIDE = 0.01  # share of z outside the histogram's support, or of mass in its end bins, that is worth a word
MARGIN = 0.01  # by which a mean value may leave the possible range, as a share of the horizon 1 / (1 - discount)


def outside_range(value: float, low: float, high: float, margin: float) -> str | None:
    """What is wrong with a mean value where returns lie from `low` to `high`, infinite if unknown; None if nothing."""
    if value > high + margin:
        return f"Q is {value:.4g}, and no return is above {high:.4g}"
    if value < low - margin:
        return f"Q is {value:.4g}, and no return is below {low:.4g}"
    return None


def outside_histogram(row: Mapping[str, float]) -> str | None:
    """What a row of train.csv says of the histogram's support, if it is left; None otherwise."""
    outside = row.get("validation/critic/outside_histogram", math.nan)
    if outside > OUTSIDE:
        return f"{outside:.0%} of z outside the histogram's support"
    at_ends = row.get("validation/critic/mass_at_ends", math.nan)
    if at_ends > OUTSIDE:
        return f"{at_ends:.0%} of the histogram's mass at its ends"
    return None


def health_warnings(
    settings: Mapping[str, Any], row: Mapping[str, float], returns: tuple[float, float]
) -> dict[str, str]:
    """What a row of train.csv says against a run, by the kind of sign.

    Args:
        settings: of its agent, side by side.
        row: the row, with all of its columns.
        returns: between which numbers discounted returns lie, given the rewards.
    """
    low, high = returns
    found = {"histogram": outside_histogram(row)}
    if settings.get("q_agg") != "lcb" and not settings.get("alpha_critic") and not settings.get("entropy_backup"):
        found["range"] = outside_range(row["training/critic/q"], low, high, MARGIN * (high - low))
    return {sign: what for sign, what in found.items() if what is not None}


# --- What a run's numbers say against it ---

UNIT_COSTS = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")  # each step costs 1 until the goal is reached


def complaints(run: RunRecord) -> list[str]:
    """What is wrong with a run, in a few words each; nothing for a healthy one."""
    found = list(run.problems)
    if run.diverged_at is not None:
        why = f"the {run.diverged['term']} was not finite" if run.diverged else "no numbers from there on"
        return [*found, f"diverged at step {run.diverged_at:,}: {why}"]
    low, high, margin = value_range(run)
    signs = [outside_range(run.last("training/critic/q"), low, high, margin)]
    signs.append(outside_histogram({name: run.last(name) for name in run.training}))
    if run.rewinds:
        signs.append(f"went back to earlier weights {run.rewinds} times")
    return found + [sign for sign in signs if sign is not None]


def value_range(run: RunRecord) -> tuple[float, float, float]:
    """Between which numbers returns lie, and by how much the mean of Q may leave them, as far as the task's id tells:
    rewards of OGBench's single tasks are costs, and in its mazes and antsoccer every step costs 1. Infinite where
    nothing is known."""
    discount = float(run.settings.get("agent.discount") or 0)
    if run.settings.get("dataset") or "-singletask" not in run.task or not 0 < discount < 1:
        return -math.inf, math.inf, 0.0
    horizon = float(run.settings.get("agent.reward_scale") or 1) / (1 - discount)
    low = -horizon if run.task.startswith(UNIT_COSTS) else -math.inf
    return low, 0.0, MARGIN * horizon
