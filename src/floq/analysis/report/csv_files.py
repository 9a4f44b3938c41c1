"""Report as tidy CSV files, from which its runs can be read again."""

import csv
import io
from collections import defaultdict
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
    judged_by = {task.name: task.metric for task in report.tasks}
    return [
        {
            **{"group": group.name, "task": run.task, "seed": run.seed, "state": run.state},
            "counted": run.ends and run not in report.repeated,
            "diverged_at_step": run.diverged_at,
            "steps": run.step,
            "total_steps": run.total_steps,
            "final": last(run, judged_by[run.task]),
            "auc": area(run, judged_by[run.task]),
            **{_column(metric.column): last(run, metric) for metric in METRICS.values()},
            **{name: run.summary[name] for name in COSTS if name in run.summary},
            "seconds": run.seconds,
            **{name: run.summary.get(name) for name in SPEEDS},
            "protocol": run.records.get("protocol"),
            "health": "; ".join(run_problems(run)),
            "folder": str(run.folder),
            **run.settings,
            **{name: run.last(name) for name in run.training if name.startswith(OF_CRITIC)},
        }
        for group in report.groups
        for run in group.runs
    ]


def evaluation_rows(report: Report) -> list[dict[str, Any]]:
    """Make a row for each evaluation of each run, with all its metrics."""
    return [
        {"group": group.name, "task": run.task, "seed": run.seed, "step": int(step)}
        | dict(zip(map(_column, list(run.evaluations)[1:]), values, strict=True))
        | {"folder": str(run.folder)}
        for group in report.groups
        for run in group.runs
        for step, *values in zip(*run.evaluations.values(), strict=True)
    ]


def _column(name: str) -> str:
    """Convert a metric's name to that of a column: `evaluation/episode.return` -> `episode_return`."""
    return name.split("/")[-1].replace(".", "_")


def write_csv(
    path: Path,
    rows: Sequence[dict[str, Any]],
    first: Iterable[str] = ("group", "task", "seed"),
    left_out: Container[str] = (),
) -> None:
    """Write rows atomically; missing values and NaN become empty cells, and text that a spreadsheet would take for a
    formula gets an apostrophe. The columns `first` are there without rows."""

    def cell(value: Any) -> Any:
        if value is None or value != value:
            return ""
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_PREFIXES) else value

    names = dict.fromkeys([*first, *(name for row in rows for name in row)])
    columns = [name for name in names if name not in left_out]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(cell, columns))
    writer.writerows([cell(row.get(name)) for name in columns] for row in rows)
    files.replace(path, text.getvalue().encode())


def read_tables(runs: Path, evaluations: Path) -> dict[str, list[RunRecord]]:
    """Read runs, by group, from the files that hold `run_rows` and `evaluation_rows`. Nothing else need be left of
    them; their settings are text, but for those that a report calculates with.

    Raises:
        UserError: a file cannot be read, or is damaged.
    """
    steps, found = defaultdict(list), defaultdict(list)
    try:
        for row in _rows(evaluations):
            steps[row["group"], row["task"], row["seed"]].append(row)
        for row in _rows(runs):
            found[row["group"]].append(_record(row, steps[row["group"], row["task"], row["seed"]]))
    except (AttributeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"{runs} or {evaluations.name} is damaged ({error!r}): run the sweep again") from error
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, CSV_LIMIT), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot read it ({error}): run the sweep first, or give another --out") from error
    escaped = tuple(f"'{prefix}" for prefix in FORMULA_PREFIXES)
    return [{name: x[1:] if x.startswith(escaped) else x for name, x in row.items()} for row in rows]


def _record(row: dict[str, str], evaluations: Sequence[dict[str, str]]) -> RunRecord:
    """Return the run of a row; one of an older file has neither its settings nor its protocol."""
    settings: dict[str, Any] = {"agent.critic": "", "agent.actor": ""} | row
    settings |= {name: int(row.get(name) or 0) for name in ("offline_steps", "online_steps")}
    settings |= {"env_name": row["task"], "dataset": None, "seed": int(row["seed"])}
    settings["eval_episodes"] = int(float(row.get("eval_episodes") or 0))
    protocol = row.get("protocol") or f"{row['eval_episodes']} episodes, success_timing={row['success_timing']}"
    columns = {"step": [float(one["step"]) for one in evaluations]}
    for metric in METRICS.values():
        name = _column(metric.column)
        columns[metric.column] = [float(one[name] or "nan") for one in evaluations if name in one]
    critic = {name: [float(cell)] for name, cell in row.items() if name.startswith(OF_CRITIC) and cell}
    if old := critic.get(f"{OF_CRITIC}td_error"):  # absolute in older files, which have no abs_td_error
        critic.setdefault(f"{OF_CRITIC}abs_td_error", old)
    return RunRecord(
        Path(),
        settings,
        {"protocol": protocol},
        summary={name: float(row[name]) for name in ("steps", "seconds", *COSTS, *SPEEDS) if row.get(name)},
        evaluations={name: np.array(column) for name, column in columns.items() if column},
        training={name: np.array(column) for name, column in ({"step": [float(row["steps"])]} | critic).items()},
    )
