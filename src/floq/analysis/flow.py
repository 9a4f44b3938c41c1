"""The flow at work: how random numbers become a value."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from floq.analysis.style import BLUE, FAINT, ORANGE, figure


class Fan(NamedTuple):
    """The trajectories of one state-action.

    paths: (members, samples, K + 1), z at t = 0, 1/K, ..., 1 from several source samples, for each ensemble member.
    """

    name: str
    paths: np.ndarray


def flow_fans(path: Path, fans: Sequence[Fan], title: str) -> None:
    """Draw, for a few state-actions, where source noise is carried (above) and how far the way bends (below)."""
    steps = fans[0].paths.shape[-1] - 1
    t = np.linspace(0.0, 1.0, steps + 1)
    with figure(
        path, 3.5 * len(fans), 6.2, rows=2, columns=len(fans), sharex=True, sharey="row", height_ratios=(2, 1)
    ) as (
        fig,
        axes,
    ):
        above, below = axes[: len(fans)], axes[len(fans) :]
        for fan, top, bottom in zip(fans, above, below, strict=True):
            landing = fan.paths[..., -1]
            chord = fan.paths[..., :1] + t * (fan.paths[..., -1:] - fan.paths[..., :1])
            bend = fan.paths - chord
            for member, color in zip(fan.paths, (BLUE, ORANGE, *[FAINT] * len(fan.paths)), strict=False):
                top.plot(t, member.T, color=color, alpha=0.5, linewidth=0.9, marker=".", markersize=3)
            for member, color in zip(bend, (BLUE, ORANGE, *[FAINT] * len(bend)), strict=False):
                bottom.plot(t, member.T, color=color, alpha=0.5, linewidth=0.9)
            top.axhline(landing.mean(), color=FAINT, linewidth=0.8, linestyle="--")
            top.set_title(fan.name)
            top.text(
                0.04,
                0.05,
                f"Q = {landing.mean():.1f}\nlands within ±{landing.std():.2f}",
                transform=top.transAxes,
                va="bottom",
            )
            bottom.text(
                0.04, 0.95, f"mean distance {np.abs(bend).mean():.2f}", transform=bottom.transAxes, va="top", fontsize=9
            )
            bottom.set_xlabel("flow time t   (0: noise, 1: value)")
        above[0].set_ylabel("z   (return)")
        below[0].set_ylabel("bend: distance of z\nfrom a straight path")
        fig.suptitle(title, x=0.01, ha="left", weight="bold", fontsize=12)
