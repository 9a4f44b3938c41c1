"""Overview figure of a dataset."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from floq.analysis.figures.style import BLUE, FAINT, ORANGE, figure

BINS = 40


def dataset_picture(
    path: Path,
    title: str,
    lengths: np.ndarray,
    returns: np.ndarray | None,
    reward_over_time: np.ndarray | None,
    actions: np.ndarray,
    positions: np.ndarray | None,
) -> None:
    """Draw an overview of a dataset.

    Args:
        path: the picture's file.
        title: the dataset's name.
        lengths: (episodes,).
        returns: (episodes,), or None where there are no rewards.
        reward_over_time: mean reward at each time within an episode, or None.
        actions: (transitions, size), all or a sample.
        positions: (rows, 2), positions of the states on the floor of a maze, or None.
    """
    panels = 2 + 2 * (returns is not None) + (positions is not None)
    columns = 2 if panels % 2 == 0 else 3
    rows = -(-panels // columns)
    with figure(path, 3.4 * columns, 2.9 * rows + 0.3, rows, columns) as (fig, axes):
        fig.suptitle(title, x=0.01, ha="left", fontweight="bold")
        free = iter(axes)
        _histogram(next(free), lengths, "transitions in an episode", "episodes")
        if returns is not None and reward_over_time is not None:
            _histogram(next(free), returns, "return, undiscounted", "episodes")
            ax = next(free)
            ax.plot(reward_over_time, color=BLUE, linewidth=1)
            ax.set(xlabel="time in the episode", ylabel="mean reward")
        ax = next(free)
        edges = np.linspace(-1, 1, BINS + 1).tolist()
        for column in actions.T:
            ax.hist(np.clip(column, -1, 1), edges, histtype="step", density=True, linewidth=1)
        ax.set(xlabel="action, one line per component", ylabel="density", xlim=(-1.02, 1.02))
        if positions is not None:
            ax = next(free)
            ax.hist2d(*positions.T, bins=120, norm=LogNorm(), cmap="viridis", rasterized=True)
            ax.set(xlabel="x", ylabel="y", aspect="equal", title="states (log count)")
            ax.grid(False)
        for ax in free:
            ax.set_axis_off()


def _histogram(ax: Axes, values: np.ndarray, name: str, what: str) -> None:
    if values.min() == values.max():
        ax.bar([0], [len(values)], width=0.4, color=FAINT)
        ax.set(xticks=[0], xticklabels=[f"all {values[0]:.4g}"], xlim=(-1, 1), xlabel=name, ylabel=what)
        return
    ax.hist(values, BINS, color=BLUE)
    ax.axvline(float(np.mean(values)), color=ORANGE, linewidth=1, label=f"mean {np.mean(values):.4g}")
    ax.legend(fontsize=8)
    ax.locator_params(axis="x", nbins=5)
    ax.set(xlabel=name, ylabel=what)
