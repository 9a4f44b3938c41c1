"""What runs are judged by: success where the environment says what that is, else return, else the held-out TD error."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from floq.analysis.report.runs import RunRecord


class Metric(NamedTuple):
    """A column of eval.csv. `more_is_better`: whether runs may be ranked by it; the TD error says that a critic agrees
    with itself, and ranks nobody's policy."""

    column: str
    name: str
    more_is_better: bool

    @property
    def is_rate(self) -> bool:
        return self is SUCCESS

    def shown(self, value: float) -> str:
        """A value of this metric, shortly; nothing for NaN."""
        if math.isnan(value):
            return ""
        return f"{value:.2f}" if self.is_rate else f"{value:.4g}"


SUCCESS = Metric("evaluation/success", "success rate", True)
RETURN = Metric("evaluation/episode.return", "return", True)
TD_ERROR = Metric("evaluation/td_error", "held-out TD error", False)
METRICS = (SUCCESS, RETURN, TD_ERROR)


def judged_by(runs: Iterable[RunRecord]) -> Metric:
    """The first metric of which any of these runs has a number."""
    runs = list(runs)
    for metric in METRICS:
        if any(np.isfinite(run.evaluations.get(metric.column, [math.nan])).any() for run in runs):
            return metric
    return SUCCESS if all(run.settings["env_name"] for run in runs) else TD_ERROR


def curve(run: RunRecord, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """A run's steps and values, where it has both."""
    values = run.evaluations.get(metric.column)
    if values is None:
        return np.array([]), np.array([])
    known = np.isfinite(values)
    return run.evaluations["step"][known], values[known]


def last(run: RunRecord, metric: Metric) -> float:
    """A run's newest value; NaN if that is none."""
    values = run.evaluations.get(metric.column)
    return float(values[-1]) if values is not None else math.nan
