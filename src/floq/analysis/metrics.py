"""Primary metric of runs: success if the environment defines it, else the return, else the held-out TD error."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from floq.analysis.report.runs import RunRecord


class Metric(NamedTuple):
    """A column of eval.csv. `more_is_better`: whether runs may be ranked by it; the TD error measures the critic's
    self-consistency and does not rank policies."""

    column: str
    name: str
    more_is_better: bool

    @property
    def is_rate(self) -> bool:
        """Whether its values are success rates, between 0 and 1."""
        return self is SUCCESS

    def shown(self, value: float) -> str:
        """Format a value of this metric; empty for NaN."""
        if math.isnan(value):
            return ""
        return f"{value:.2f}" if self.is_rate else f"{value:.4g}"


SUCCESS = Metric("evaluation/success", "success rate", True)
RETURN = Metric("evaluation/episode.return", "return", True)
TD_ERROR = Metric("evaluation/td_error", "held-out TD error", False)
METRICS = (SUCCESS, RETURN, TD_ERROR)


def primary_metric(runs: Iterable[RunRecord]) -> Metric:
    """Return the first metric in `METRICS` that has a finite value in any of these runs."""
    runs = list(runs)
    for metric in METRICS:
        if any(np.isfinite(run.evaluations.get(metric.column, [math.nan])).any() for run in runs):
            return metric
    return SUCCESS if all(run.settings["env_name"] for run in runs) else TD_ERROR


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
