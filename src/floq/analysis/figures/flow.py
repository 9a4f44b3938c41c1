"""The flow at work: how random numbers become a value."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm

from floq.analysis.figures.style import BLUE, BOX, FAINT, INK, ORANGE, figure, star

MARGIN = 0.07  # of the unit of time, on both sides, for the noise interval and the targets


NAMED = 3  # networks in a legend, at most


class FlowPaths(NamedTuple):
    """The trajectories of one state-action.

    paths: (members, samples, K + 1), z at t = 0, 1/K, ..., 1 from several source samples, for each ensemble member.
    bend: mean distance of the paths from their chords, in units of z.
    t, z, field: the velocity, the mean over members, at times t and heights z: (len(z), len(t)).
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


def flow_fans(path: Path, flow_paths: Sequence[FlowPaths], title: str) -> None:
    """Draw, for a few state-actions, where source noise is carried, before the velocity field that carries it (above),
    and how far the way bends (below)."""
    layout = {"rows": 2, "columns": len(flow_paths), "sharex": True, "sharey": "row", "height_ratios": (2.3, 1)}
    widest = max(float(np.abs(fan.field).max()) for fan in flow_paths)
    with figure(path, 3.7 * len(flow_paths) + 0.8, 6.6, **layout) as (fig, axes):
        above, below = axes[: len(flow_paths)], axes[len(flow_paths) :]
        norm = CenteredNorm(0.0, widest or 1.0)
        shades = ScalarMappable(norm, "PRGn")
        for fan, top, bottom in zip(flow_paths, above, below, strict=True):
            top.pcolormesh(fan.t, fan.z, fan.field, cmap=shades.cmap, norm=norm, alpha=0.45, rasterized=True)
            ones = np.ones_like(fan.field)
            top.streamplot(fan.t, fan.z, ones, fan.field, density=0.8, color="#00000055", linewidth=0.6, arrowsize=0.7)
            _paths(fan, top, bottom)
            _ends(fan, top)
            start, landing = fan.paths[..., 0], fan.paths[..., -1]
            numbers = f"starts {start.mean():.1f} ± {start.std():.1f}\nlands {landing.mean():.1f} ± {landing.std():.1f}"
            high = landing.mean() > np.mean(fan.z[[0, -1]])  # the words stand where the paths are not
            top.text(
                0.5,
                0.04 if high else 0.96,
                numbers,
                transform=top.transAxes,
                va="bottom" if high else "top",
                ha="center",
                bbox=BOX,
            )
            bent = f"mean bend {fan.bend:.2g}"
            bottom.text(0.04, 0.96, bent, transform=bottom.transAxes, va="top", fontsize=9, bbox=BOX)
            bottom.set_xlabel("flow time t   (0: noise, 1: value)")
            top.set(title=fan.name, xlim=(-MARGIN, 1 + MARGIN), ylim=(fan.z[0], fan.z[-1]))
            top.grid(visible=False)
        above[0].set_ylabel("z   (return)")
        below[0].set_ylabel("bend: distance of z\nfrom its straight line")
        fig.colorbar(shades, ax=above, alpha=0.45, label="velocity dz/dt", pad=0.01, aspect=30)
        handles, labels = above[0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
        fig.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)


def _paths(fan: FlowPaths, top: Axes, bottom: Axes) -> None:
    t = np.linspace(0.0, 1.0, fan.paths.shape[-1])
    bends = fan.paths - (fan.paths[..., :1] + t * (fan.paths[..., -1:] - fan.paths[..., :1]))
    looks = cycle(((BLUE, "-"), (ORANGE, (0, (4, 2)))))  # networks that agree are seen through each other
    for number, (paths, bend, (color, style)) in enumerate(zip(fan.paths, bends, looks, strict=False)):
        lines = top.plot(t, paths.T, color=color, linestyle=style, linewidth=0.9, marker=".", markersize=3)
        lines[0].set_label(f"paths of network {number + 1}" if len(fan.paths) <= NAMED else None)
        bottom.plot(t, bend.T, color=color, linestyle=style, linewidth=0.9)


def _ends(fan: FlowPaths, top: Axes) -> None:
    """The interval of source noise on the left, the TD targets and the value on the right."""
    value = fan.paths[..., -1].mean()
    top.plot([-MARGIN / 2] * 2, fan.noise, color=INK, linewidth=5, solid_capstyle="butt", label="noise interval")
    top.axhline(value, color=FAINT, linewidth=0.8, linestyle="--", label="value: mean over starts and networks")
    right = 1 + MARGIN / 2
    top.plot([right] * 2, [fan.targets.min(), fan.targets.max()], color=INK, linewidth=1.4)
    star(top, right, float(fan.targets.mean()), "TD target, mean and range of its draws")
