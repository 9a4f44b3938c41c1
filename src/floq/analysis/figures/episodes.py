"""Figures of episodes: the critic's value, reward and success over time; and a path through a maze over its values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from floq.analysis.figures.style import BLUE, BOX, INK, ORANGE, RC, TITLE, figure, legend_below, make_drawable
from floq.analysis.video import Panel
from floq.envs.environments import Seed

PANEL = (6.4, 4.8)  # inches of a panel, at 100 dots
COLUMNS = 3  # maximum number of episodes in a row
WINDOWS = 50  # a trace that is longer gets a running mean, whose window is this fraction of it
GREEN = "#3a8a2e"
EARNED = "what it then earned, discounted (past the time limit: Q)"


class Played(NamedTuple):
    """Recorded episode.

    seed: of its reset: that of the run, the step, and the episode's number in the evaluation. decided: the times at
    which the policy chose an action or a chunk. actions: (steps, size). values: Q of these choices. rewards: (steps,).
    earned: (steps,), discounted return from each time on, scaled like the values. succeeded: the first step after which
    the success flag was set, None if it never was. flagged: whether there is one. cut_off: by the time limit.
    """

    seed: Seed
    decided: np.ndarray
    actions: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    earned: np.ndarray
    succeeded: int | None
    flagged: bool
    cut_off: bool

    @property
    def number(self) -> int:
        """Index in the evaluation."""
        return self.seed[-1]

    @property
    def outcome(self) -> str:
        """Outcome in words."""
        if self.succeeded is not None:
            return f"success at step {self.succeeded}"
        return f"no success in {len(self.rewards)} steps" if self.flagged else f"return {self.rewards.sum():.4g}"


def draw_values(path: Path, played: Sequence[Played], title: str) -> str | None:
    """Draw value and reward over the time of some episodes. Returns a sentence on the result; None if there are no
    episodes."""
    if not played:
        return None
    across = min(COLUMNS, len(played))
    down = -(-len(played) // across)
    layout = {"rows": 2 * down, "columns": across, "height_ratios": (2.4, 1) * down, "sharey": False}
    title = f"What the critic expects along the way\n{title}"
    with figure(path, max(6.0, 4.2 * across), 4.2 * down + 0.7, title=title, **layout) as (fig, axes):
        grid = np.array(axes).reshape(down, 2, across)
        for episode, (above, below) in zip(played, grid.swapaxes(1, 2).reshape(-1, 2), strict=False):
            draw_value(above, episode)
            draw_reward(below, episode)
            above.set_title(f"episode {episode.number}: {episode.outcome}")
        grid[0, 0, 0].set_ylabel("return from here on")
        legend_below(fig, grid[0, 0, 0], 6 if across > 2 else 1)
    errors = [e.values - e.earned[e.decided] for e in played]
    bias, size = np.mean(np.concatenate(errors)), np.mean(np.abs(np.concatenate(errors)))
    successes = sum(e.succeeded is not None for e in played)
    found = f"{successes} of {len(played)} succeed; " if any(e.flagged for e in played) else ""
    side = "above" if bias > 0 else "below"
    return f"{found}Q is on average {abs(bias):.2g} {side} what the episodes then earn (mean distance {size:.2g})"


def draw_panel(episode: Played, title: str) -> Panel:
    """Draw value and reward over the time of an episode, as pixels beside the frames of a film."""
    with matplotlib.rc_context(RC):
        fig = Figure(PANEL, layout="constrained")
        canvas = FigureCanvasAgg(fig)
        fig.suptitle(title, **TITLE)
        above, below = fig.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
        draw_value(above, episode)
        draw_reward(below, episode)
        above.set(ylabel="return from here on")
        above.legend(fontsize=8)
        make_drawable(fig)
        canvas.draw()
        times = np.arange(len(episode.actions) + 1)
        columns = above.transData.transform(np.stack([times, 0 * times], axis=1))[:, 0]
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return Panel(pixels, np.clip(columns.round(), 0, pixels.shape[1] - 1).astype(int))


def draw_value(ax: Axes, episode: Played) -> None:
    """Draw Q and the discounted return over the time of an episode."""
    steps = np.arange(len(episode.rewards))
    ax.plot(steps, episode.earned, color=ORANGE, linewidth=1.4, linestyle="--", label=EARNED)
    window = max(1, len(episode.values) // WINDOWS)
    width, alpha = (0.7, 0.45) if window > 1 else (1.6, 1.0)
    named = "Q of what the policy does"
    ax.plot(episode.decided, episode.values, color=BLUE, label=named, linewidth=width, alpha=alpha)
    if window > 1:
        middle = np.convolve(episode.values, np.ones(window) / window, "valid")
        at = episode.decided[window // 2 : window // 2 + len(middle)]
        ax.plot(at, middle, color=BLUE, linewidth=2, label=f"its mean over {window} decisions")
    _mark_success(ax, episode)


def draw_reward(ax: Axes, episode: Played) -> None:
    """Draw the reward over the time of an episode."""
    ax.step(np.arange(len(episode.rewards)), episode.rewards, where="post", color=INK, linewidth=1)
    ax.set(xlabel="step of the episode", ylabel="reward")
    span = max(float(np.ptp(episode.rewards)), 0.1)
    ax.set_ylim(episode.rewards.min() - 0.12 * span, episode.rewards.max() + 0.12 * span)
    _mark_success(ax, episode, named=False)


def _mark_success(ax: Axes, episode: Played, named: bool = True) -> None:
    if episode.succeeded is None:
        return
    ax.axvline(episode.succeeded, color=GREEN, linewidth=1.6)
    if named:
        look = {"ha": "right", "textcoords": "offset points", "fontsize": 9, "weight": "bold"}
        at = episode.succeeded, 0.02
        ax.annotate("success", at, (-6, 4), xycoords=("data", "axes fraction"), color=GREEN, bbox=BOX, **look)


def draw_value_map(
    path: Path, maze: Any, positions: np.ndarray, values: np.ndarray, walk: np.ndarray, outcome: str
) -> None:
    """Draw the critic's values (n,) at positions (n, 2) of an environment of OGBench with a maze and a goal, and the
    policy's path (steps, 2) from start to end, with its outcome in words."""
    walls, cell, goal = np.asarray(maze.maze_map), maze._maze_unit, maze.cur_goal_xy
    offset = maze._offset_x, maze._offset_y  # cell (i, j) is centred at x = j * cell - offset_x, y likewise
    rows, columns = walls.shape
    width = 5.6
    with figure(path, width + 1.2, width * rows / columns + 0.6) as (fig, (ax,)):
        low, high = np.quantile(values, [0.01, 1.0])
        look = {"cmap": "viridis", "vmin": low, "vmax": high, "linewidths": 0.1}
        area = ax.hexbin(*positions.T, C=values, gridsize=(12 * columns, 7 * rows), **look)
        for i, j in np.argwhere(walls == 1):
            corner = (j * cell - offset[0] - cell / 2, i * cell - offset[1] - cell / 2)
            ax.add_patch(Rectangle(corner, cell, cell, facecolor="#4a4a4a", edgecolor="none"))
        ax.plot(*walk.T, color="white", linewidth=3.2, solid_capstyle="round")
        ax.plot(*walk.T, color=ORANGE, linewidth=1.8, solid_capstyle="round")
        ax.plot(*walk[0], "o", color="white", markeredgecolor=INK, markersize=9)
        ax.plot(*goal, "*", color="gold", markeredgecolor=INK, markersize=17)
        for (x, y), name in ((walk[0], "start"), (goal, "goal")):
            look = {"ha": "center", "fontsize": 10, "weight": "bold", "color": INK}
            label = ax.annotate(name, (x, y), (0, 12), textcoords="offset points", **look)
            label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        ax.set_xlim(-offset[0] - cell / 2, (columns - 0.5) * cell - offset[0])
        ax.set_ylim(-offset[1] - cell / 2, (rows - 0.5) * cell - offset[1])
        title = "What the critic has learned, and where the greedy policy goes"
        name = f"orange: the policy's path, {outcome}\ncoloured: states that the data visits; white: floor without data"
        ax.set(aspect="equal", xticks=[], yticks=[], title=title, xlabel=name)
        ax.grid(visible=False)
        fig.colorbar(area, ax=ax, shrink=0.8, label="learned value (return from here on)")
