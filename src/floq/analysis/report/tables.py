"""Tables of a report: results by task, beside published numbers, over all tasks and of pairs of groups; and the runs'
settings, cost, health and state."""

import math
import os
import tomllib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from floq.analysis.health import run_problems
from floq.analysis.metrics import DIAGNOSTICS, METRICS, SUCCESS, Metric, last
from floq.analysis.report.groups import short_count
from floq.analysis.report.scores import FEW, MANY, Cell, Report, TaskScores, interval
from floq.analysis.statistics import MIN_BOOTSTRAP_SEEDS, Estimate, bootstrap_estimate
from floq.runs.record import OF_CRITIC, RunRecord


class Text(NamedTuple):
    """Text of a cell. `faint`: it is no result. `folder`: of the run that it links to."""

    text: str
    faint: bool = False
    folder: str = ""


class Table(NamedTuple):
    """Table whose first column is text; the others are numbers if `numbers`. `notes` explain it."""

    header: Sequence[str]
    rows: Sequence[Sequence[Text]]
    notes: Sequence[str]
    numbers: bool


class Section(NamedTuple):
    """Tables under one title; those of a metric have its learning curves beside them."""

    title: str
    tables: Sequence[Table]
    metric: Metric | None = None


def table(header: Sequence[str], rows: Sequence[Sequence[Text | str]], *notes: str, numbers: bool = True) -> Table:
    """Make a table of cells, each a `Text` or plain text."""
    return Table(header, [[Text(c) if isinstance(c, str) else c for c in row] for row in rows], notes, numbers)


def sections(report: Report) -> list[Section]:
    """Return the tables of a report; those without rows are left out, except that of health."""
    by_metric = [(metric, [task for task in report.tasks if task.metric is metric]) for metric in METRICS.values()]
    found = [
        Section("What was run", [overview(report)]),
        *(Section(metric.name.capitalize(), results(report, own), metric) for metric, own in by_metric if own),
        Section("Off-policy evaluation", [off_policy(report)]),
        Section("Beside published numbers", [beside_published(report)]),
        Section("Over all tasks", [over_all_tasks(report)]),
        *(Section(f"Paired differences in {m.name}", [paired_differences(report, m)]) for m in METRICS.values()),
        Section("Cost", [costs(report)]),
        Section("Health", [health(report)]),
        Section("Settings in which groups differ", [settings_table(report)]),
        Section("Runs", [runs(report)]),
    ]
    return [section for section in found if section.tables[0].rows or section.title == "Health"]


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


# --- Results ---


def results(report: Report, tasks: Sequence[TaskScores]) -> list[Table]:
    """Return tables of the last values of these tasks, which share one metric: a table for each family of tasks, with a
    row for each group and a column for each task. The notes of the last table explain all."""
    found, metric = [], tasks[0].metric
    for family in dict.fromkeys(task.family for task in tasks):
        own = [task for task in tasks if task.family == family]
        rows = [[g.name, *(_cell(task, task.cells.get(g.name)) for task in own)] for g in report.groups]
        rows = [row for row in rows if any(row[1:])]
        found.append(table(("group", *(short_task(task.name) for task in own)), rows))
    notes = [
        f"Mean {metric.name} at the last evaluation of the runs that have ended, and how many these are. (faint): the "
        "newest value of runs that have not ended, at their step; it is in no mean.",
        "[ ]: 95% Student's interval of the mean over seeds. [ ]*: 95% Wilson interval of all episodes together, where "
        f"there are fewer than {FEW} seeds or all agree: it says nothing about how other seeds would do.",
    ]
    if not metric.more_is_better:
        notes.append("The TD error is the critic's disagreement with itself: smaller does not mean a better policy.")
    if report.repeated:
        notes.append(f"Left out: {len(report.repeated)} runs whose seed has a newer run, or one that ended.")
    return [*found[:-1], found[-1]._replace(notes=notes)]


def _cell(task: TaskScores, cell: Cell | None) -> Text | str:
    if cell is None:
        return ""
    if len(cell.values):
        shown = with_interval(cell.estimate, task.metric.shown) + ("*" if cell.over == "episodes" else "")
        waiting = f", {len(cell.unfinished)} not ended" if cell.unfinished else ""
        return f"{shown} ({len(cell.values)}{waiting})"
    known = {run: value for run in cell.unfinished if math.isfinite(value := last(run, task.metric))}
    if not known:
        count = len(cell.unfinished)
        return Text(f"no evaluation yet ({count} {'run' if count == 1 else 'runs'})", faint=True)
    ends = dict.fromkeys(map(task.metric.shown, (min(known.values()), max(known.values()))))
    steps = [run.step for run in known]
    at = dict.fromkeys(map(short_count, (min(steps), max(steps))))
    states = ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in known).items())
    return Text(f"({' to '.join(ends)} at {' to '.join(at)}, {states})", faint=True)


def over_all_tasks(report: Report) -> Table:
    """Return the groups' averages over all tasks with the metric of the report; of an experiment also what they
    cost."""
    metric, rows = report.metric, []
    for group in report.groups:
        name = f"{group.name} (reference)" if group.name == report.reference else group.name
        if (found := report.aggregates.get(group.name)) is None:
            rows += [[group.name, "", "", "", "", "none finished"]] if report.by_area else []
            continue
        costs = [_range([run.summary_value(c) for run in group.runs]) for c in ("critic_parameters", "update_gflop")]
        seeds = sorted({len(x) for x in report.scores(group.name, report.tasks)})
        estimates = [with_interval(estimate, metric.shown) for estimate in (found.area, found.last)]
        rows.append([name, *costs, *estimates, f"{'-'.join(map(str, seeds))} x {found.tasks}"])
    counts = f"{len({run.seed for run in report.runs})} seeds, {len(report.tasks)} tasks"
    many = (
        "IQM: interquartile mean over all runs that have ended. Intervals: 95% percentile bootstrap within tasks "
        "(Agarwal et al. 2021, arXiv 2108.13264)."
    )
    few = (
        "Mean: over tasks, of the runs that have ended. Intervals: 95% Student's t over seeds, each with its mean over "
        "tasks; none where a seed lacks a task, or all agree. Interquartile means with bootstrap intervals, too narrow "
        f"for few seeds, are shown if each group has {MIN_BOOTSTRAP_SEEDS} or more on each task."
    )
    note = (
        f"AUC: {metric.short} on average over training, without the evaluation at step 1. "
        f"{many if report.has_many_seeds else few} {counts}; {report.protocol}. "
        f"Tasks: {join_names([task.name for task in report.tasks])}."
    )
    shown = "IQM [95%]" if report.has_many_seeds else "mean [95% t]"
    header = ["group", "critic's parameters", "GFLOP per update", f"AUC, {shown}", f"last {metric.short}, {shown}"]
    header += ["seeds x tasks"]
    if not report.by_area:  # only a sweep records the cost
        header, *rows = ([row[0], *row[3:]] for row in (header, *rows))
    return table(header, rows, note)


def paired_differences(report: Report, metric: Metric) -> Table:
    """Return the differences of groups that are compared, by pairs of runs with the same seed, on the tasks with this
    metric; and the probability that a run of the one is better."""
    rows = []
    for found in report.comparisons(metric):
        differences = []
        for estimate, p, *_ in (found.area, found.last):
            differences += [with_interval(estimate, metric.shown), "" if math.isnan(p) else f"{p:.2g}"]
        left_out = f", {found.area.unpaired} unpaired" if found.area.unpaired else ""
        counts = f"{found.area.pairs} x {found.tasks}{left_out}"
        rows.append([found.first, found.second, *differences, counts, with_interval(found.better, "{:.2f}".format)])
    note = (
        "Difference: group minus against, for each seed that both have its mean over the tasks that both have run with "
        "it. 95% t: Student's interval over these pairs. p: two-sided sign-flip test, exact up to 13 pairs, not "
        "corrected for the number of comparisons; n pairs cannot give less than 2 / 2^n, 0.25 for 3 and 0.062 for 5. "
        f"P(better): how probably a run of the group has a larger {'AUC' if report.by_area else 'last score'} than one "
        "of the other on the same task, ties counting one half"
        f"{'; its interval: 95% percentile bootstrap' if report.has_many_seeds else ''}."
    )
    if not report.by_area:
        note += f" More than {MANY} groups are each compared with one alone (--reference)."
    better = "P(better) [95%]" if report.has_many_seeds else "P(better)"
    header = ("group", "against", "AUC difference [95% t]", "p", f"last {metric.short}, difference [95% t]", "p")
    return table((*header, "pairs x tasks", better), rows, note)


def diagnosis(report: Report) -> Table:
    """Return the critics' diagnostic metrics, with a column for each that any group has."""
    groups = [group for group in report.groups if group.runs]
    known = {name: [_known([run.last(OF_CRITIC + name) for run in g.runs]) for g in groups] for name in DIAGNOSTICS}
    known = {name: values for name, values in known.items() if any(values)}
    shown = [[f"{np.mean(numbers):.3g}" if numbers else "" for numbers in values] for values in known.values()]
    rows = [(group.name, *cells) for group, *cells in zip(groups, *shown, strict=True)] if known else ()
    note = "The critics' diagnosis on validation data in the last row of train.csv, mean over runs."
    return table(("group", *known), rows, note)


def off_policy(report: Report) -> Table:
    """Return the estimates of off-policy evaluations, with a row for each policy and task."""
    policies: dict[tuple[str, str], list[RunRecord]] = defaultdict(list)
    for run in report.runs:
        evaluates = run.settings["agent.actor"] == "fixed" and "evaluation/initial_value" in run.evaluations
        if evaluates and run.ends and run not in report.repeated:
            policies[str(run.settings.get("run_group")), run.task].append(run)
    rows, shown = [], "{:.4g}".format
    for (policy, task), runs in policies.items():
        scale = float(runs[0].settings.get("agent.reward_scale") or 1)
        value, data, td_error = (
            [run.evaluations.get(f"evaluation/{name}", [math.nan])[-1] / scale for run in runs]
            for name in ("initial_value", "data_return", "td_error")
        )
        cells = [with_interval(bootstrap_estimate(value), shown), shown(np.mean(data)), shown(np.mean(td_error))]
        rows.append([policy, short_task(task), *cells, str(len(runs))])
    note = (
        "Discounted returns of policies, estimated by floq ope. [ ]: 95% Student's interval; each seed learned "
        "from a bootstrap resample of the episodes. data: what these earned. ope.json has the rest."
    )
    return table(("policy", "task", "estimate", "data", "TD error", "seeds"), rows, note)


# --- Beside published numbers ---

PUBLISHED = Path(__file__).with_name("published.toml")
TASKS, SEEDS, EPISODES = 5, 3, 50  # of an environment family, in the protocol of those numbers
STEPS = {1_000_000, 2_000_000}


def beside_published(report: Report) -> Table:
    """Return success by environment family beside published numbers, of the runs that are comparable."""
    rows, published = [], tomllib.loads(PUBLISHED.read_text())
    for family, numbers in published["success"].items():
        own = []
        for group in report.groups:
            ended = [run for run in group.runs if run.family == family and run.ends and run not in report.repeated]
            kept = [run for run in ended if is_comparable(run) and math.isfinite(last(run, SUCCESS))]
            if kept:
                differs = "; ".join(protocol_differences(kept)) or "none"
                own.append([family, f"{group.name}, here", with_interval(_over_tasks(kept), "{:.0f}".format), differs])
        marked = [(name, x) for name, x in zip(published["methods"], numbers, strict=True) if x and own]
        rows += own + [[Text(family, True), Text(f"{name}, published", True), Text(x, True), ""] for name, x in marked]
    header = ("environment", "method", "success, %", "differs from the published protocol in")
    note = (
        f"Published numbers are second-hand, from notes on the papers (OGBench, mean of {TASKS} tasks, {SEEDS} seeds). "
        f"Ours: mean over tasks, with the 95% Student's interval over seeds where at least {FEW} have run all of them; "
        "only runs on the benchmark's own data, without an online phase, with success_timing=post."
    )
    return table(header, rows, note)


def is_comparable(run: RunRecord) -> bool:
    """Return whether a run may stand beside published numbers."""
    own_data = not run.settings.get("dataset")
    return own_data and not run.settings["online_steps"] and run.settings.get("success_timing") == "post"


def protocol_differences(runs: Sequence[RunRecord]) -> list[str]:
    """List the differences of comparable runs from the published protocol, to be shown beside their numbers."""
    tasks = Counter(run.task for run in runs)
    data = {str(run.records.get("data", {}).get("provenance", "")) for run in runs}
    seeds, episodes = _range(list(tasks.values())), _range([run.settings.get("eval_episodes") or 0 for run in runs])
    found = {
        f"{len(tasks)} of {TASKS} tasks": len(tasks) != TASKS,
        f"{seeds} seeds": seeds != str(SEEDS),
        f"{episodes} episodes instead of {EPISODES}": episodes != str(EPISODES),
        f"{_range([run.total_steps for run in runs])} gradient steps": {run.total_steps for run in runs} - STEPS,
        "a part of the data, collected here": (part := any(" of the published " in text for text in data)),
        "data collected here": not part and any("collected here" in text for text in data),
    }
    return [text for text, differs in found.items() if differs]


def _over_tasks(runs: Sequence[RunRecord]) -> Estimate:
    """Compute success in percent: the mean over tasks, and its interval over the seeds that have run all of them."""
    by_task, by_seed = defaultdict(list), defaultdict(list)
    for run in runs:
        by_task[run.task].append(last(run, SUCCESS))
        by_seed[run.seed].append(last(run, SUCCESS))
    complete = np.array([np.mean(values) for values in by_seed.values() if len(values) == len(by_task)])
    (_, low, high), _ = interval(complete, SUCCESS, [0] * len(complete))
    mean = float(np.mean([np.mean(values) for values in by_task.values()]))
    return Estimate(100 * mean, 100 * low, 100 * high)


# --- Runs ---


def overview(report: Report) -> Table:
    """Return a summary of the runs: names and values."""
    runs = report.runs
    versions = sorted({f"{name} {x}" for run in runs for name, x in run.records.get("versions", {}).items()})
    data = sorted({str(run.records.get("data", {}).get("provenance", "not recorded")) for run in runs})
    seeds = sorted({run.seed for run in runs})
    phases = {"offline_steps": "gradient steps offline", "online_steps": "environment steps online"}
    counts = [
        [f"{short_count(n)} {what}" for name, what in phases.items() if (n := run.settings[name])] for run in runs
    ]
    steps = dict.fromkeys(" then ".join(count) for count in counts)
    rows = {
        "runs": ", ".join(f"{count} {state}" for state, count in report.state_counts.items()),
        "tasks": join_names([task.name for task in report.tasks]),
        "critics": join_names(sorted({run.settings["agent.critic"] for run in runs})),
        "actors": join_names(sorted({run.settings["agent.actor"] for run in runs})),
        "seeds": join_names(list(map(str, seeds)), 20),
        "steps": "; ".join(steps),
        "protocol": report.protocol or "not recorded",
        "data": join_names(data, 6, "; "),
        "versions": ", ".join(versions),
    }
    return table(("", ""), [(name, text) for name, text in rows.items()], numbers=False)


def costs(report: Report) -> Table:
    """Return the cost of updates and the duration of runs, by group."""
    rows = []
    for group in report.groups:
        ended = [run for run in group.runs if run.ends]
        rates, steps, fleets = (
            [run.summary_value(name) for run in ended]
            for name in ("updates_per_second", "env_steps_per_second", "runs_in_fleet")
        )
        shown = map(_range, ([1000 / rate for rate in rates if rate > 0], rates, steps, fleets))
        seconds = _known([run.seconds for run in ended])
        rows.append([group.name, *shown, clock(float(np.median(seconds))) if seconds else "", str(len(ended))])
    header = ("group", "ms per update", "updates/s", "environment steps/s", "runs in fleet", "time of a run", "runs")
    return table(
        header, rows, "Median over the runs that have ended, and from the least to the most; of each run in a fleet."
    )


def health(report: Report) -> Table:
    """Return the runs that have problems."""
    rows: list[list[Text | str]] = [[Text(str(d.folder), folder=str(d.folder)), "", d.reason] for d in report.damaged]
    for group in report.groups:
        for run in group.runs:
            if found := run_problems(run):
                name = Text(f"{short_task(run.task)}, seed {run.seed}", folder=str(run.folder))
                rows.append([name, group.name, "; ".join(found)])
    return table(("run", "group", "what is wrong"), rows, numbers=False)


def settings_table(report: Report) -> Table:
    """Return the settings in which groups differ."""
    names = list(report.groups[0].settings) if len(report.groups) > 1 else []
    rows = [(group.name, *(group.settings[name] for name in names)) for group in report.groups if names]
    note = "All other settings are the same. -: none, or not a setting of this critic and actor."
    return table(("group", *(name.removeprefix("agent.") for name in names)), rows, note)


def runs(report: Report) -> Table:
    """List every run, with its state and its folder."""
    rows: list[list[Text | str]] = []
    metrics = {task.name: task.metric for task in report.tasks}
    for group in report.groups:
        for run in sorted(group.runs, key=lambda run: (run.task, run.seed, run.folder.name)):
            metric, state = metrics[run.task], "diverged" if run.diverged_at is not None else run.state
            score = Text(f"{metric.shown(last(run, metric))} {metric.name}".strip(), faint=not run.ends)
            done = f"{short_count(run.step)} of {short_count(run.total_steps)}"
            state += ", not counted: its seed has another run" if run in report.repeated else ""
            cells = [group.name, short_task(run.task), str(run.seed), state, done, score]
            rows.append([Text(run.folder.name, folder=str(run.folder)), *cells])
    rows += [[Text(d.folder.name, folder=str(d.folder)), "", "", "", "damaged", "", ""] for d in report.damaged]
    return table(("folder", "group", "task", "seed", "state", "steps", "last evaluation"), rows, numbers=False)


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _range(values: Sequence[float]) -> str:
    """Format the median of the values that are known, and the least and the most if they differ."""
    if not (known := _known(values)):
        return ""
    middle, low, high = (
        f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.3g}" for x in (float(np.median(known)), min(known), max(known))
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def clock(seconds: float) -> str:
    """Format a duration as `45s`, `12m`, `3h05` or `2d04h`; empty for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 2:
        return f"{seconds:.0f}s"
    if hours < 2:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02d}" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"
