"""Figures of a critic's outputs at some state-actions: of a flow, its trajectories from noise to the value, the error
of Q over the number of steps, and the noise that is left; of others, histograms, quantiles, or a value per member."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm
from matplotlib.ticker import NullLocator

from floq.analysis.figures.style import BLUE, BOX, COLOURS, FAINT, INK, ORANGE, figure, legend_below, star

MARGIN = 0.07  # of flow time, on both sides, for the noise interval and the targets
MAX_LABELS = 3  # networks in a legend
SHOWN = 12  # state-actions whose Q is drawn one by one


class FlowPaths(NamedTuple):
    """Trajectories of one state-action.

    paths: (members, samples, K + 1), z at t = 0, 1/K, ..., 1. bend: mean distance of the paths from their chords. t, z,
    field: the velocity, mean over members, at times t and values z: (len(z), len(t)). noise: ends of the interval of
    source noise. targets: draws of the TD target.
    """

    name: str
    paths: np.ndarray
    bend: float
    t: np.ndarray
    z: np.ndarray
    field: np.ndarray
    noise: tuple[float, float]
    targets: np.ndarray


def draw_flow_paths(path: Path, flow_paths: Sequence[FlowPaths], title: str) -> str:
    """Draw, for a few state-actions, the trajectories over the velocity field (above), and their distances from
    straight lines (below). Returns a sentence on the result."""
    layout = {"rows": 2, "columns": len(flow_paths), "sharex": True, "sharey": "row", "height_ratios": (2.3, 1)}
    norm = CenteredNorm(0.0, max(float(np.abs(each.field).max()) for each in flow_paths) or 1.0)
    shades, right, ends = ScalarMappable(norm, "PRGn"), 1 + MARGIN / 2, []
    with figure(path, 3.7 * len(flow_paths) + 0.8, 6.6, title=title, **layout) as (fig, axes):
        above, below = axes[: len(flow_paths)], axes[len(flow_paths) :]
        for each, top, bottom in zip(flow_paths, above, below, strict=True):
            top.pcolormesh(each.t, each.z, each.field, cmap=shades.cmap, norm=norm, alpha=0.45, rasterized=True)
            look: Any = {"density": 0.8, "color": "#00000055", "linewidth": 0.6, "arrowsize": 0.7}
            top.streamplot(each.t, each.z, np.ones_like(each.field), each.field, **look)

            t, start, landing = np.linspace(0.0, 1.0, each.paths.shape[-1]), each.paths[..., :1], each.paths[..., -1:]
            bends = each.paths - (start + t * (landing - start))
            styles = cycle(((BLUE, "-"), (ORANGE, (0, (4, 2)))))  # overlapping networks stay visible
            for number, (z, bend, (color, style)) in enumerate(zip(each.paths, bends, styles, strict=False), 1):
                lines = top.plot(t, z.T, color=color, linestyle=style, linewidth=0.9, marker=".", markersize=3)
                lines[0].set_label(f"paths of network {number}" if len(each.paths) <= MAX_LABELS else None)
                bottom.plot(t, bend.T, color=color, linestyle=style, linewidth=0.9)

            # The interval of source noise on the left, the TD targets and the value on the right.
            look = {"color": INK, "solid_capstyle": "butt"}
            top.plot([-MARGIN / 2] * 2, each.noise, linewidth=5, label="noise interval", **look)
            named = "value: mean over starts and networks"
            top.axhline(landing.mean(), color=FAINT, linewidth=0.8, linestyle="--", label=named)
            top.plot([right] * 2, [each.targets.min(), each.targets.max()], linewidth=1.4, **look)
            star(top, right, float(each.targets.mean()), "TD target, mean and range of its draws")

            high = landing.mean() > np.mean(each.z[[0, -1]])  # put the text where the paths are not
            ends.append([f"{z.mean():.1f} ± {z.std():.1f}" for z in (start, landing)])
            look = {"transform": top.transAxes, "va": "bottom" if high else "top", "ha": "center", "bbox": BOX}
            top.text(0.5, 0.04 if high else 0.96, "starts {}\nlands {}".format(*ends[-1]), **look)
            bent = f"mean bend {each.bend:.2g}"
            bottom.text(0.04, 0.96, bent, transform=bottom.transAxes, va="top", fontsize=9, bbox=BOX)
            bottom.set_xlabel("flow time t   (0: noise, 1: value)")
            top.set(title=each.name, xlim=(-MARGIN, 1 + MARGIN), ylim=(each.z[0], each.z[-1]))
            top.grid(visible=False)
        above[0].set_ylabel("z   (return)")
        below[0].set_ylabel("bend: distance of z\nfrom its straight line")
        fig.colorbar(shades, ax=above, alpha=0.45, label="velocity dz/dt", pad=0.01, aspect=30)
        legend_below(fig, above[0])
    return f"noise {ends[0][0]} is carried to {', '.join(landing for _, landing in ends)}"


def draw_settling(path: Path, counts: Sequence[int], values: Float[np.ndarray, "pairs counts"], trained: int) -> str:
    """Draw the convergence of Q over the numbers of integration steps `counts`, of which the last counts as exact, for
    some state-actions in the order of their value; `trained`: that of the training. Returns a sentence on the
    result."""
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
            ylabel=f"Q_K less Q_{counts[-1]}   (return)", title=f"error of Q; 90% of Q lie in {low:.3g} to {high:.3g}"
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


def draw_noise_left(
    path: Path,
    z_0: Float[np.ndarray, " samples"],
    ends: Mapping[int, Float[np.ndarray, "pairs members samples"]],
    examples: Sequence[tuple[str, int]],
) -> str:
    """Draw the values z(1) to which evenly spaced source samples are carried, by training step, with a panel for each
    of the examples, a name and a row; an ideal flow carries all samples to one value. Returns a sentence on it."""
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
        left.set_title("What each network says, less their mean")
        left.set(xlabel="Q, the mean of the networks (return)", ylabel="network less Q   (return)")
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
