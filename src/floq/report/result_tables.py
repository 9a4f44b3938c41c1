"""The tables of what groups came to: by task, beside published numbers, over all tasks, against each other."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from floq.analysis.statistics import Estimate
from floq.report import published
from floq.report.groups import short_count
from floq.report.metrics import SUCCESS, last
from floq.report.runs import RunRecord
from floq.report.scores import FEW, MANY, Cell, Report, Task, interval
from floq.report.tables import Table, Text, short_task, table, with_interval

NO_WIDTH = "An interval without width: these runs agree, which does not tell that others would."


def results(report: Report, tasks: Sequence[Task]) -> list[Table]:
    """The last values of these tasks, which are judged by one metric. A table for each family of tasks, with a row for
    each of its groups and a column for each task; the last of them explains all."""
    seen: set[str] = set()
    families = list(dict.fromkeys(task.family for task in tasks))
    members = [[task for task in tasks if task.family == family] for family in families]
    rows = [_family_rows(report, own, seen) for own in members]
    notes = [[] for _ in families[1:]] + [_explained(tasks, seen)]
    return [
        table(("group", *(short_task(task.name) for task in own)), cells, said)
        for own, cells, said in zip(members, rows, notes, strict=True)
    ]


def _family_rows(report: Report, tasks: Sequence[Task], seen: set[str]) -> list[list[Text | str]]:
    found = []
    for group in report.groups:
        cells = [task.cells.get(group.name) for task in tasks]
        if any(cells):
            shown = [_cell(task, cell, seen) if cell else "" for task, cell in zip(tasks, cells, strict=True)]
            found.append([group.name, *shown])
    return found


def _explained(tasks: Sequence[Task], seen: set[str]) -> list[str]:
    """What the cells of these tasks mean; `seen` says of what kinds they are."""
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


def _cell(task: Task, cell: Cell, seen: set[str]) -> Text:
    if not len(cell.values):
        return _so_far(task, cell.unfinished, seen)
    seen.add(cell.over)
    shown = with_interval(cell.estimate, task.metric.shown) + ("*" if cell.over == "episodes" else "")
    waiting = f", {len(cell.unfinished)} not ended" if cell.unfinished else ""
    return Text(f"{shown} ({len(cell.values)}{waiting})")


def _so_far(task: Task, runs: Sequence[RunRecord], seen: set[str]) -> Text:
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


def beside_published(report: Report) -> Table | None:
    """Success by environment family beside published numbers; None if no run may be compared."""
    rows, notes = [], []
    for family, numbers in published.SUCCESS.items():
        own = []
        for group in report.groups:
            ended = [run for run in group.runs if run.family == family and run.ends and run not in report.repeated]
            kept, reasons = published.comparable(ended)
            notes += [f"{group.name} is not compared on {family}: {reason}." for reason in reasons]
            kept = [run for run in kept if math.isfinite(last(run, SUCCESS))]
            if kept:
                differs = "; ".join(published.differences(kept)) or "none"
                own.append([family, f"{group.name}, here", with_interval(_over_tasks(kept), "{:.0f}".format), differs])
        if own:
            rows += own
            marked = [(name, x) for name, x in zip(published.METHODS, numbers, strict=True) if x]
            rows += [[Text(family, True), Text(f"{name}, published", True), Text(x, True), ""] for name, x in marked]
    if not rows:
        return None
    about = (
        f"Published numbers are second-hand, from notes on the papers ({published.PROTOCOL}), and nobody has "
        "reproduced them independently."
    )
    header = ("environment", "method", "success, %", "differs from the published protocol in")
    return table(header, rows, [about, OURS, *notes])


OURS = "Ours: mean over the tasks of the mean over seeds, with the 95% Student's interval over seeds where at least "
OURS += f"{FEW} have run all of these tasks."


def _over_tasks(runs: Sequence[RunRecord]) -> Estimate:
    """Success in percent: the mean over tasks, and its interval over the seeds that have run all of them."""
    tasks = {run.task for run in runs}
    mean = float(np.mean([np.mean([last(run, SUCCESS) for run in runs if run.task == task]) for task in tasks]))
    by_seed: dict[int, list[float]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, []).append(last(run, SUCCESS))
    whole = np.array([np.mean(values) for values in by_seed.values() if len(values) == len(tasks)])
    (_, low, high), _ = interval(whole, SUCCESS, [0] * len(whole))
    return Estimate(100 * mean, 100 * low, 100 * high)


def aggregates(report: Report) -> Table | None:
    """Interquartile means over all tasks with success; None without any."""
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
    """How probably a group is better than another; None with one group."""
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
