"""Figure of a value function and a path over the floor plan of a maze."""

from pathlib import Path

import numpy as np
from matplotlib import patheffects
from matplotlib.patches import Rectangle

from floq.analysis.figures.style import INK, ORANGE, figure


def value_map(
    path: Path,
    walls: np.ndarray,
    cell: float,
    offset: np.ndarray,
    positions: np.ndarray,
    values: np.ndarray,
    walk: np.ndarray,
    goal: np.ndarray,
    title: str,
    outcome: str,
) -> None:
    """Draw the critic's values and the policy's path.

    Args:
        path: the picture's file.
        walls: floor plan, 1 where there is a wall; cell (i, j) is centred at x = j * cell - offset_x, y likewise.
        cell: size of a cell, in the maze's units.
        offset: (x, y), minus the position of the first cell.
        positions: (n, 2), positions of the values.
        values: (n,).
        walk: (steps, 2), the policy's path from start to end.
        goal: (2,).
        title: of the figure.
        outcome: of the walk, in words.
    """
    rows, columns = walls.shape
    width = 5.6
    with figure(path, width + 1.2, width * rows / columns + 0.6) as (fig, (ax,)):
        low, high = np.quantile(values, [0.01, 1.0])
        area = ax.hexbin(
            *positions.T,
            C=values,
            gridsize=(12 * columns, 7 * rows),
            cmap="viridis",
            vmin=low,
            vmax=high,
            linewidths=0.1,
        )
        for i, j in np.argwhere(walls == 1):
            corner = (j * cell - offset[0] - cell / 2, i * cell - offset[1] - cell / 2)
            ax.add_patch(Rectangle(corner, cell, cell, facecolor="#4a4a4a", edgecolor="none"))
        ax.plot(*walk.T, color="white", linewidth=3.2, solid_capstyle="round")
        ax.plot(*walk.T, color=ORANGE, linewidth=1.8, solid_capstyle="round")
        ax.plot(*walk[0], "o", color="white", markeredgecolor=INK, markersize=9)
        ax.plot(*goal, "*", color="gold", markeredgecolor=INK, markersize=17)
        for (x, y), name in ((walk[0], "start"), (goal, "goal")):
            label = ax.annotate(
                name,
                (x, y),
                xytext=(0, 12),
                textcoords="offset points",
                ha="center",
                fontsize=10,
                weight="bold",
                color=INK,
            )
            label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        ax.set(
            xlim=(-offset[0] - cell / 2, (columns - 0.5) * cell - offset[0]),
            ylim=(-offset[1] - cell / 2, (rows - 0.5) * cell - offset[1]),
            aspect="equal",
            xticks=[],
            yticks=[],
            title=title,
        )
        ax.set_xlabel(outcome)
        ax.grid(visible=False)
        fig.colorbar(area, ax=ax, shrink=0.8, label="learned value (return from here on)")
