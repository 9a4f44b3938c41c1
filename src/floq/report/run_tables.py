"""The tables of the runs themselves: what was run, what it cost, what is wrong, in which settings groups differ."""

import math
from collections.abc import Sequence

import numpy as np

from floq.report.groups import short_count
from floq.report.health import complaints
from floq.report.metrics import last
from floq.report.scores import Report
from floq.report.tables import Table, Text, listed, short_task, table


def overview(report: Report) -> Table:
    """What was run, line by line: names and values."""
    runs = report.runs
    versions = sorted({f"{name} {x}" for run in runs for name, x in run.records.get("versions", {}).items()})
    seeds = sorted({run.seed for run in runs})
    steps = sorted({(run.settings["offline_steps"], run.settings["online_steps"]) for run in runs})
    rows = {
        "runs": ", ".join(f"{count} {state}" for state, count in report.state_counts.items()),
        "tasks": listed([task.name for task in report.tasks]),
        "critics": listed(sorted({run.settings["agent.critic"] for run in runs})),
        "actors": listed(sorted({run.settings["agent.actor"] for run in runs})),
        "seeds": listed(list(map(str, seeds)), 20),
        "steps": "; ".join(_phases(*both) for both in steps),
        "protocol": "; ".join(sorted({str(run.records.get("protocol", "not recorded")) for run in runs})),
        "data": listed(
            sorted({str(run.records.get("data", {}).get("provenance", "not recorded")) for run in runs}), 6, "; "
        ),
        "versions": ", ".join(versions),
    }
    return table(("", ""), [(name, text) for name, text in rows.items()], numbers=False)


def _phases(offline: int, online: int) -> str:
    parts = [f"{short_count(offline)} gradient steps offline"] if offline else []
    return " then ".join(parts + ([f"{short_count(online)} environment steps online"] if online else []))


def costs(report: Report) -> Table:
    """What updates cost, and how long runs took."""
    rows = []
    for group in report.groups:
        ended = [run for run in group.runs if run.ends]
        rates, steps, fleets = (
            [run.told(name) for run in ended]
            for name in ("updates_per_second", "env_steps_per_second", "runs_in_fleet")
        )
        row = [group.name, _range([1000 / rate for rate in rates if rate > 0]), _range(rates), _range(steps)]
        row += [_range(fleets)]
        row += [_duration(np.nanmedian(known)) if (known := _known([run.seconds for run in ended])) else ""]
        rows.append([*row, str(len(ended))])
    header = ["group", "ms per update", "updates/s", "environment steps/s", "runs in fleet", "time of a run", "runs"]
    if not any(row[3] for row in rows):
        header, rows = header[:3] + header[4:], [row[:3] + row[4:] for row in rows]
    notes = [
        "Median over the runs that have ended, and from the least to the most. Updates of a run in a fleet are made "
        "beside those of the others, so a fleet of n makes n times as many. Compare only runs of one machine."
    ]
    return table(header, rows, notes)


def health(report: Report) -> Table | None:
    """The runs that have something against them; None if none has."""
    rows: list[Sequence[Text | str]] = [
        (Text(str(d.folder), folder=str(d.folder)), "", d.reason) for d in report.damaged
    ]
    for group in report.groups:
        for run in group.runs:
            found = complaints(run)
            if found:
                rows.append(
                    (
                        Text(f"{short_task(run.task)}, seed {run.seed}", folder=str(run.folder)),
                        group.name,
                        "; ".join(found),
                    )
                )
    return table(("run", "group", "what is wrong"), rows, numbers=False) if rows else None


def differences(report: Report) -> Table | None:
    """The settings in which groups differ; None with one group."""
    if len(report.groups) < 2:
        return None
    names = list(report.groups[0].settings)
    rows = [(group.name, *(group.settings[name] for name in names)) for group in report.groups]
    note = "All other settings are the same. -: none, or not a setting of this critic and actor."
    return table(("group", *(name.removeprefix("agent.") for name in names)), rows, [note])


def runs(report: Report) -> Table:
    """Every run, with its state and its folder."""
    rows: list[Sequence[Text | str]] = []
    metrics = {task.name: task.metric for task in report.tasks}
    for group in report.groups:
        for run in sorted(group.runs, key=lambda run: (run.task, run.seed, run.folder.name)):
            metric, trouble = metrics[run.task], complaints(run)
            score = Text(f"{metric.shown(last(run, metric))} {metric.name}".strip(), faint=not run.ends)
            state = "diverged" if run.diverged_at is not None else run.state
            done = f"{short_count(run.step)} of {short_count(run.total_steps)}"
            if run in report.repeated:
                trouble.append("not counted: its seed has another run")
            folder = Text(run.folder.name, folder=str(run.folder))
            rows.append(
                (folder, group.name, short_task(run.task), str(run.seed), state, done, score, "; ".join(trouble))
            )
    rows += [
        (Text(d.folder.name, folder=str(d.folder)), "", "", "", "damaged", "", "", d.reason) for d in report.damaged
    ]
    header = ("folder", "group", "task", "seed", "state", "steps", "last evaluation", "health")
    return table(header, rows, numbers=False)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _range(values: Sequence[float]) -> str:
    known = _known(values)
    if not known:
        return ""
    middle, low, high = map(_number, (float(np.median(known)), min(known), max(known)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
