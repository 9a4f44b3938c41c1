"""Learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from floq.analysis.figures.style import BLUE, COLOURS, ORANGE, figure, mark_online
from floq.analysis.statistics import mean_interval, wilson_interval

Explored: TypeAlias = tuple[Sequence[float], Sequence[float]]
"""Steps, and a metric's mean over the exploration episodes at each."""


def learning_curve(
    path: Path,
    steps: Sequence[float],
    success: Sequence[float],
    episodes: int,
    title: str,
    protocol: str,
    boundary: int | None = None,
    explored: Explored = ((), ()),
) -> None:
    """Draw one run's success over its steps, with its 95% interval over episodes. At `boundary` gradient steps on data
    end, and environment steps begin; None for a run without the latter. `explored` is the success of the exploration
    episodes, from which it learned."""
    intervals = [wilson_interval(round(s * episodes), episodes) for s in success]
    with figure(path, 6.4, 4.0) as (_, (ax,)):
        ax.fill_between(
            steps, [low for low, _ in intervals], [high for _, high in intervals], color=BLUE, alpha=0.15, linewidth=0
        )
        ax.plot(steps, success, "o-", color=BLUE, markersize=4)
        ax.annotate(
            f"{success[-1]:.0%}",
            (steps[-1], success[-1]),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=BLUE,
        )
        ax.set(title=title, ylabel="success rate", ylim=(-0.03, 1.05))
        _phases(ax, boundary, explored)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.text(
            0.0,
            -0.19,
            f"shaded: 95% interval over {protocol}",
            transform=ax.transAxes,
            fontsize=8,
            color="#666666",
            va="top",
        )


def return_curve(
    path: Path,
    steps: Sequence[float],
    returns: Sequence[float],
    title: str,
    protocol: str,
    boundary: int | None = None,
    explored: Explored = ((), ()),
) -> None:
    """Draw one run's mean return over its steps; `boundary` and `explored` as in `learning_curve`."""
    with figure(path, 6.4, 4.0) as (_, (ax,)):
        ax.plot(steps, returns, "o-", color=BLUE, markersize=4)
        ax.annotate(
            f"{returns[-1]:.4g}", (steps[-1], returns[-1]), xytext=(6, 0), textcoords="offset points", va="center"
        )
        ax.set(title=title, ylabel="return of an episode, mean")
        _phases(ax, boundary, explored)
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.text(0.0, -0.19, protocol, transform=ax.transAxes, fontsize=8, color="#666666", va="top")


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
            right.set_ylim(0, 1.1 * max(finite))
        for ax in (left, right):
            ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def compared_curves(
    path: Path, groups: Mapping[str, tuple[Sequence[float], np.ndarray]], title: str, protocol: str
) -> None:
    """Draw several groups of runs: each seed as a thin line, their mean as a thick one, and its 95% interval.

    Args:
        path: the picture's file.
        groups: by name, gradient steps and success of shape (seeds, steps).
        title: of the figure.
        protocol: of the evaluation.
    """
    with figure(path, 7.2, 4.2) as (_, (ax,)):
        for (name, (steps, success)), colour in zip(groups.items(), COLOURS, strict=False):
            low, high = np.transpose([mean_interval(column) for column in success.T]).clip(0, 1)
            ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.plot(steps, success.T, color=colour, alpha=0.35, linewidth=0.8)
            mean = success.mean(axis=0)
            ax.plot(
                steps,
                mean,
                "o-",
                color=colour,
                markersize=4,
                label=f"{name}: {mean[-1]:.0%} at the end, {len(success)} seeds",
            )
        ax.set(xlabel="gradient steps", ylabel="success rate", ylim=(-0.03, 1.05))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_title(title, pad=16 * len(groups) + 8)  # the legend lies between the title and the curves
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        note = f"thin: seeds; shaded: 95% interval of their mean; {protocol}"
        ax.text(0.0, -0.19, note, transform=ax.transAxes, fontsize=8, color="#666666", va="top")
