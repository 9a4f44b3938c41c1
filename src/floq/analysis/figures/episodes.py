"""Figures of episodes: the critic's value, reward and success over time."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from floq.analysis.figures.style import BLUE, BOX, FAINT, INK, ORANGE, figure, legend_below

COLUMNS = 3  # maximum number of episodes in a row
WINDOWS = 50  # a trace that is longer gets a running mean, whose window is this fraction of it
GREEN = "#3a8a2e"
EARNED = "what the episode then earned, discounted (where the time limit cut it off, Q stands for the rest)"


class Played(NamedTuple):
    """Recorded episode.

    number: index in the evaluation. decided: the times at which the policy chose an action or a chunk. actions: (steps,
    size). values: Q of these choices, at these times. rewards: (steps,). earned: (steps,), discounted return from each
    time on, scaled like the values. succeeded: the first step after which the environment's success flag was set, None
    if it never was. flagged: whether there is such a flag. cut_off: whether the time limit ended it.
    """

    number: int
    decided: np.ndarray
    actions: np.ndarray
    values: np.ndarray
    rewards: np.ndarray
    earned: np.ndarray
    succeeded: int | None
    flagged: bool
    cut_off: bool

    @property
    def outcome(self) -> str:
        """Outcome in words."""
        if self.succeeded is not None:
            return f"success at step {self.succeeded}"
        return f"no success in {len(self.rewards)} steps" if self.flagged else f"return {self.rewards.sum():.4g}"


def value_along(path: Path, played: Sequence[Played], title: str) -> str:
    """Draw value and reward over the time of some episodes. Returns a sentence on the result."""
    across = min(COLUMNS, len(played))
    down = -(-len(played) // across)
    layout = {"rows": 2 * down, "columns": across, "height_ratios": (2.4, 1) * down, "sharey": False}
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


def draw_value(ax: Axes, episode: Played, faint: bool = False) -> None:
    """Draw Q and the discounted return over the time of an episode; `faint` as the background of an animated line."""
    steps = np.arange(len(episode.rewards))
    ax.plot(steps, episode.earned, color=ORANGE, linewidth=1.4, linestyle="--", label=EARNED)
    if faint:
        ax.plot(episode.decided, episode.values, color=FAINT, linewidth=0.6, alpha=0.6)
    else:
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
        look = {
            "ha": "right",
            "textcoords": "offset points",
            "fontsize": 9,
            "color": GREEN,
            "weight": "bold",
            "bbox": BOX,
        }
        ax.annotate("success", (episode.succeeded, 0.02), (-6, 4), xycoords=("data", "axes fraction"), **look)
