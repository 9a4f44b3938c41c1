"""The table of metrics, and the score of a run: by which of them it is judged, and how its evaluations become one
number. Also the diagnostic metrics of critics."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from floq.analysis.statistics import area_under_curve
from floq.runs.record import SUCCESS_RATE, RunRecord


class Metric(NamedTuple):
    """A column of eval.csv, its name and a short one. `more_is_better`: whether runs may be ranked by it; the TD error
    measures the critic's self-consistency and does not rank policies."""

    column: str
    name: str
    short: str
    more_is_better: bool

    @property
    def is_rate(self) -> bool:
        """Whether its values are success rates, between 0 and 1."""
        return self is SUCCESS

    def shown(self, value: float) -> str:
        """Format a value of this metric; empty for NaN."""
        if math.isnan(value):
            return ""
        return f"{value:z.2f}" if self.is_rate else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


SUCCESS = Metric(SUCCESS_RATE, "success rate", "success", True)
RETURN = Metric("evaluation/episode.return", "return", "return", True)
SCORE = Metric("evaluation/episode.normalized_return", "normalized return", "normalized", True)
TD_ERROR = Metric("evaluation/td_error", "held-out TD error", "TD error", False)
METRICS = {metric.short: metric for metric in (SUCCESS, SCORE, RETURN, TD_ERROR)}
"""Metrics that runs are judged by, each by the first that it has."""

DIAGNOSTICS = {
    "z0_spread": "standard deviation of the value\nover source noise",
    "quantile_spread": "standard deviation of the value\nover quantiles",
    "return_spread": "standard deviation\nof the histogram",
    "member_spread": "standard deviation of Q\nover the networks",
    "contraction": "mean of dv/dz along the paths\n(negative: errors shrink)",
    "curvature": "mean distance of z's path\nfrom a straight line",
    "one_pass_gap": "distance of z(0) + v(0, z(0))\nfrom where the path ends",
    "outside_histogram": "share of stops outside\nthe support of z's histogram",
    "mass_at_ends": "mass in the first and last bin\n(large: support too narrow)",
    "feature_norm": "mean norm of the\nlast layer's features",
    "feature_rank": "in how many directions the\nlast layer's features point",
    "abs_td_error": "mean |TD target - Q|\n(held-out)",
    "q": "mean Q",
}
"""Diagnostic metrics of critics on validation data, in the order in which they are shown, and their meanings."""


def primary_metric(runs: Iterable[RunRecord]) -> Metric:
    """Return the metric that most of these runs have a finite value of; of several, the first in `METRICS`."""
    runs = list(runs)
    has = lambda run, metric: np.isfinite(run.evaluations.get(metric.column, [math.nan])).any()  # noqa: E731
    counts = {metric: sum(has(run, metric) for run in runs) for metric in METRICS.values()}
    if any(counts.values()):
        return max(counts, key=lambda metric: counts[metric])
    return SUCCESS if all(run.settings["env_name"] for run in runs) else TD_ERROR


def with_score(evaluation: Mapping[str, Any], score_range: tuple[float, float] | None) -> dict[str, Any]:
    """Return rows of evaluation, or exploration, with their returns as scores, 0 and 100 for the two of `score_range`
    (D4RL, arXiv 2004.07219), if there is one."""
    if score_range is None:
        return dict(evaluation)
    low, high = score_range
    returns = {name: np.asarray(x) for name, x in evaluation.items() if name.endswith("/episode.return")}
    scores = {
        name.replace("return", "normalized_return"): 100 * (x - low) / (high - low) for name, x in returns.items()
    }
    return {**evaluation, **scores}


def primary_score(evaluation: Mapping[str, float]) -> tuple[Metric, float] | None:
    """Return the first metric in `METRICS` that is finite in a row of eval.csv, and its value; None if none is."""
    known = ((metric, evaluation.get(metric.column, math.nan)) for metric in METRICS.values())
    return next((both for both in known if math.isfinite(both[1])), None)


def curve(run: RunRecord, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of a run's metric, where the value is finite."""
    values = run.evaluations.get(metric.column)
    if values is None:
        return np.array([]), np.array([])
    known = np.isfinite(values)
    return run.evaluations["step"][known], values[known]


def last(run: RunRecord, metric: Metric) -> float:
    """Return a run's newest value; NaN if there is none."""
    values = run.evaluations.get(metric.column)
    return float(values[-1]) if values is not None else math.nan


def area(run: RunRecord, metric: Metric) -> float:
    """Return the area under a run's learning curve: its average over training. The first evaluation, before any
    learning, counts only if it is the only one. NaN if there is none."""
    steps, values = curve(run, metric)
    learned = slice(len(steps) > 1, None)
    return area_under_curve(steps[learned], values[learned]) if len(steps) else math.nan
