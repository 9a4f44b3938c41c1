"""What a run's numbers say against it: it diverged, or its values cannot be."""

import math

from floq.report.runs import RunRecord
from floq.signs import MARGIN, outside_histogram, outside_range

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
