"""Results of evaluations as text and tables for the terminal."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from floq.analysis.report.groups import group_runs
from floq.analysis.report.scores import assemble
from floq.analysis.report.tables import short_task, with_interval
from floq.analysis.statistics import wilson_interval
from floq.runs.config import Config
from floq.runs.record import RunRecord, flat_settings, read_runs
from floq.runs.run import Run, protocol
from floq.utils.progress import Display


def scores(evaluation: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of one evaluation without their prefix, and without success if the environment has no flag."""
    found = {name.removeprefix("evaluation/"): x for name, x in evaluation.items() if name.startswith("evaluation/")}
    return {name: x for name, x in found.items() if not (name == "success" and math.isnan(x))}


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
            "protocol": f"{protocol(config)}, so nothing here is measured success; floq ope RUN_DIR knows more",
        }
    rows = {}
    if "success" in found:
        successes = round(found["success"] * count)
        low, high = wilson_interval(successes, count)
        rows["success"] = f"{found['success']:.2f}, {successes} of {count}   95% interval [{low:.2f}, {high:.2f}]"
    if "episode.normalized_return" in found and config.score_range:
        low, high = config.score_range
        rows["score"] = f"{found['episode.normalized_return']:.1f}, 0 for a return of {low:.4g} and 100 for {high:.4g}"
    return rows | {
        "return": f"{found['episode.return']:.4g} on average",
        "length": f"{found['episode.length']:.4g} steps on average",
        "protocol": protocol(config),
    }


def show_result(runs: Sequence[Run], display: Display) -> None:
    """Print a short table of the results of one fleet's finished runs."""
    first, summary = runs[0], runs[0].summary
    speed = f"{summary['updates_per_second'] or math.nan:.0f} updates/s, {summary['seconds']:.0f} s in all"
    if len(runs) == 1:
        rows = summary_rows(first.config, {name: column[-1] for name, column in first.evaluations().items()})
        display.table(first.config.task, rows | {"speed": speed})
        display.note(f"  pictures    {first.folder / 'plots'}")
    else:
        rows = _group_rows(runs)
        rows = rows | {"protocol": protocol(first.config)} if rows else summary_rows(first.config, {})
        tasks = ", ".join(dict.fromkeys(run.config.task for run in runs))
        display.table(f"{len(runs)} runs of {tasks}", rows | {"speed": f"{len(runs)} x {speed}"})
    for run in runs:
        display.note(f"  run         {run.folder}")


def _group_rows(runs: Sequence[Run]) -> dict[str, str]:
    """Describe the scores of several runs as the rows of a table, one for each group and task."""
    report, rows = assemble(group_runs(read_runs(run.folder for run in runs)[0])), {}
    for task in report.tasks:
        for name, cell in task.cells.items():
            if not cell.runs:
                continue
            label = ", ".join(_labels(name, task.name, len(report.groups), len(report.tasks)))
            over = f", 95% over {cell.over}" if cell.over != "nothing" else ""
            seeds = " ".join(map(task.metric.shown, cell.values))
            mean = with_interval(cell.estimate, task.metric.shown)
            rows[label or task.metric.short] = f"{mean} ({task.metric.short}{over}; seeds: {seeds})"
    return rows


def config_labels(configs: Sequence[Config]) -> list[str]:
    """Return for each configuration the name of its group and its task, as far as these differ; else an empty text."""
    runs = [RunRecord(Path(), flat_settings(config.to_json())) for config in configs]
    groups, tasks = group_runs(runs), {run.task for run in runs}
    names = {run: group.name for group in groups for run in group.runs}
    return [", ".join(_labels(names[run], run.task, len(groups), len(tasks))) for run in runs]


def _labels(group: str, task: str, groups: int, tasks: int) -> list[str]:
    return [group] * (groups > 1) + [short_task(task)] * (tasks > 1)
