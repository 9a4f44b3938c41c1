"""Learning curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from floq.analysis.figures.style import BLUE, ORANGE, figure, mark_online
from floq.analysis.metrics import Metric
from floq.analysis.statistics import wilson_interval

Explored: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Steps, and a metric's mean over the exploration episodes at each."""


def learning_curve(
    path: Path,
    metric: Metric,
    steps: Sequence[float],
    values: Sequence[float],
    episodes: int,
    title: str,
    protocol: str,
    boundary: int | None = None,
    explored: Explored = ((), ()),
) -> None:
    """Draw one run's metric over its steps; a rate with its 95% interval over episodes. At `boundary` gradient steps on
    data end, and environment steps begin; None for a run without the latter. `explored` is the metric of the
    exploration episodes, from which it learned."""
    with figure(path, 6.4, 4.0) as (_, (ax,)):
        ax.plot(steps, values, "o-", color=BLUE, markersize=4)
        shown = f"{values[-1]:.0%}" if metric.is_rate else metric.shown(values[-1])
        at = steps[-1], values[-1]
        ax.annotate(shown, at, xytext=(6, 0), textcoords="offset points", va="center", color=BLUE)
        ax.set(title=title, ylabel=metric.name)
        note = protocol
        if metric.is_rate:
            low, high = np.transpose([wilson_interval(round(value * episodes), episodes) for value in values])
            ax.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
            ax.set_ylim(-0.03, 1.05)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            note = f"shaded: 95% interval over {protocol}"
        _phases(ax, boundary, explored)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.text(0.0, -0.19, note, transform=ax.transAxes, fontsize=8, color="#666666", va="top")


def _phases(ax: Axes, boundary: int | None, explored: Explored) -> None:
    """Label the steps, mark where a run goes online, and draw its exploration metric."""
    if len(explored[0]):
        ax.plot(*explored, color=ORANGE, linewidth=0.8, label="exploring")
        ax.legend(fontsize=8)
    if not boundary:  # a single phase
        ax.set(xlabel="gradient steps" if boundary is None else "environment steps")
        return
    ax.set(xlabel="gradient steps, then environment steps")
    mark_online(ax, boundary)


def held_out_curve(
    path: Path,
    steps: Sequence[float],
    values: Sequence[float],
    data_returns: Sequence[float],
    td_errors: Sequence[float],
    title: str,
) -> None:
    """Draw the evaluation of a run without an environment: the critic's value of its policy beside the return of the
    data from the same states, and the TD error of held-out transitions."""
    with figure(path, 8.0, 3.8, 1, 2) as (fig, (left, right)):
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
        left.plot(steps, values, "o-", color=BLUE, markersize=4, label="policy, according to the critic")
        left.plot(steps, data_returns, "--", color=ORANGE, label="data, discounted return")
        left.set(xlabel="gradient steps", ylabel="value of held-out initial states")
        left.legend(fontsize=8)
        right.plot(steps, td_errors, "o-", color=BLUE, markersize=4)
        right.set(xlabel="gradient steps", ylabel="mean |TD error|, held-out transitions")
        if finite := [x for x in td_errors if np.isfinite(x)]:
            right.set_ylim(0, 1.1 * max(finite) or 1.0)
        for ax in (left, right):
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))
