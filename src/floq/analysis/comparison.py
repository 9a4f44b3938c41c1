"""Comparison of groups of runs from the two CSV files of a sweep: their scores, and a table of them."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from floq.analysis.statistics import (
    Estimate,
    Scores,
    iqm,
    iqm_interval,
    probability_of_improvement,
)
from floq.utils.errors import UserError
from floq.utils.untrusted import CSV_LIMIT, read_text

Row = dict[str, str]
DIAGNOSED = "validation/critic/"
DIAGNOSIS = ("z0_spread", "quantile_spread", "return_spread", "member_spread", "contraction", "curvature")
DIAGNOSIS += ("one_pass_gap", "outside_histogram", "mass_at_ends", "feature_norm", "feature_rank", "abs_td_error")


class Score(NamedTuple):
    """Metric of a comparison: the column of the tidy CSV, its label, and whether it is a rate."""

    column: str
    label: str
    is_rate: bool


SCORES = {
    "success": Score("success", "success rate", True),
    "return": Score("episode_return", "return of an episode", False),
}


@dataclass(frozen=True)
class GroupResult:
    """Results of a group's runs. By task: the area under the learning curve of each run, its last score, and the curve
    itself as steps and scores of shape (runs, steps). `diagnosis`: the critics' last diagnostic metrics, mean over
    runs. `better`: probability that a run has more area than one of the group `against`; both are None for the
    reference itself."""

    name: str
    auc: dict[str, np.ndarray]
    final: dict[str, np.ndarray]
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    costs: dict[str, list[float]]
    diagnosis: dict[str, float]
    auc_iqm: Estimate
    final_iqm: Estimate
    better: Estimate | None
    against: str | None


@dataclass(frozen=True)
class Comparison:
    """Results of groups in the order of their file, the names of groups without a run, and the evaluation protocol."""

    members: tuple[GroupResult, ...]
    absent: tuple[str, ...]
    reference: str
    score: Score
    tasks: tuple[str, ...]
    protocol: str


def read_score_rows(path: Path) -> list[Row]:
    """Read the rows of a CSV file. Raises UserError if it cannot be read."""
    try:
        return list(csv.DictReader(io.StringIO(read_text(path, CSV_LIMIT), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot read it ({error}): run the sweep first, or give another --out") from error


def compare_groups(
    groups: Mapping[str, str | None] | Sequence[str],
    reference: str,
    evaluations: Sequence[Row],
    runs: Sequence[Row],
    score: str = "success",
) -> Comparison:
    """Compute the scores of groups, and compare each with the reference.

    Args:
        groups: their names, in order; rows of others are left out. A mapping may give a group another one, instead of
            the reference, to be compared with.
        reference: the group that the others are compared with.
        evaluations: rows of the file of evaluations; see `floq.sweep.sweep`.
        runs: rows of the file of runs.
        score: a name in `SCORES`.

    Raises:
        UserError: the files are damaged.
    """
    try:
        tasks = tuple(dict.fromkeys(row["task"] for row in runs))
        scores = {name: _scores(name, tasks, runs) for name in groups}
        present = [name for name in groups if scores[name]["auc"]]
        members = []
        for name in present:
            auc, final = scores[name]["auc"], scores[name]["final"]
            curves = {task: curve for task in auc if (curve := _curve(name, task, evaluations, SCORES[score].column))}
            costs = {key: _numbers(runs, name, None, key) for key in ("critic_parameters", "update_gflop")}
            diagnosis = {key: _mean(runs, name, f"{DIAGNOSED}{key}") for key in DIAGNOSIS}
            own = groups[name] if isinstance(groups, Mapping) else None
            against = own or (None if name == reference else reference)
            better = _better(auc, scores[against]["auc"]) if against else None
            estimates = _estimate(auc), _estimate(final), better, against
            members.append(GroupResult(name, auc, final, curves, costs, diagnosis, *estimates))
        seen = {key: sorted({row[key] for row in runs} - {""}) for key in ("seed", "eval_episodes", "success_timing")}
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise UserError(f"the CSV files of the sweep are damaged ({error!r}): run it again") from error
    protocol = (
        f"{_count(len(seen['seed']), 'seed')}, {_count(len(tasks), 'task')}; "
        f"{' or '.join(seen['eval_episodes'])} episodes per evaluation"
    )
    if SCORES[score].is_rate:
        protocol += f", success_timing={' or '.join(seen['success_timing'])}"
    absent = tuple(name for name in groups if name not in present)
    return Comparison(tuple(members), absent, reference, SCORES[score], tasks, protocol)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _numbers(rows: Sequence[Row], group: str, task: str | None, column: str) -> list[float]:
    chosen = (row for row in rows if row["group"] == group and task in (None, row["task"]))
    return [float(row[column] or math.nan) for row in chosen]


def _mean(rows: Sequence[Row], group: str, column: str) -> float:
    """Compute the mean over the group's runs that have this number; NaN if none has."""
    found = [float(row[column]) for row in rows if row["group"] == group and row.get(column)]
    return float(np.mean(found)) if found else math.nan


def _scores(group: str, tasks: Sequence[str], runs: Sequence[Row]) -> dict[str, dict[str, np.ndarray]]:
    found = {key: {task: np.array(_numbers(runs, group, task, key)) for task in tasks} for key in ("auc", "final")}
    return {key: {task: x for task, x in by_task.items() if len(x)} for key, by_task in found.items()}


def _curve(group: str, task: str, evaluations: Sequence[Row], column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the steps that all runs share, and scores of shape (runs, steps)."""
    chosen = [row for row in evaluations if row["group"] == group and row["task"] == task]
    by_seed: dict[str, dict[int, float]] = {}
    for row in chosen:
        by_seed.setdefault(row["seed"], {})[int(row["step"])] = float(row[column] or math.nan)
    steps = sorted(set.intersection(*(set(curve) for curve in by_seed.values()))) if by_seed else []
    if not steps:
        return None
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in by_seed.values()])


def _estimate(by_task: dict[str, np.ndarray]) -> Estimate:
    scores: Scores = list(by_task.values())
    return Estimate(iqm(scores), *iqm_interval(scores))


def _better(own: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Estimate | None:
    shared = [task for task in own if task in other]
    if not shared:
        return None
    return probability_of_improvement([own[task] for task in shared], [other[task] for task in shared])


# --- Table ---


def comparison_table(found: Comparison, title: str, question: str) -> str:
    """Format the comparison in Markdown."""
    score = "success" if found.score.is_rate else "return"
    digits = 2 if found.score.is_rate else 0
    pairs = any(member.against not in (None, found.reference) for member in found.members)
    header = ["group", "critic's parameters", "GFLOP per update", "AUC, IQM [95%]", f"last {score}, IQM [95%]"]
    header += [f"P(better than {'its match' if pairs else 'reference'}) [95%]", "seeds x tasks"]
    lines = [f"## {title}", "", *([question, ""] if question else [])]
    lines += [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    for member in found.members:
        count = sorted({len(runs) for runs in member.auc.values()})
        cells = [
            member.name.replace("|", "\\|") + (" (reference)" if member.name == found.reference else ""),
            _range(member.costs["critic_parameters"], "{:,.0f}"),
            _range(member.costs["update_gflop"], "{:.3g}"),
            _shown(member.auc_iqm, digits),
            _shown(member.final_iqm, digits),
            "" if member.better is None else _shown(member.better) + (f" ({member.against})" if pairs else ""),
            f"{'-'.join(map(str, count))} x {len(member.auc)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} |" + " |" * (len(header) - 2) + " none finished |" for name in found.absent]
    tasks = ", ".join(found.tasks)
    lines += [
        "",
        f"AUC: {score} on average over training, without the evaluation at step 1. IQM: interquartile mean over all "
        "runs. Intervals: percentile bootstrap within tasks. P: by AUC, ties count one half. "
        f"{found.protocol}. Tasks: {tasks}.",
    ]
    return "\n".join([*lines, *_diagnosis_table(found)]) + "\n"


def _diagnosis_table(found: Comparison) -> list[str]:
    """Format the critics' diagnostic metrics, with a column for each that any group has."""
    names = [name for name in DIAGNOSIS if any(not math.isnan(member.diagnosis[name]) for member in found.members)]
    if not names:
        return []
    lines = ["", f"| {' | '.join(['group', *names])} |", "|---|" + "---:|" * len(names)]
    for member in found.members:
        shown = ("" if math.isnan(member.diagnosis[name]) else f"{member.diagnosis[name]:.3g}" for name in names)
        lines.append(f"| {' | '.join([member.name.replace('|', chr(92) + '|'), *shown])} |")
    return [*lines, "", "The critics' diagnosis on validation data in the last row of train.csv, mean over runs."]


def _shown(estimate: Estimate, digits: int = 2) -> str:
    if math.isnan(estimate.value):
        return ""
    value, low, high = (f"{number:,.{digits}f}" for number in estimate)
    return f"{value} [{low}, {high}]" if math.isfinite(estimate.low) else value


def _range(values: Sequence[float], form: str) -> str:
    shown = list(dict.fromkeys(form.format(value) for value in sorted(values) if not math.isnan(value)))
    return " - ".join(dict.fromkeys(shown[:1] + shown[-1:]))
