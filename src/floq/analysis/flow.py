"""The flow at work: how random numbers become a value."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np

from floq.analysis.style import BLUE, FAINT, ORANGE, figure


class Fan(NamedTuple):
    """The trajectories of one state-action.

    paths: (members, samples, K + 1), z at t = 0, 1/K, ..., 1 from several source samples, for each ensemble member.
    bend: mean distance of the paths from their chords, in units of z.
    """

    name: str
    paths: np.ndarray
    bend: float


def flow_fans(path: Path, fans: Sequence[Fan], title: str) -> None:
    """Draw, for a few state-actions, where source noise is carried (above) and how far the way bends (below)."""
    t = np.linspace(0.0, 1.0, fans[0].paths.shape[-1])
    layout = {"rows": 2, "columns": len(fans), "sharex": True, "sharey": "row", "height_ratios": (2, 1)}
    with figure(path, 3.5 * len(fans), 6.2, **layout) as (fig, axes):
        above, below = axes[: len(fans)], axes[len(fans) :]
        for fan, top, bottom in zip(fans, above, below, strict=True):
            start, landing = fan.paths[..., :1], fan.paths[..., -1:]
            bend = fan.paths - (start + t * (landing - start))
            for paths, bends, color in zip(fan.paths, bend, cycle((BLUE, ORANGE)), strict=False):
                top.plot(t, paths.T, color=color, alpha=0.5, linewidth=0.9, marker=".", markersize=3)
                bottom.plot(t, bends.T, color=color, alpha=0.5, linewidth=0.9)
            top.axhline(landing.mean(), color=FAINT, linewidth=0.8, linestyle="--")
            top.set_title(fan.name)
            numbers = f"starts {start.mean():.1f} ± {start.std():.1f}\nlands {landing.mean():.1f} ± {landing.std():.1f}"
            box = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
            top.text(0.04, 0.05, numbers, transform=top.transAxes, va="bottom", bbox=box)
            bent = f"mean bend {fan.bend:.2f}"
            bottom.text(0.04, 0.96, bent, transform=bottom.transAxes, va="top", fontsize=9, bbox=box)
            bottom.set_xlabel("flow time t   (0: noise, 1: value)")
        above[0].set_ylabel("z   (return)")
        below[0].set_ylabel("bend: distance of z\nfrom its straight line")
        fig.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
