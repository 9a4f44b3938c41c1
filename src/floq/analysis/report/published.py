"""Published success rates, for comparison: means over the five tasks of an environment and three seeds, in percent.
They are second-hand, from notes on the papers, and have not been reproduced independently."""

from collections.abc import Sequence

from floq.runs.record import RunRecord

METHODS = ("ReBRAC", "FQL, 1M steps", "FQL, 2M steps", "floq, default", "floq, best", "best by anyone")
TASKS = 5
SEEDS = 3
EPISODES = 50
PROTOCOL = f"OGBench, mean of {TASKS} tasks, {SEEDS} seeds"

SUCCESS: dict[str, tuple[str, str, str, str, str, str]] = {
    "antmaze-large-navigate": ("81", "79", "83", "91", "91", "99 (VINE)"),
    "antmaze-giant-navigate": ("26", "22", "27", "36", "51", "76 (VINE)"),
    "humanoidmaze-medium-navigate": ("22", "57", "69", "82", "82", "96 (GFP)"),
    "humanoidmaze-large-navigate": ("2", "9", "16", "28", "28", "46 (VINE)"),
    "antsoccer-arena-navigate": ("", "", "", "~65 (inferred)", "~65", "62 (DeFlow)"),
    "cube-single-play": ("", "96", "", "~98 (inferred)", "~98", "97 (DIPOLE)"),
    "cube-double-play": ("12", "29", "25", "47", "47", "74 (VINE)"),
    "scene-play": ("41", "56", "", "58", "58", "60 (DIPOLE)"),
    "puzzle-3x3-play": ("21", "30", "29", "37", "37", "100 (FAN, FAC)"),
    "puzzle-4x4-play": ("14", "17", "9", "21", "28", "78 (MAC, model-based); 45 (VGF)"),
}
"""By environment family, in the order of METHODS; empty where unknown."""


def comparable(runs: Sequence[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Select those of a family's finished runs that are comparable to its published numbers, with reasons why others
    are not: runs need the benchmark's own data, no online phase, and success as published, read after a step."""
    kept, reasons = [], []
    for run in runs:
        if run.settings.get("dataset"):
            reasons.append("other data than the benchmark's")
        elif run.settings["online_steps"]:
            reasons.append("an online phase")
        elif run.settings.get("success_timing") != "post":
            reasons.append(f"success_timing={run.settings.get('success_timing')}")
        else:
            kept.append(run)
    return kept, list(dict.fromkeys(reasons))


def protocol_differences(runs: Sequence[RunRecord]) -> list[str]:
    """List the differences of comparable runs from the published protocol, to be shown beside their numbers."""
    found = []
    tasks = {run.task for run in runs}
    if len(tasks) != TASKS:
        found.append(f"{len(tasks)} of {TASKS} tasks")
    seeds = {sum(run.task == task for run in runs) for task in tasks}
    if seeds != {SEEDS}:
        found.append(f"{_range(seeds)} seeds")
    if (episodes := {run.settings.get("eval_episodes") or 0 for run in runs}) != {EPISODES}:
        found.append(f"{_range(episodes)} episodes instead of {EPISODES}")
    if (steps := {run.total_steps for run in runs}) - {1_000_000, 2_000_000}:
        found.append(f"{_range(steps)} gradient steps")
    data = {str(run.records.get("data", {}).get("provenance", "")) for run in runs}
    if any(" of the published " in text for text in data):
        found.append("a part of the data, collected here")
    elif any("collected here" in text for text in data):
        found.append("data collected here")
    return found


def _range(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
