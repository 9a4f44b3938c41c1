"""What a sweep writes of its runs: two tidy CSV files for each experiment."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from floq import durable
from floq.analysis import comparison
from floq.analysis.cost import Cost
from floq.analysis.statistics import area_under_curve
from floq.loggers import read_csv
from floq.run import Run
from floq.schedule import Schedule
from floq.sweep_plan import Entry

METRICS = {"success": "success", "episode_return": "episode.return", "episode_length": "episode.length"}
"""Columns of the tidy CSV, and what eval.csv calls them."""


def write_rows(entries: Sequence[Entry], folder: Path) -> None:
    """Write `NAME.csv`, a row for each evaluation, and `NAME-runs.csv`, a row for each run that has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluations: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for entry in entries:
        experiment = entry.experiment
        for run in filter(None, entry.finished):
            columns, seed = run.evaluations(), run.config.seed
            own = {"group": entry.group.name, "task": entry.task, "seed": seed}
            for number, step in enumerate(columns["step"]):
                row = {"experiment": experiment.name, "budget": experiment.budget.name, **own, "step": int(step)}
                metrics = {name: columns.get(f"evaluation/{theirs}") for name, theirs in METRICS.items()}
                evaluations.append(row | {name: x[number] if x else None for name, x in metrics.items()})
            runs.append(own | _run_row(run, columns, entry.cost, METRICS[comparison.SCORES[experiment.score].column]))
    name = entries[0].experiment.name
    _write(folder / f"{name}.csv", evaluations, ["experiment", "budget", "group", "task", "seed", "step", *METRICS])
    first = ["group", "task", "seed", *_RUN_COLUMNS]
    _write(folder / f"{name}-runs.csv", runs, list(dict.fromkeys([*first, *(key for row in runs for key in row)])))


_RUN_COLUMNS = (
    "final",
    "auc",
    "steps",
    "parameters",
    "critic_parameters",
    "update_gflop",
    "action_mflop",
    "updates_per_second",
)
_RUN_COLUMNS += ("runs_in_fleet", "seconds", "eval_episodes", "success_timing")


def _run_row(run: Run, columns: dict[str, list[float]], costs: Cost, score: str) -> dict[str, Any]:
    """What a run came to, and what its critic was like at the end. The first evaluation, of an agent that has not
    learned, is no part of the area."""
    scores = columns.get(f"evaluation/{score}", [math.nan] * len(columns["step"]))
    first = Schedule(run.config).first_step
    learned = [pair for pair in zip(columns["step"], scores, strict=True) if pair[0] > first]
    steps, values = zip(*(learned or zip(columns["step"], scores, strict=True)), strict=True)
    summary, log = run.summary, run.folder / "train.csv"
    critic = {
        name: x[-1] for name, x in (read_csv(log) if log.exists() else {}).items() if "validation/critic/" in name
    }
    return {
        "final": scores[-1],
        "auc": area_under_curve(steps, values),
        "parameters": costs.parameters,
        "critic_parameters": costs.critic_parameters,
        "update_gflop": costs.update_flops / 1e9,
        "action_mflop": costs.action_flops / 1e6,
        **{name: summary.get(name) for name in ("steps", "updates_per_second", "runs_in_fleet", "seconds")},
        **{name: summary.get(name) for name in ("eval_episodes", "success_timing")},
        **critic,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Atomically; what is missing or not a number is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    durable.replace(path, text.getvalue().encode())
