"""Figure of the flow: trajectories of z from source noise to the value."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm

from floq.analysis.figures.style import BLUE, BOX, FAINT, INK, ORANGE, figure, legend_below, star

MARGIN = 0.07  # of flow time, on both sides, for the noise interval and the targets
MAX_LABELS = 3  # networks in a legend


class FlowPaths(NamedTuple):
    """Trajectories of one state-action.

    paths: (members, samples, K + 1), z at t = 0, 1/K, ..., 1 from several source samples, for each ensemble member.
    bend: mean distance of the paths from their chords, in units of z.
    t, z, field: the velocity, mean over members, at times t and values z: (len(z), len(t)).
    noise: ends of the interval of source noise. targets: draws of the TD target.
    """

    name: str
    paths: np.ndarray
    bend: float
    t: np.ndarray
    z: np.ndarray
    field: np.ndarray
    noise: tuple[float, float]
    targets: np.ndarray


def plot_flow_paths(path: Path, flow_paths: Sequence[FlowPaths], title: str) -> None:
    """Draw, for a few state-actions, the trajectories over the velocity field (above), and their distances from
    straight lines (below)."""
    layout = {"rows": 2, "columns": len(flow_paths), "sharex": True, "sharey": "row", "height_ratios": (2.3, 1)}
    max_speed = max(float(np.abs(paths.field).max()) for paths in flow_paths)
    with figure(path, 3.7 * len(flow_paths) + 0.8, 6.6, title=title, **layout) as (fig, axes):
        above, below = axes[: len(flow_paths)], axes[len(flow_paths) :]
        norm = CenteredNorm(0.0, max_speed or 1.0)
        shades = ScalarMappable(norm, "PRGn")
        for paths, top, bottom in zip(flow_paths, above, below, strict=True):
            top.pcolormesh(paths.t, paths.z, paths.field, cmap=shades.cmap, norm=norm, alpha=0.45, rasterized=True)
            ones = np.ones_like(paths.field)
            top.streamplot(
                paths.t, paths.z, ones, paths.field, density=0.8, color="#00000055", linewidth=0.6, arrowsize=0.7
            )
            _draw_paths(paths, top, bottom)
            _draw_ends(paths, top)
            start, landing = paths.paths[..., 0], paths.paths[..., -1]
            numbers = f"starts {start.mean():.1f} ± {start.std():.1f}\nlands {landing.mean():.1f} ± {landing.std():.1f}"
            high = landing.mean() > np.mean(paths.z[[0, -1]])  # put the text where the paths are not
            top.text(
                0.5,
                0.04 if high else 0.96,
                numbers,
                transform=top.transAxes,
                va="bottom" if high else "top",
                ha="center",
                bbox=BOX,
            )
            bent = f"mean bend {paths.bend:.2g}"
            bottom.text(0.04, 0.96, bent, transform=bottom.transAxes, va="top", fontsize=9, bbox=BOX)
            bottom.set_xlabel("flow time t   (0: noise, 1: value)")
            top.set(title=paths.name, xlim=(-MARGIN, 1 + MARGIN), ylim=(paths.z[0], paths.z[-1]))
            top.grid(visible=False)
        above[0].set_ylabel("z   (return)")
        below[0].set_ylabel("bend: distance of z\nfrom its straight line")
        fig.colorbar(shades, ax=above, alpha=0.45, label="velocity dz/dt", pad=0.01, aspect=30)
        legend_below(fig, above[0])


def _draw_paths(paths: FlowPaths, top: Axes, bottom: Axes) -> None:
    t = np.linspace(0.0, 1.0, paths.paths.shape[-1])
    bends = paths.paths - (paths.paths[..., :1] + t * (paths.paths[..., -1:] - paths.paths[..., :1]))
    styles = cycle(((BLUE, "-"), (ORANGE, (0, (4, 2)))))  # overlapping networks stay visible
    for number, (z, bend, (color, style)) in enumerate(zip(paths.paths, bends, styles, strict=False)):
        lines = top.plot(t, z.T, color=color, linestyle=style, linewidth=0.9, marker=".", markersize=3)
        lines[0].set_label(f"paths of network {number + 1}" if len(paths.paths) <= MAX_LABELS else None)
        bottom.plot(t, bend.T, color=color, linestyle=style, linewidth=0.9)


def _draw_ends(paths: FlowPaths, top: Axes) -> None:
    """Draw the interval of source noise on the left, the TD targets and the value on the right."""
    value = paths.paths[..., -1].mean()
    top.plot([-MARGIN / 2] * 2, paths.noise, color=INK, linewidth=5, solid_capstyle="butt", label="noise interval")
    top.axhline(value, color=FAINT, linewidth=0.8, linestyle="--", label="value: mean over starts and networks")
    right = 1 + MARGIN / 2
    top.plot([right] * 2, [paths.targets.min(), paths.targets.max()], color=INK, linewidth=1.4)
    star(top, right, float(paths.targets.mean()), "TD target, mean and range of its draws")
