"""Report as tidy CSV files, from which its runs can be read again."""

import csv
import io
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.analysis.health import run_problems
from floq.analysis.metrics import METRICS, area, last
from floq.analysis.report.scores import Report
from floq.runs.record import OF_CRITIC, RunRecord
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.untrusted import CSV_LIMIT, read_text

FORMULA_PREFIXES = tuple("=+-@")
"""First characters of a text that a spreadsheet would take for a formula."""
COSTS = ("parameters", "critic_parameters", "update_gflop", "action_mflop")
SPEEDS = ("updates_per_second", "env_steps_per_second", "runs_in_fleet")
"""Entries of a run's summary: what a sweep adds, and what it has."""


def run_rows(report: Report) -> list[dict[str, Any]]:
    """Make a row for each run: its score as `final` and `auc`, what it cost, all its settings, and the last metrics of
    its critic."""
    rows, metrics = [], {task.name: task.metric for task in report.tasks}
    for group in report.groups:
        for run in group.runs:
            row = _identity(group.name, run) | {
                "state": run.state,
                "counted": run.ends and run not in report.repeated,
                "diverged_at_step": run.diverged_at,
                "steps": run.step,
                "total_steps": run.total_steps,
                "final": last(run, metrics[run.task]),
                "auc": area(run, metrics[run.task]),
                **{_column(metric.column): last(run, metric) for metric in METRICS.values()},
                **{name: run.summary[name] for name in COSTS if name in run.summary},
                "seconds": run.seconds,
                **{name: run.summary.get(name) for name in SPEEDS},
                "protocol": run.records.get("protocol"),
                "health": "; ".join(run_problems(run)),
                "folder": str(run.folder),
            }
            critic = {name: run.last(name) for name in run.training if name.startswith(OF_CRITIC)}
            rows.append(row | run.settings | critic)
    return rows


def evaluation_rows(report: Report) -> list[dict[str, Any]]:
    """Make a row for each evaluation of each run, with all its metrics."""
    rows = []
    for group in report.groups:
        for run in group.runs:
            for step, *values in zip(*run.evaluations.values(), strict=True):
                metrics = dict(zip(map(_column, list(run.evaluations)[1:]), values, strict=True))
                rows.append(_identity(group.name, run) | {"step": int(step)} | metrics | {"folder": str(run.folder)})
    return rows


def _identity(group: str, run: RunRecord) -> dict[str, Any]:
    return {"group": group, "task": run.task, "seed": run.seed}


def _column(name: str) -> str:
    """Convert a metric's name to that of a column: `evaluation/episode.return` -> `episode_return`."""
    return name.split("/")[-1].replace(".", "_")


def write_csv(
    path: Path,
    rows: Sequence[dict[str, Any]],
    first: Iterable[str] = ("group", "task", "seed"),
    left_out: Container[str] = (),
) -> None:
    """Write rows atomically; missing values and NaN become empty cells. The columns `first` are there without rows."""
    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    columns = [name for name in names if name not in left_out]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_harmless, columns))
    for row in rows:
        values = (row.get(name) for name in columns)
        writer.writerow(_harmless("" if value is None or value != value else value) for value in values)
    files.replace(path, text.getvalue().encode())


def _harmless(value: Any) -> Any:
    """Prefix text that a spreadsheet would take for a formula with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA_PREFIXES else value


def read_tables(runs: Path, evaluations: Path) -> dict[str, list[RunRecord]]:
    """Read runs, by group, from the files that hold `run_rows` and `evaluation_rows`. Nothing else need be left of
    them; their settings are text, but for those that a report calculates with.

    Raises:
        UserError: a file cannot be read, or is damaged.
    """
    steps: dict[tuple[str, ...], list[dict[str, str]]] = {}
    found: dict[str, list[RunRecord]] = {}
    try:
        for row in _rows(evaluations):
            steps.setdefault((row["group"], row["task"], row["seed"]), []).append(row)
        for row in _rows(runs):
            record = _record(row, steps.get((row["group"], row["task"], row["seed"]), []))
            found.setdefault(row["group"], []).append(record)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{runs} or {evaluations.name} is damaged ({error!r}): run the sweep again") from error
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, CSV_LIMIT), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot read it ({error}): run the sweep first, or give another --out") from error
    return [{name: _without_prefix(cell) for name, cell in row.items()} for row in rows]


def _without_prefix(cell: str) -> str:
    return cell[1:] if cell[:1] == "'" and cell[1:2] in FORMULA_PREFIXES else cell


def _record(row: dict[str, str], evaluations: Sequence[dict[str, str]]) -> RunRecord:
    """Return the run of a row; one of an older file has neither its settings nor its protocol."""
    numbers = {"seed": row["seed"]} | {name: row.get(name) or "0" for name in ("offline_steps", "online_steps")}
    settings: dict[str, Any] = (
        {"agent.critic": "", "agent.actor": ""} | row | {"env_name": row["task"], "dataset": None}
    )
    settings |= {name: int(cell) for name, cell in numbers.items()}
    settings["eval_episodes"] = int(float(row.get("eval_episodes") or 0))
    protocol = row.get("protocol") or f"{row['eval_episodes']} episodes, success_timing={row['success_timing']}"
    metrics = {metric.column: _column(metric.column) for metric in METRICS.values()}
    columns = {"step": [float(one["step"]) for one in evaluations]}
    columns |= {
        name: [float(one[cell] or "nan") for one in evaluations if cell in one] for name, cell in metrics.items()
    }
    critic = {name: [float(cell)] for name, cell in row.items() if name.startswith(OF_CRITIC) and cell}
    return RunRecord(
        Path(),
        settings,
        {"protocol": protocol},
        summary={name: float(row[name]) for name in ("steps", "seconds", *COSTS, *SPEEDS) if row.get(name)},
        evaluations={name: np.array(column) for name, column in columns.items() if column},
        training={name: np.array(column) for name, column in ({"step": [float(row["steps"])]} | critic).items()},
    )
