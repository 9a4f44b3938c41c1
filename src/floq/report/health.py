"""What a run's numbers say against it: it diverged, or its values cannot be."""

import math

from floq.report.runs import RunRecord

OUTSIDE = 0.01  # share of z outside the histogram's support, or of mass in its end bins, that is worth a word
MARGIN = 0.01  # by which a mean value may leave the possible range, as a share of the horizon 1 / (1 - discount)
UNIT_COSTS = ("pointmaze", "antmaze", "humanoidmaze", "antsoccer")  # each step costs 1 until the goal is reached


def complaints(run: RunRecord) -> list[str]:
    """What is wrong with a run, in a few words each; nothing for a healthy one."""
    found = list(run.problems)
    if run.diverged_at is not None:
        return [*found, f"diverged: no numbers from step {run.diverged_at:,} on"]
    low, high = value_range(run)
    value = run.last("training/critic/q")
    if value > high:
        found.append(f"Q is {value:.4g}, and no return is above 0")
    if value < low:
        found.append(f"Q is {value:.4g}, and no return is below {low:.4g}")
    outside = run.last("validation/critic/outside_histogram")
    if outside > OUTSIDE:
        found.append(f"{outside:.0%} of z outside the histogram's support")
    at_ends = run.last("validation/critic/mass_at_ends")
    if at_ends > OUTSIDE:
        found.append(f"{at_ends:.0%} of the histogram's mass at its ends")
    return found


def value_range(run: RunRecord) -> tuple[float, float]:
    """Between which numbers the mean of Q can lie, with a margin, as far as the task's id tells: rewards of OGBench's
    single tasks are costs, and in its mazes and antsoccer every step costs 1. Infinite where nothing is known."""
    discount = float(run.settings.get("agent.discount") or 0)
    if run.settings.get("dataset") or "-singletask" not in run.task or not 0 < discount < 1:
        return -math.inf, math.inf
    horizon = float(run.settings.get("agent.reward_scale") or 1) / (1 - discount)
    low = -horizon if run.task.startswith(UNIT_COSTS) else -math.inf
    return low - MARGIN * horizon, MARGIN * horizon
