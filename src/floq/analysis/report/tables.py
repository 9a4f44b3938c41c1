"""Tables of a report: results by task, beside published numbers, over all tasks and by pairs of groups; and the runs'
settings, cost, health and state."""

import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from floq.analysis.health import run_problems
from floq.analysis.metrics import DIAGNOSTICS, SUCCESS, last
from floq.analysis.report.groups import short_count
from floq.analysis.report.scores import FEW, MANY, Cell, Report, TaskScores, interval
from floq.analysis.statistics import Estimate
from floq.runs.record import OF_CRITIC, RunRecord

# --- Results ---


class Text(NamedTuple):
    """Text of a cell. `faint`: it is no result. `folder`: of the run that it links to."""

    text: str
    faint: bool = False
    folder: str = ""


@dataclass(frozen=True)
class Table:
    """Table whose first column is text; the others are numbers if `numbers`. `notes` explain it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True


def table(
    header: Sequence[str], rows: Sequence[Sequence[Text | str]], notes: Sequence[str] = (), numbers=True
) -> Table:
    """Make a table of cells, each a `Text` or plain text."""
    cells = tuple(tuple(Text(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(tuple(header), cells, tuple(notes), numbers)


def with_interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    """Format an estimate as `0.42 [0.30, 0.54]`; without the brackets where the interval is not known."""
    value, low, high = estimate
    return f"{shown(value)} [{shown(low)}, {shown(high)}]" if math.isfinite(low) else shown(value)


def join_names(names: Sequence[str], most: int = 12, comma: str = ", ") -> str:
    """Join the first `most` names, and count the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return comma.join(names[:most]) + more


def short_task(task: str) -> str:
    """Shorten a task's id: `pointmaze-large-navigate-singletask-task5-v0` -> `pointmaze-large-navigate-task5`."""
    return task.replace("-singletask", "").replace("-v0", "")


def link(run: str, folder: Path) -> str:
    """Return the URL of a run's folder, relative to another folder."""
    return quote(os.path.relpath(run, folder).replace(os.sep, "/")) + "/"


NO_WIDTH = "An interval without width: these runs agree, which does not tell that others would."


def results(report: Report, tasks: Sequence[TaskScores]) -> list[Table]:
    """Return tables of the last values of these tasks, which share one metric: a table for each family of tasks, with a
    row for each group and a column for each task. The notes of the last table explain all."""
    seen: set[str] = set()
    families = list(dict.fromkeys(task.family for task in tasks))
    members = [[task for task in tasks if task.family == family] for family in families]
    rows = [_family_rows(report, own, seen) for own in members]
    notes = [[] for _ in families[1:]] + [_explanations(tasks, seen)]
    return [
        table(("group", *(short_task(task.name) for task in own)), cells, own_notes)
        for own, cells, own_notes in zip(members, rows, notes, strict=True)
    ]


def _family_rows(report: Report, tasks: Sequence[TaskScores], seen: set[str]) -> list[list[Text | str]]:
    found = []
    for group in report.groups:
        cells = [task.cells.get(group.name) for task in tasks]
        if any(cells):
            shown = [_cell(task, cell, seen) if cell else "" for task, cell in zip(tasks, cells, strict=True)]
            found.append([group.name, *shown])
    return found


def _explanations(tasks: Sequence[TaskScores], seen: set[str]) -> list[str]:
    """Explain the cells of these tasks; `seen` holds the kinds of cell that occur."""
    metric = tasks[0].metric
    notes = [f"Mean {metric.name} at the last evaluation of the runs that have ended, and how many these are."]
    if not metric.more_is_better:
        notes.append(
            "These runs have no environment to play in. The TD error is the critic's disagreement with itself on "
            "held-out data: smaller does not mean a better policy."
        )
    if "seeds" in seen:
        cut = ", cut to what a rate can be" if metric.is_rate else ""
        notes.append(f"[ ]: 95% Student's interval of the mean over seeds{cut}.")
    if "episodes" in seen:
        notes.append(
            f"[ ]*: 95% Wilson interval of all episodes together, where there are fewer than {FEW} seeds or all agree: "
            "it says how well these very policies are measured, and nothing about how other seeds would do."
        )
    if "nothing" in seen:
        notes.append(f"No interval: fewer than {FEW} seeds, or seeds that agree, do not tell how others would do.")
    repeated = sum(len(cell.repeated) for task in tasks for cell in task.cells.values())
    if repeated:
        notes.append(f"Left out: {repeated} runs whose seed has a newer run, or one that ended.")
    if "unfinished" in seen:
        notes.append("(faint): the newest value of runs that have not ended, at their step; it is in no mean.")
    return notes


def _cell(task: TaskScores, cell: Cell, seen: set[str]) -> Text:
    if not len(cell.values):
        return _so_far(task, cell.unfinished, seen)
    seen.add(cell.over)
    shown = with_interval(cell.estimate, task.metric.shown) + ("*" if cell.over == "episodes" else "")
    waiting = f", {len(cell.unfinished)} not ended" if cell.unfinished else ""
    return Text(f"{shown} ({len(cell.values)}{waiting})")


def _so_far(task: TaskScores, runs: Sequence[RunRecord], seen: set[str]) -> Text:
    known = [run for run in runs if math.isfinite(last(run, task.metric))]
    if not known:
        return Text(f"no evaluation yet ({len(runs)} {'run' if len(runs) == 1 else 'runs'})", faint=True)
    seen.add("unfinished")
    values, steps = sorted(last(run, task.metric) for run in known), sorted(run.step for run in known)
    ends = list(dict.fromkeys(map(task.metric.shown, (values[0], values[-1]))))
    at = list(dict.fromkeys(map(short_count, (steps[0], steps[-1]))))
    states = Counter(run.state for run in known)
    counted = ", ".join(state if len(known) == 1 else f"{count} {state}" for state, count in states.items())
    return Text(f"({' to '.join(ends)} at {' to '.join(at)}, {counted})", faint=True)


# --- Beside published numbers ---

PUBLISHED = Path(__file__).with_name("published.toml")
TASKS, SEEDS, EPISODES = 5, 3, 50  # of an environment family, in the protocol of those numbers


def beside_published(report: Report) -> Table | None:
    """Return success by environment family beside published numbers; None if no run is comparable."""
    rows, notes, published = [], [], tomllib.loads(PUBLISHED.read_text())
    for family, numbers in published["success"].items():
        own = []
        for group in report.groups:
            ended = [run for run in group.runs if run.family == family and run.ends and run not in report.repeated]
            kept, reasons = comparable(ended)
            notes += [f"{group.name} is not compared on {family}: {reason}." for reason in reasons]
            kept = [run for run in kept if math.isfinite(last(run, SUCCESS))]
            if kept:
                differs = "; ".join(protocol_differences(kept)) or "none"
                own.append([family, f"{group.name}, here", with_interval(_over_tasks(kept), "{:.0f}".format), differs])
        if own:
            rows += own
            marked = [(name, x) for name, x in zip(published["methods"], numbers, strict=True) if x]
            rows += [[Text(family, True), Text(f"{name}, published", True), Text(x, True), ""] for name, x in marked]
    if not rows:
        return None
    about = (
        f"Published numbers are second-hand, from notes on the papers (OGBench, mean of {TASKS} tasks, {SEEDS} seeds), "
        "and have not been reproduced independently."
    )
    header = ("environment", "method", "success, %", "differs from the published protocol in")
    return table(header, rows, [about, OURS, *notes])


OURS = "Ours: mean over the tasks of the mean over seeds, with the 95% Student's interval over seeds where at least "
OURS += f"{FEW} have run all of these tasks."


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
    found, tasks = [], {run.task for run in runs}
    if len(tasks) != TASKS:
        found.append(f"{len(tasks)} of {TASKS} tasks")
    seeds = {sum(run.task == task for run in runs) for task in tasks}
    if seeds != {SEEDS}:
        found.append(f"{_from_to(seeds)} seeds")
    if (episodes := {run.settings.get("eval_episodes") or 0 for run in runs}) != {EPISODES}:
        found.append(f"{_from_to(episodes)} episodes instead of {EPISODES}")
    if (steps := {run.total_steps for run in runs}) - {1_000_000, 2_000_000}:
        found.append(f"{_from_to(steps)} gradient steps")
    data = {str(run.records.get("data", {}).get("provenance", "")) for run in runs}
    if any(" of the published " in text for text in data):
        found.append("a part of the data, collected here")
    elif any("collected here" in text for text in data):
        found.append("data collected here")
    return found


def _from_to(numbers: set[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _over_tasks(runs: Sequence[RunRecord]) -> Estimate:
    """Compute success in percent: the mean over tasks, and its interval over the seeds that have run all of them."""
    tasks = {run.task for run in runs}
    mean = float(np.mean([np.mean([last(run, SUCCESS) for run in runs if run.task == task]) for task in tasks]))
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(last(run, SUCCESS))
    complete = np.array([np.mean(values) for values in by_seed.values() if len(values) == len(tasks)])
    (_, low, high), _ = interval(complete, SUCCESS, [0] * len(complete))
    return Estimate(100 * mean, 100 * low, 100 * high)


def aggregates(report: Report) -> Table | None:
    """Return the interquartile means over all tasks with success; None without any."""
    if not report.aggregates:
        return None
    most = max(found.tasks for found in report.aggregates.values())
    rows = [
        (name, with_interval(found.iqm, "{:.2f}".format), str(found.tasks), str(found.runs))
        for name, found in report.aggregates.items()
    ]
    notes = [
        "Interquartile mean of the last success rates of all runs that have ended, with a 95% stratified bootstrap "
        "interval: runs are drawn again within each task (Agarwal et al. 2021, arXiv 2108.13264)."
    ]
    if any(not math.isfinite(found.iqm.low) for found in report.aggregates.values()):
        notes.append("No interval: a task with a single run cannot say how others would do.")
    if any(found.iqm.low == found.iqm.high for found in report.aggregates.values()):
        notes.append(NO_WIDTH)
    if any(found.runs < FEW * found.tasks for found in report.aggregates.values()):
        notes.append(f"With fewer than {FEW} seeds for each task such an interval is too narrow to be relied on.")
    if any(found.tasks < most for found in report.aggregates.values()):
        notes.append("Groups with different numbers of tasks were not tried on the same ones: do not compare them.")
    return table(("group", "IQM of success [95%]", "tasks", "runs"), rows, notes)


def improvements(report: Report) -> Table | None:
    """Return the probability that one group is better than another, for pairs of groups; None with one group."""
    if not report.improvements:
        return None
    rows = list(dict.fromkeys(first for first, _ in report.improvements))
    columns = [group.name for group in report.groups if any(group.name == second for _, second in report.improvements)]
    cells = []
    for first in rows:
        found = [report.improvements.get((first, second)) for second in columns]
        cells.append([first, *(with_interval(x[0], "{:.2f}".format) + f" ({x[1]})" if x else "" for x in found)])
    few = "" if len(columns) > 1 else f" Of more than {MANY} groups each is compared with one alone (--reference)."
    notes = [
        "How probably a run of the row is better than a run of the column on the same task, a tie counting one half, "
        f"with a 95% stratified bootstrap interval, and on how many tasks both have runs that have ended.{few}"
    ]
    if any(found.low == found.high for found, _ in report.improvements.values()):
        notes.append(NO_WIDTH)
    return table(("P(row better than column)", *columns), cells, notes)


# --- Experiments ---


def comparison(report: Report) -> Table:
    """Return the scores of an experiment's groups, and the probability that each is better than its match."""
    metric, own = report.metric, {group.against for group in report.groups} - {None, report.reference}
    rows = []
    for group in report.groups:
        name = f"{group.name} (reference)" if group.name == report.reference else group.name
        found = report.aggregates.get(group.name)
        if found is None:
            rows.append([group.name, "", "", "", "", "", "none finished"])
            continue
        better = report.improvements.get((group.name, group.against or ""))
        shown = with_interval(better[0], "{:.2f}".format) + (f" ({group.against})" if own else "") if better else ""
        costs = [_range([run.summary_value(c) for run in group.runs]) for c in ("critic_parameters", "update_gflop")]
        seeds = sorted({len(x) for x in report.scores(group.name, report.tasks).values()})
        estimates = [with_interval(estimate, metric.shown) for estimate in (found.area_iqm, found.iqm)]
        rows.append([name, *costs, *estimates, shown, f"{'-'.join(map(str, seeds))} x {found.tasks}"])
    seeds = len({run.seed for run in report.runs})
    counts = (f"{n} {noun}{'s' * (n != 1)}" for n, noun in ((seeds, "seed"), (len(report.tasks), "task")))
    note = (
        f"AUC: {metric.short} on average over training, without the evaluation at step 1. IQM: interquartile mean over "
        "all runs. Intervals: percentile bootstrap within tasks. P: by AUC, ties count one half. "
        f"{', '.join(counts)}; {report.protocol}. Tasks: {', '.join(task.name for task in report.tasks)}."
    )
    header = ["group", "critic's parameters", "GFLOP per update", "AUC, IQM [95%]", f"last {metric.short}, IQM [95%]"]
    header += [f"P(better than {'its match' if own else 'reference'}) [95%]", "seeds x tasks"]
    return table(header, rows, [note])


def diagnosis(report: Report) -> Table | None:
    """Return the critics' diagnostic metrics, with a column for each that any group has; None without any."""
    groups = [group for group in report.groups if group.runs]
    known = {name: [_known([run.last(OF_CRITIC + name) for run in g.runs]) for g in groups] for name in DIAGNOSTICS}
    known = {name: values for name, values in known.items() if any(values)}
    rows = [
        [group.name, *(f"{np.mean(values[n]):.3g}" if values[n] else "" for values in known.values())]
        for n, group in enumerate(groups)
    ]
    note = "The critics' diagnosis on validation data in the last row of train.csv, mean over runs."
    return table(("group", *known), rows, [note]) if known else None


# --- Runs ---


def overview(report: Report) -> Table:
    """Return a summary of the runs: names and values."""
    runs = report.runs
    versions = sorted({f"{name} {x}" for run in runs for name, x in run.records.get("versions", {}).items()})
    seeds = sorted({run.seed for run in runs})
    steps = sorted({(run.settings["offline_steps"], run.settings["online_steps"]) for run in runs})
    rows = {
        "runs": ", ".join(f"{count} {state}" for state, count in report.state_counts.items()),
        "tasks": join_names([task.name for task in report.tasks]),
        "critics": join_names(sorted({run.settings["agent.critic"] for run in runs})),
        "actors": join_names(sorted({run.settings["agent.actor"] for run in runs})),
        "seeds": join_names(list(map(str, seeds)), 20),
        "steps": "; ".join(_phases(*both) for both in steps),
        "protocol": report.protocol or "not recorded",
        "data": join_names(
            sorted({str(run.records.get("data", {}).get("provenance", "not recorded")) for run in runs}), 6, "; "
        ),
        "versions": ", ".join(versions),
    }
    return table(("", ""), [(name, text) for name, text in rows.items()], numbers=False)


def _phases(offline: int, online: int) -> str:
    parts = [f"{short_count(offline)} gradient steps offline"] if offline else []
    return " then ".join(parts + ([f"{short_count(online)} environment steps online"] if online else []))


def costs(report: Report) -> Table:
    """Return the cost of updates and the duration of runs, by group."""
    rows = []
    for group in report.groups:
        ended = [run for run in group.runs if run.ends]
        rates, steps, fleets = (
            [run.summary_value(name) for run in ended]
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
    """Return the runs that have problems; None if none has."""
    rows: list[Sequence[Text | str]] = [
        (Text(str(d.folder), folder=str(d.folder)), "", d.reason) for d in report.damaged
    ]
    for group in report.groups:
        for run in group.runs:
            found = run_problems(run)
            if found:
                rows.append(
                    (
                        Text(f"{short_task(run.task)}, seed {run.seed}", folder=str(run.folder)),
                        group.name,
                        "; ".join(found),
                    )
                )
    return table(("run", "group", "what is wrong"), rows, numbers=False) if rows else None


def settings_table(report: Report) -> Table | None:
    """Return the settings in which groups differ; None with one group."""
    if len(report.groups) < 2:
        return None
    names = list(report.groups[0].settings)
    rows = [(group.name, *(group.settings[name] for name in names)) for group in report.groups]
    note = "All other settings are the same. -: none, or not a setting of this critic and actor."
    return table(("group", *(name.removeprefix("agent.") for name in names)), rows, [note])


def runs(report: Report) -> Table:
    """List every run, with its state and its folder."""
    rows: list[Sequence[Text | str]] = []
    metrics = {task.name: task.metric for task in report.tasks}
    for group in report.groups:
        for run in sorted(group.runs, key=lambda run: (run.task, run.seed, run.folder.name)):
            metric, problems = metrics[run.task], run_problems(run)
            score = Text(f"{metric.shown(last(run, metric))} {metric.name}".strip(), faint=not run.ends)
            state = "diverged" if run.diverged_at is not None else run.state
            done = f"{short_count(run.step)} of {short_count(run.total_steps)}"
            if run in report.repeated:
                problems.append("not counted: its seed has another run")
            folder = Text(run.folder.name, folder=str(run.folder))
            rows.append(
                (folder, group.name, short_task(run.task), str(run.seed), state, done, score, "; ".join(problems))
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
