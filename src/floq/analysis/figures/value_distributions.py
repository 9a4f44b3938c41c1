"""Figures of a critic's outputs at a few state-actions: histograms, quantiles, or one value per member."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from floq.analysis.figures.style import BLUE, COLOURS, INK, figure, legend_below, star


class ValueDistribution(NamedTuple):
    """Output of a critic at one state-action.

    x, said: centres of bins (bins,) and masses (members, bins); or probabilities (taus,) and quantiles (members, taus).
    q: the value that the critic reads out. targets: draws of the TD target.
    """

    name: str
    x: np.ndarray
    said: np.ndarray
    q: float
    targets: np.ndarray


def draw_histograms(path: Path, found: Sequence[ValueDistribution]) -> str | None:
    """Draw the histograms of a categorical critic. Returns a sentence on the result; None if there are none."""
    if not found:
        return None
    low = -0.03 * float(max(each.said.max() for each in found))
    title = "The histogram over returns that each network puts out; Q is its mean"
    with _panels(path, found, title, sharey=True) as axes:
        for each, ax in zip(found, axes, strict=True):
            half = (each.x[1] - each.x[0]) / 2
            for masses, look in _members(each.said):
                ax.stairs(masses, np.append(each.x - half, each.x[-1] + half), linewidth=1.3, **look)
            ax.axvline(each.q, color=INK, linewidth=1, linestyle="--", label="Q")
            ax.plot(each.targets, np.full(len(each.targets), low), "|", color=INK, clip_on=False)
            star(ax, float(each.targets.mean()), low, "TD target, draws and their mean")
            ax.set(xlabel="return")
        axes[0].set_ylabel("mass of a bin")
    widths = [float(np.sqrt(np.sum(each.said.mean(axis=0) * np.square(each.x - each.q)))) for each in found]
    return "standard deviation of the histogram " + _listed(found, widths)


def draw_quantiles(path: Path, found: Sequence[ValueDistribution]) -> str | None:
    """Draw the quantile functions of a quantile critic. Returns a sentence on the result; None if there are none."""
    if not found:
        return None
    with _panels(path, found, "The return at each probability tau, by each network; Q is the mean over tau") as axes:
        for each, ax in zip(found, axes, strict=True):
            for values, look in _members(each.said):
                ax.plot(each.x, values, linewidth=1.6, **look)
            ax.axhline(each.q, color=INK, linewidth=1, linestyle="--", label="Q")
            ax.plot(np.full(len(each.targets), 1.03), each.targets, "_", color=INK)
            star(ax, 1.03, float(each.targets.mean()), "TD targets, draws and their mean")
            ax.set(xlabel="tau", xlim=(0, 1.06))
        axes[0].set_ylabel("tau-quantile of the return")
    widths = [float(np.ptp(each.said.mean(axis=0))) for each in found]
    return "from the lowest to the highest quantile: " + _listed(found, widths)


@contextmanager
def _panels(path: Path, found: Sequence[ValueDistribution], title: str, sharey: bool = False) -> Iterator[list[Axes]]:
    """Open a figure with a panel for each state-action, and a legend below."""
    with figure(path, 3.7 * len(found), 4.2, 1, len(found), title, sharey=sharey) as (fig, axes):
        yield axes
        for each, ax in zip(found, axes, strict=True):
            ax.set_title(f"{each.name}: Q = {each.q:.1f}")
        legend_below(fig, axes[0])


def draw_members(
    path: Path, values: Float[np.ndarray, "pairs members"], targets: Float[np.ndarray, "draws pairs"], title: str
) -> str:
    """Draw the disagreement of ensemble members at some state-actions, and Q against its TD target. Returns a sentence
    on the result."""
    q, goals = values.mean(axis=1), targets.mean(axis=0)
    finding = f"half of {len(q)} state-actions have a TD error below {np.median(np.abs(goals - q)):.2g}"
    if values.shape[1] > 1:
        finding = f"members differ by {np.median(values.std(axis=1)):.2g} (median standard deviation); {finding}"
    with figure(path, 9.6, 4.3, 1, 2, title) as (_, (left, right)):
        for member, look in _members(values.T):
            left.plot(q, member - q, ".", markersize=4, alpha=0.7, **look)
        left.set(
            title="What each network says, less their mean",
            xlabel="Q, the mean of the networks (return)",
            ylabel="network less Q   (return)",
        )
        if values.shape[1] <= len(COLOURS):
            left.legend(fontsize=8)
        ends = [min(q.min(), goals.min()), max(q.max(), goals.max())]
        right.plot(ends, ends, color=INK, linewidth=1, linestyle="--", label="equal")
        right.plot(q, goals, ".", color=BLUE, markersize=4, alpha=0.7, label="a state-action")
        right.set(
            title="Against what it is trained towards", xlabel="Q (return)", ylabel="TD target, mean of its draws"
        )
        right.legend(fontsize=8)
        left.locator_params(axis="x", nbins=6)
    return finding


def _members(values: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield the values of each member, and its colour and label; the latter is None if there are too many members."""
    for number, (own, colour) in enumerate(zip(values, cycle(COLOURS), strict=False), 1):
        yield own, {"color": colour, "label": f"network {number}" if len(values) <= len(COLOURS) else None}


def _listed(found: Sequence[ValueDistribution], numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:.2g} ({each.name})" for each, number in zip(found, numbers, strict=True))
