"""Figures of a flow critic's accuracy: error of Q over the number of steps, and remaining spread of source noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.ticker import NullLocator

from floq.analysis.figures.style import BLUE, FAINT, INK, ORANGE, figure, legend_below

SHOWN = 12  # state-actions that are drawn one by one


def settling(path: Path, counts: Sequence[int], values: Float[np.ndarray, "pairs counts"], trained: int) -> str:
    """Draw the convergence of Q over the number of integration steps. Returns a sentence on the result.

    Args:
        path: the picture's file.
        counts: numbers of steps K, of which the last counts as exact.
        values: Q_K of some state-actions, in the order of the value.
        trained: the K of the training, one of `counts`.
    """
    off = np.abs(values - values[:, -1:])
    at = list(counts).index(trained)
    ninetieth, half = np.quantile(off[:, at], [0.9, 0.5])
    low, high = np.quantile(values[:, -1], [0.05, 0.95])
    finding = f"with K={trained}, Q is within {ninetieth:.2g} of K={counts[-1]} for 90% of states (median {half:.2g})"
    with figure(path, 10.4, 4.5, 1, 2, f"How Q settles with K: {finding}") as (fig, (left, right)):
        shown = np.linspace(0, len(values) - 1, SHOWN).astype(int)
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(shown)))
        for row, colour in zip(shown, colours, strict=True):
            left.plot(counts, values[row], ".-", color=colour, linewidth=1.2)
        left.set(ylabel="Q_K(s, a)   (return)", title=f"{len(shown)} state-actions, by their value")
        for share, shade in (((0.05, 0.95), 0.15), ((0.25, 0.75), 0.3)):
            band = np.quantile(values - values[:, -1:], share, axis=0)
            name = f"{share[0]:.0%} to {share[1]:.0%} of {len(values)} state-actions"
            right.fill_between(counts, *band, color=BLUE, alpha=shade, linewidth=0, label=name)
        right.plot(counts, np.median(values - values[:, -1:], axis=0), "o-", color=BLUE, markersize=4, label="median")
        right.set(
            ylabel=f"Q_K less Q_{counts[-1]}   (return)",
            title=f"error of Q; 90% of Q lie in {low:.3g} to {high:.3g}",
        )
        legend_below(fig, right)
        for ax in (left, right):
            ax.axvline(trained, color=ORANGE, linewidth=1.2, linestyle="--")
            ax.set_xscale("log", base=2)
            names = [f"{count}\ntrained" if count == trained else str(count) for count in counts]
            ax.set(xticks=counts, xticklabels=names, xlabel="integration steps K")
            ax.get_xticklabels()[at].set(color=ORANGE, weight="bold")
            ax.xaxis.set_minor_locator(NullLocator())
    return finding


def noise_left(
    path: Path,
    z_0: Float[np.ndarray, " samples"],
    ends: Mapping[int, Float[np.ndarray, "pairs members samples"]],
    examples: Sequence[tuple[str, int]],
) -> str:
    """Draw the values z(1) of the source samples over training; an ideal flow maps all samples to one value. Returns a
    sentence on the result.

    Args:
        path: the picture's file.
        z_0: source samples, evenly spaced over the noise interval, whose width must be positive.
        ends: by training step, their values z(1) for some state-actions.
        examples: a name and a row of `ends` for each panel.
    """
    steps = list(ends)
    shares = {step: ends[step].std(axis=-1).mean(axis=1) / z_0.std() for step in steps}
    last = np.median(shares[steps[-1]])
    finding = f"{last:.0%} of the noise's spread is left in the value of a network (median of {len(ends[steps[-1]])})"
    if len(steps) > 1:
        finding += f", {np.median(shares[steps[0]]):.0%} at step {steps[0]}"
    ratios = (3, 1) * len(examples)
    layout = {"rows": 1, "columns": 2 * len(examples), "sharey": True, "width_ratios": ratios}
    shades = matplotlib.colormaps["Blues"](np.linspace(0.35, 1.0, len(steps))) if len(steps) > 1 else [BLUE]
    title = f"What is left of the noise: {finding}"
    with figure(path, 4.0 * len(examples), 4.6, title=title, **layout) as (fig, axes):
        for (name, row), main, side in zip(examples, axes[::2], axes[1::2], strict=True):
            main.plot(z_0, z_0 - z_0.mean(), color=FAINT, linestyle=":", linewidth=1.6, label="noise as it came")
            main.axhline(0.0, color=INK, linewidth=0.8, linestyle="--", label="ideal: one value, whatever the noise")
            for step, colour in zip(steps, shades, strict=True):
                q = ends[step][row].mean()
                for member, landed in enumerate(ends[step][row]):
                    style = ("-", (0, (4, 1.5)))[member % 2]
                    named = f"step {step:,}, each network" if member == 0 else None
                    main.plot(z_0, landed - q, color=colour, linestyle=style, linewidth=1.5, label=named)
                if step == steps[-1]:
                    side.hist((ends[step][row] - q).ravel(), 15, orientation="horizontal", color=colour, alpha=0.8)
                    side.set_title(f"Q = {q:.1f}", fontsize=9, weight="normal")
            main.set(title=name, xlabel="source noise z(0)")
            side.set(xticks=[], xlabel="density")
            side.tick_params(left=False)
            side.grid(visible=False)
        axes[0].set_ylabel("z(1) less Q   (return)")
        legend_below(fig, axes[0], 4)
    return finding
