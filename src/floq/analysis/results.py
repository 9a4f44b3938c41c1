"""Results of evaluations as text and tables for the terminal."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from floq.analysis.statistics import mean_interval, wilson_interval
from floq.runs.config import Config
from floq.runs.run import Run, protocol
from floq.utils.progress import Display

HEADLINES = {"success": "success", "episode.return": "return", "initial_value": "policy's value"}
"""Primary metrics, of which a run uses the first that it has, and their names."""


def scores(evaluation: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of one evaluation without their prefix, and without success if the environment has no flag."""
    found = {name.removeprefix("evaluation/"): x for name, x in evaluation.items() if name.startswith("evaluation/")}
    return {name: x for name, x in found.items() if not (name == "success" and math.isnan(x))}


def primary_score(evaluation: Mapping[str, float]) -> tuple[str, float]:
    """Return the name and the value of an evaluation's primary metric."""
    found = scores(evaluation)
    metric = next(name for name in HEADLINES if name in found)
    return HEADLINES[metric], found[metric]


def summary_rows(config: Config, evaluation: Mapping[str, float]) -> dict[str, str]:
    """Describe an evaluation as the rows of a table."""
    found, count = scores(evaluation), config.eval_episodes
    if not found:
        return {"evaluation": "none, as --eval_interval=0 asks; floq eval makes one"}
    if "initial_value" in found:
        return {
            "TD error": f"{found['td_error']:.4g}, mean over held-out transitions",
            "policy": f"worth {found['initial_value']:.4g} where held-out episodes start, according to the critic",
            "data": f"earned {found['data_return']:.4g} from there, discounted",
            "protocol": f"{protocol(config)}, so nothing here is measured success",
        }
    rows = {}
    if "success" in found:
        successes = round(found["success"] * count)
        low, high = wilson_interval(successes, count)
        rows["success"] = f"{found['success']:.2f}, {successes} of {count}   95% interval [{low:.2f}, {high:.2f}]"
    return rows | {
        "return": f"{found['episode.return']:.4g} on average",
        "length": f"{found['episode.length']:.4g} steps on average",
        "protocol": protocol(config),
    }


def show_result(runs: Sequence[Run], display: Display) -> None:
    """Print a short table of the results of one fleet's finished runs."""
    first, summary = runs[0], runs[0].summary
    speed = f"{summary['updates_per_second'] or math.nan:.0f} updates/s, {summary['seconds']:.0f} s in all"
    last = [{name: column[-1] for name, column in run.evaluations().items()} for run in runs]
    if len(runs) == 1:
        display.table(first.config.task, summary_rows(first.config, last[0]) | {"speed": speed})
        display.note(f"  pictures    {first.folder / 'plots'}")
        display.note(f"  run         {first.folder}")
        return
    _show_fleet(runs, last, speed, display)
    for run in runs:
        display.note(f"  run         {run.folder}")


def _show_fleet(runs: Sequence[Run], last: Sequence[Mapping[str, float]], speed: str, display: Display) -> None:
    """Print the table of several runs: their scores by group, over seeds."""
    first, tasks = runs[0], ", ".join(dict.fromkeys(run.config.task for run in runs))
    if not any(last):
        rows = summary_rows(first.config, {}) | {"speed": f"{len(runs)} x {speed}"}
        display.table(f"{len(runs)} runs of {tasks}", rows)
        return
    groups: dict[str, list[float]] = {}
    for label, evaluation in zip(config_labels([run.config for run in runs]), last, strict=True):
        groups.setdefault(label, []).append(primary_score(evaluation)[1])
    name = primary_score(last[0])[0]
    rows = {label or name: _over_seeds(values) for label, values in groups.items()}
    title = f"{len(runs)} runs of {tasks}" + (f": {name}" if len(groups) > 1 else "")
    display.table(title, rows | {"protocol": protocol(first.config), "speed": f"{len(runs)} x {speed}"})


def _over_seeds(values: Sequence[float]) -> str:
    """Format the mean of one number over seeds, with its interval."""
    listed = " ".join(f"{value:.3g}" for value in values)
    if len(values) == 1:
        return listed
    low, high = mean_interval(values)
    return (
        f"{sum(values) / len(values):.3g} [{low:.3g}, {high:.3g}] (mean, 95% Student's, {len(values)} seeds: {listed})"
    )


def config_labels(configs: Sequence[Config]) -> list[str]:
    """Return for each configuration the settings, other than the seed, in which it differs from the others."""
    flat = [config.to_json() for config in configs]
    flat = [values | values.pop("agent") for values in flat]
    names = [name for name in flat[0] if name != "seed" and len({str(values[name]) for values in flat}) > 1]

    def shown(name: str, value: Any) -> str:
        if name != "env_name":
            return f"{name} {value}"
        return (re.findall(r"task\d+", value) or ["default task"])[0]

    return [", ".join(shown(name, values[name]) for name in names) for values in flat]
