"""Figure of a value function and a path over the floor plan of a maze."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.patches import Rectangle

from floq.analysis.figures.style import INK, ORANGE, figure


def value_map(path: Path, maze: Any, positions: np.ndarray, values: np.ndarray, walk: np.ndarray, outcome: str) -> None:
    """Draw the critic's values and the policy's path.

    Args:
        path: the picture's file.
        maze: an environment of OGBench with a maze and a goal.
        positions: (n, 2), positions of the values.
        values: (n,).
        walk: (steps, 2), the policy's path from start to end.
        outcome: of the walk, in words.
    """
    walls, cell, goal = np.asarray(maze.maze_map), maze._maze_unit, maze.cur_goal_xy
    offset = maze._offset_x, maze._offset_y  # cell (i, j) is centred at x = j * cell - offset_x, y likewise
    rows, columns = walls.shape
    width = 5.6
    with figure(path, width + 1.2, width * rows / columns + 0.6) as (fig, (ax,)):
        low, high = np.quantile(values, [0.01, 1.0])
        look = {"cmap": "viridis", "vmin": low, "vmax": high, "linewidths": 0.1}
        area = ax.hexbin(*positions.T, C=values, gridsize=(12 * columns, 7 * rows), **look)
        for i, j in np.argwhere(walls == 1):
            corner = (j * cell - offset[0] - cell / 2, i * cell - offset[1] - cell / 2)
            ax.add_patch(Rectangle(corner, cell, cell, facecolor="#4a4a4a", edgecolor="none"))
        ax.plot(*walk.T, color="white", linewidth=3.2, solid_capstyle="round")
        ax.plot(*walk.T, color=ORANGE, linewidth=1.8, solid_capstyle="round")
        ax.plot(*walk[0], "o", color="white", markeredgecolor=INK, markersize=9)
        ax.plot(*goal, "*", color="gold", markeredgecolor=INK, markersize=17)
        for (x, y), name in ((walk[0], "start"), (goal, "goal")):
            look = {"ha": "center", "fontsize": 10, "weight": "bold", "color": INK}
            label = ax.annotate(name, (x, y), (0, 12), textcoords="offset points", **look)
            label.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])
        ax.set(
            xlim=(-offset[0] - cell / 2, (columns - 0.5) * cell - offset[0]),
            ylim=(-offset[1] - cell / 2, (rows - 0.5) * cell - offset[1]),
            aspect="equal",
            xticks=[],
            yticks=[],
            title="What the critic has learned, and where the greedy policy goes",
        )
        ax.set_xlabel(
            f"orange: the policy's path, {outcome}\ncoloured: states that the data visits; white: floor without data"
        )
        ax.grid(visible=False)
        fig.colorbar(area, ax=ax, shrink=0.8, label="learned value (return from here on)")
