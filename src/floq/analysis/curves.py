"""Learning curves."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.ticker import EngFormatter, PercentFormatter

from floq.analysis.statistics import wilson_interval
from floq.analysis.style import BLUE, figure


def learning_curve(
    path: Path, steps: Sequence[float], success: Sequence[float], episodes: int, title: str, protocol: str
) -> None:
    """Draw one run's success over gradient steps, with the interval that the number of episodes leaves open."""
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
        ax.set(title=title, xlabel="gradient steps", ylabel="success rate", ylim=(-0.03, 1.05))
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
