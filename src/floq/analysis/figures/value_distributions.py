"""Figures of a critic's outputs at a few state-actions: histograms, quantiles, or one value per member."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from floq.analysis.figures.style import BLUE, COLOURS, INK, figure, star


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


def histograms(path: Path, value_distributions: Sequence[ValueDistribution]) -> str:
    """Draw the histograms of a categorical critic. Returns a sentence on the result."""
    masses = [distribution.said.mean(axis=0) for distribution in value_distributions]
    widths = [
        float(np.sqrt(np.sum(m * np.square(d.x - d.q)))) for m, d in zip(masses, value_distributions, strict=True)
    ]
    finding = "standard deviation of the histogram " + _listed(value_distributions, widths)
    with figure(path, 3.7 * len(value_distributions), 4.2, 1, len(value_distributions), sharey=True) as (fig, axes):
        fig.suptitle(
            "The histogram over returns that each network puts out; Q is its mean",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=12,
        )
        for distribution, ax in zip(value_distributions, axes, strict=True):
            for member, (masses_of, colour) in enumerate(zip(distribution.said, cycle(COLOURS), strict=False)):
                ax.stairs(
                    masses_of,
                    _edges(distribution.x),
                    color=colour,
                    fill=member == 0,
                    alpha=0.35 if not member else 1,
                    linewidth=1.3,
                    label=_numbered(member, distribution.said),
                )
            ax.axvline(distribution.q, color=INK, linewidth=1, linestyle="--", label="Q")
            low = -0.03 * float(max(d.said.max() for d in value_distributions))
            ax.plot(distribution.targets, np.full(len(distribution.targets), low), "|", color=INK, clip_on=False)
            star(ax, float(distribution.targets.mean()), low, "TD target, draws and their mean")
            ax.set(title=f"{distribution.name}: Q = {distribution.q:.1f}", xlabel="return")
        axes[0].set_ylabel("mass of a bin")
        _legend(fig, axes[0])
    return finding


def quantile_functions(path: Path, value_distributions: Sequence[ValueDistribution]) -> str:
    """Draw the quantile functions of a quantile critic. Returns a sentence on the result."""
    widths = [float(np.ptp(distribution.said.mean(axis=0))) for distribution in value_distributions]
    finding = "from the lowest to the highest quantile: " + _listed(value_distributions, widths)
    with figure(path, 3.7 * len(value_distributions), 4.2, 1, len(value_distributions)) as (fig, axes):
        fig.suptitle(
            "The return at each probability tau, by each network; Q is the mean over tau",
            x=0.01,
            ha="left",
            weight="bold",
            fontsize=12,
        )
        for distribution, ax in zip(value_distributions, axes, strict=True):
            for member, (values, colour) in enumerate(zip(distribution.said, cycle(COLOURS), strict=False)):
                ax.plot(distribution.x, values, color=colour, linewidth=1.6, label=_numbered(member, distribution.said))
            ax.axhline(distribution.q, color=INK, linewidth=1, linestyle="--", label="Q")
            ax.plot(np.full(len(distribution.targets), 1.03), distribution.targets, "_", color=INK)
            star(ax, 1.03, float(distribution.targets.mean()), "TD targets, draws and their mean")
            ax.set(title=f"{distribution.name}: Q = {distribution.q:.1f}", xlabel="tau", xlim=(0, 1.06))
        axes[0].set_ylabel("tau-quantile of the return")
        _legend(fig, axes[0])
    return finding


def member_values(path: Path, values: np.ndarray, targets: np.ndarray, title: str) -> str:
    """Draw the disagreement of ensemble members, and Q against its TD target.

    Args:
        path: the picture's file.
        values: (state-actions, members).
        targets: (draws, state-actions).
        title: of the figure.

    Returns:
        A sentence on the result.
    """
    q, spread = values.mean(axis=1), values.std(axis=1)
    td_errors = targets.mean(axis=0) - q
    finding = f"half of {len(q)} state-actions have a TD error below {np.median(np.abs(td_errors)):.2g}"
    if values.shape[1] > 1:
        finding = f"members differ by {np.median(spread):.2g} (median standard deviation); {finding}"
    with figure(path, 9.6, 4.3, 1, 2) as (fig, (left, right)):
        fig.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
        for member, colour in zip(range(values.shape[1]), cycle(COLOURS), strict=False):
            named = _numbered(member, values.T)
            left.plot(q, values[:, member] - q, ".", color=colour, markersize=4, alpha=0.7, label=named)
        left.set(
            title="What each network says, less their mean",
            xlabel="Q, the mean of the networks (return)",
            ylabel="network less Q   (return)",
        )
        if values.shape[1] <= len(COLOURS):
            left.legend(fontsize=8)
        low, high = min(q.min(), targets.mean(axis=0).min()), max(q.max(), targets.mean(axis=0).max())
        right.plot([low, high], [low, high], color=INK, linewidth=1, linestyle="--", label="equal")
        right.plot(q, targets.mean(axis=0), ".", color=BLUE, markersize=4, alpha=0.7, label="a state-action")
        right.set(
            title="Against what it is trained towards", xlabel="Q (return)", ylabel="TD target, mean of its draws"
        )
        right.legend(fontsize=8)
        left.locator_params(axis="x", nbins=6)
    return finding


def _numbered(member: int, of_members: np.ndarray) -> str | None:
    """Return the label of a member in a legend; None if there are too many members."""
    return f"network {member + 1}" if len(of_members) <= len(COLOURS) else None


def _edges(centres: np.ndarray) -> np.ndarray:
    half = (centres[1] - centres[0]) / 2
    return np.append(centres - half, centres[-1] + half)


def _listed(value_distributions: Sequence[ValueDistribution], numbers: Sequence[float]) -> str:
    return ", ".join(
        f"{number:.2g} ({distribution.name})" for distribution, number in zip(value_distributions, numbers, strict=True)
    )


def _legend(fig, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), fontsize=9)
