"""Figure of a critic's diagnostic metrics over training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from floq.analysis.figures.style import BLUE, figure, label_steps
from floq.analysis.metrics import DIAGNOSTICS
from floq.runs.record import OF_CRITIC

SUMMARISED = ("curvature", "z0_spread", "return_spread", "quantile_spread", "abs_td_error")


def diagnosis(path: Path, columns: Mapping[str, Sequence[float]], boundary: int | None, title: str) -> str | None:
    """Draw a panel for each known metric of the critic.

    Args:
        path: the picture's file.
        columns: of train.csv.
        boundary: step at which the run goes online; None if it does not.
        title: of the figure.

    Returns:
        A sentence on the result; None, and nothing is drawn, if there are no numbers.
    """
    known = {}
    for name in DIAGNOSTICS:
        pairs = zip(columns.get("step", ()), columns.get(OF_CRITIC + name, ()), strict=False)
        if points := [(step, value) for step, value in pairs if np.isfinite(value)]:
            known[name] = np.array(points)
    if not known:
        return None
    across = min(4, len(known)) if len(known) not in (5, 6, 9) else 3
    down = -(-len(known) // across)
    with figure(path, 3.2 * across, 2.5 * down + 0.6, down, across, title) as (_, axes):
        for (name, points), ax in zip(known.items(), axes, strict=False):
            ax.plot(*points.T, "o-", color=BLUE, markersize=3, linewidth=1.4)
            ax.set_title(name, fontsize=10)
            ax.set_ylabel(DIAGNOSTICS[name], fontsize=7.5)
            if points[:, 1].min() >= 0:
                ax.set_ylim(0, 1.1 * points[:, 1].max() or 1.0)
            label_steps(ax, boundary, 7)
    return ", ".join(f"{name} {_from_to(known[name])}" for name in SUMMARISED if name in known)


def _from_to(points: np.ndarray) -> str:
    """Format the first and the last number."""
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"{last[1]:.3g} (the only row)"
    return f"{first[1]:.3g} at step {first[0]:.0f}, {last[1]:.3g} at {last[0]:.0f}"
