"""Report as files for papers and scripts: Markdown, and tidy CSV."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from floq.analysis.health import run_problems
from floq.analysis.metrics import METRICS, last
from floq.analysis.report import tables
from floq.analysis.report.runs import RunRecord
from floq.analysis.report.scores import Report
from floq.analysis.report.tables import Table, link
from floq.utils import files

FORMULA_PREFIXES = tuple("=+-@")
"""First characters of a text that a spreadsheet would take for a formula."""


def markdown(report: Report, folder: Path) -> str:
    """Format the tables of the report in Markdown; links to run folders are relative to `folder`."""
    sections: list[tuple[str | None, Table | None]] = [("What was run", tables.overview(report))]
    for metric in METRICS:
        tasks = [task for task in report.tasks if task.metric is metric]
        if tasks:
            found = tables.results(report, tasks)
            sections += [(metric.name.capitalize(), found[0]), *((None, other) for other in found[1:])]
    sections += [
        ("Beside published numbers", tables.beside_published(report)),
        ("Over all tasks", tables.aggregates(report)),
        ("Probability of improvement", tables.improvements(report)),
        ("Cost", tables.costs(report)),
        ("Health", tables.health(report)),
        ("Settings in which groups differ", tables.settings_table(report)),
        ("Runs", tables.runs(report)),
    ]
    return "\n".join(
        (f"## {title}\n\n" if title else "") + _markdown(table, folder)
        for title, table in sections
        if table is not None
    )


def _markdown(table: Table, folder: Path) -> str:
    lines = [
        f"| {' | '.join(map(_escaped, table.header))} |",
        "|---|" + ("---:|" if table.numbers else "---|") * (len(table.header) - 1),
    ]
    for row in table.rows:
        cells = [_escaped(cell.text) for cell in row]
        cells = [
            f"[{text}]({link(cell.folder, folder)})" if cell.folder else text
            for text, cell in zip(cells, row, strict=True)
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"{_escaped(note)}\n" for note in table.notes)])


def _escaped(text: str) -> str:
    """Escape Markdown, so that a name cannot end its cell, and the star of an interval is not taken for emphasis."""
    for character in "\\|*_<>[]`":
        text = text.replace(character, f"\\{character}")
    return text


def run_rows(report: Report) -> list[dict[str, Any]]:
    """Make a row for each run, with all its settings."""
    rows = []
    for group in report.groups:
        for run in group.runs:
            row = _identity(group.name, run) | {
                "state": run.state,
                "counted": run.ends and run not in report.repeated,
                "diverged_at_step": run.diverged_at,
                "steps": run.step,
                "total_steps": run.total_steps,
                **{_column(metric.column): last(run, metric) for metric in METRICS},
                "seconds": run.seconds,
                **{
                    name: run.summary.get(name)
                    for name in ("updates_per_second", "env_steps_per_second", "runs_in_fleet")
                },
                "health": "; ".join(run_problems(run)),
                "folder": str(run.folder),
            }
            rows.append(row | run.settings)
    return rows


def evaluation_rows(report: Report) -> list[dict[str, Any]]:
    """Make a row for each evaluation of each run, with all its metrics."""
    rows = []
    for group in report.groups:
        for run in group.runs:
            names = {name: _column(name) for name in run.evaluations if name != "step"}
            for number, step in enumerate(run.evaluations.get("step", ())):
                metrics = {short: run.evaluations[name][number] for name, short in names.items()}
                rows.append(_identity(group.name, run) | {"step": int(step)} | metrics | {"folder": str(run.folder)})
    return rows


def _identity(group: str, run: RunRecord) -> dict[str, Any]:
    return {"group": group, "task": run.task, "seed": run.seed}


def _column(name: str) -> str:
    """Convert a metric's name to that of a column: `evaluation/episode.return` -> `episode_return`."""
    return name.split("/")[-1].replace(".", "_")


def write_csv(path: Path, rows: Sequence[dict[str, Any]], first: Iterable[str] = ("group", "task", "seed")) -> None:
    """Write rows atomically; missing values and NaN become empty cells."""
    columns = list(dict.fromkeys([*first, *(name for row in rows for name in row)]))
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
