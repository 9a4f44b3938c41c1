"""Health checks of a run: warnings during training, and the problems that reports list. No JAX in here."""

import math
from collections.abc import Mapping
from typing import Any

from floq.runs.record import RunRecord

MAX_OUTSIDE = 0.01  # share of z outside the histogram's support, or of mass in its end bins, above which to warn
MARGIN = 0.01  # by which a mean value may leave the possible range, as a share of the horizon 1 / (1 - discount)

# --- Warnings during training ---


def outside_range(value: float, low: float, high: float, margin: float) -> str | None:
    """Return a warning if a mean value is outside the range of returns, which is infinite if unknown; else None."""
    if low - margin <= value <= high + margin or math.isnan(value):
        return None
    return f"Q is {value:.4g}, and no return is {f'above {high:.4g}' if value > high else f'below {low:.4g}'}"


def outside_histogram(row: Mapping[str, float]) -> str | None:
    """Return a warning if a row of train.csv shows values beyond the histogram's support; else None."""
    outside = row.get("validation/critic/outside_histogram", math.nan)
    if outside > MAX_OUTSIDE:
        return f"{outside:.0%} of z outside the histogram's support"
    at_ends = row.get("validation/critic/mass_at_ends", math.nan)
    if at_ends > MAX_OUTSIDE:
        return f"{at_ends:.0%} of the histogram's mass at its ends"
    return None


def health_warnings(
    settings: Mapping[str, Any], row: Mapping[str, float], returns: tuple[float, float]
) -> dict[str, str]:
    """Return the warnings that a row of train.csv gives, by kind. `settings`: of the agent, flat; `returns`: lowest and
    highest possible discounted return, given the rewards."""
    low, high = returns
    found = {"histogram": outside_histogram(row)}
    if settings.get("q_agg") != "lcb" and not settings.get("alpha_critic") and not settings.get("entropy_backup"):
        found["range"] = outside_range(row["training/critic/q"], low, high, MARGIN * (high - low))
    return {kind: text for kind, text in found.items() if text is not None}


# --- Problems in reports ---

UNIT_COSTS = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")  # each step costs 1 until the goal is reached


def run_problems(run: RunRecord) -> list[str]:
    """Return a short description of each problem of a run; none for a healthy one."""
    found = list(run.problems)
    if run.diverged_at is not None:
        term = run.diverged.get("term", "update")
        return [*found, f"diverged at step {run.diverged_at:,}: the {term} was not finite"]
    low, high, margin = value_range(run)
    warnings = [outside_range(run.last("training/critic/q"), low, high, margin)]
    warnings.append(outside_histogram({name: run.last(name) for name in run.training}))
    if run.rewinds:
        warnings.append(f"went back to earlier weights {run.rewinds} times")
    return found + [warning for warning in warnings if warning is not None]


def value_range(run: RunRecord) -> tuple[float, float, float]:
    """Return the lowest and highest possible return, and the tolerance for the mean of Q, inferred from the task's id:
    rewards of OGBench's single tasks are costs, and in its mazes and antsoccer every step costs 1. Bounds are infinite
    where unknown."""
    discount = float(run.settings.get("agent.discount") or 0)
    if run.settings.get("dataset") or "-singletask" not in run.task or not 0 < discount < 1:
        return -math.inf, math.inf, 0.0
    horizon = float(run.settings.get("agent.reward_scale") or 1) / (1 - discount)
    low = -horizon if run.task.startswith(UNIT_COSTS) else -math.inf
    return low, 0.0, MARGIN * horizon
