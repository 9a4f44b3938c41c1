"""What the evaluations of a run come to, for people to read."""

import math
from collections.abc import Mapping

from floq.analysis.statistics import wilson_interval
from floq.config import Config
from floq.progress import Display
from floq.run import Run, protocol

HEADLINES = {"success": "success", "episode.return": "return", "initial_value": "policy's value"}
"""The metric that a run is judged by, the first that it has, and its name."""


def scores(evaluation: Mapping[str, float]) -> dict[str, float]:
    """The metrics of one evaluation, without their prefix; without success if the environment has no such flag."""
    found = {name.removeprefix("evaluation/"): x for name, x in evaluation.items() if name.startswith("evaluation/")}
    return {name: x for name, x in found.items() if not (name == "success" and math.isnan(x))}


def headline(evaluation: Mapping[str, float]) -> tuple[str, float]:
    """The name of the number that stands for an evaluation, and the number."""
    found = scores(evaluation)
    metric = next(name for name in HEADLINES if name in found)
    return HEADLINES[metric], found[metric]


def described(config: Config, evaluation: Mapping[str, float]) -> dict[str, str]:
    """An evaluation as the rows of a table."""
    found, count = scores(evaluation), config.eval_episodes
    if "initial_value" in found:
        return {
            "TD error": f"{found['td_error']:.4g}, mean over held-out transitions",
            "policy": f"worth {found['initial_value']:.4g} where held-out episodes start, in the critic's opinion",
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


def show_result(run: Run, display: Display) -> None:
    """Print a short table of how a finished run went."""
    summary, evaluations = run.summary, run.evaluations()
    speed = f"{summary['updates_per_second'] or math.nan:.0f} updates/s, {summary['seconds']:.0f} s in all"
    last = {name: column[-1] for name, column in evaluations.items()}
    display.table(run.config.task, described(run.config, last) | {"speed": speed})
    display.note(f"  pictures    {run.folder / 'plots'}")
    display.note(f"  run         {run.folder}")
