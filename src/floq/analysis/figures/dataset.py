"""Overview figure of a dataset."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from floq.analysis.figures.style import BLUE, FAINT, ORANGE, figure
from floq.data.arrays import Trajectories, bounds
from floq.data.description import reward_over_time, summarise_episodes

BINS = 40
SHEET = (5, 8)  # episodes and times in a contact sheet
SAMPLE = 50_000  # rows whose actions and positions are drawn


def dataset_picture(path: Path, title: str, data: Trajectories, has_rewards: bool, is_maze: bool) -> None:
    """Draw an overview of a dataset: lengths and returns of its episodes, rewards and actions; of a maze, positions;
    and a contact sheet of each image, with some episodes from left to right."""
    images = data.dims[0].images
    is_maze = is_maze and data.dims[0].is_vector and data.observations.shape[1] > 1
    episodes, count = summarise_episodes(data), len(data.ends)
    sample = np.linspace(0, count - 1, min(count, SAMPLE)).astype(int)
    panels = 2 + 2 * has_rewards + is_maze + len(images)
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
        for name in images:
            ax = next(free)
            ax.imshow(contact_sheet(data, name), interpolation="nearest")
            ax.set(xticks=[], yticks=[], title=f"{name}, an episode in each row")
            ax.grid(False)
        for ax in free:
            ax.set_visible(False)


def contact_sheet(data: Trajectories, name: str) -> np.ndarray:
    """Return images of `SHEET[0]` episodes below each other, each at `SHEET[1]` evenly spaced times, as one image of
    uint8; the newest three channels, or all as shades of grey."""
    first, last = bounds(data)
    first, last = first[last > first], last[last > first]
    chosen = np.linspace(0, len(first) - 1, min(len(first), SHEET[0])).astype(int)
    rows = np.array([np.linspace(first[i], last[i], SHEET[1]).astype(int) for i in chosen])
    shown = data.observations[name][rows]
    channels = shown.shape[-1]
    shown = np.repeat(shown[..., -1:], 3, axis=-1) if channels < 3 else shown[..., -3:]
    padded = np.pad(shown, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    episodes, times, height, width, _ = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(episodes * height, times * width, 3)


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
