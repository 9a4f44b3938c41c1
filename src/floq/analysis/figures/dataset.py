"""Overview figure of a dataset."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from floq.analysis.figures.style import BLUE, FAINT, ORANGE, figure
from floq.data.arrays import Trajectories
from floq.data.description import reward_over_time, summarise_episodes

BINS = 40
SAMPLE = 50_000  # rows whose actions and positions are drawn


def dataset_picture(path: Path, title: str, data: Trajectories, has_rewards: bool, is_maze: bool) -> None:
    """Draw an overview of a dataset: lengths and returns of its episodes, rewards and actions; of a maze, positions."""
    episodes, count = summarise_episodes(data), len(data.ends)
    sample = np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)
    panels = 2 + 2 * has_rewards + is_maze
    columns = 2 if panels % 2 == 0 else 3
    rows = -(-panels // columns)
    with figure(path, 3.4 * columns, 2.9 * rows + 0.3, rows, columns, title) as (_, axes):
        free = iter(axes)
        _histogram(next(free), episodes.lengths, "transitions in an episode", "episodes")
        if has_rewards:
            _histogram(next(free), episodes.returns, "return, undiscounted", "episodes")
            ax = next(free)
            ax.plot(reward_over_time(data), color=BLUE, linewidth=1)
            ax.set(xlabel="time in the episode", ylabel="mean reward")
        ax = next(free)
        edges = np.linspace(-1, 1, BINS + 1).tolist()
        for column in data.actions[sample].T:
            ax.hist(np.clip(column, -1, 1), edges, histtype="step", density=True, linewidth=1)
        ax.set(xlabel="action, one line per component", ylabel="density", xlim=(-1.02, 1.02))
        if is_maze:
            ax, positions = next(free), data.observations[sample, :2]
            ax.hist2d(*positions.T, bins=120, norm=LogNorm(), cmap="viridis", rasterized=True)
            ax.set(xlabel="x", ylabel="y", aspect="equal", title="states (log count)")
            ax.grid(False)


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
