"""Recipes of the benchmark's datasets for which floq has an expert (OGBench, arXiv 2410.20092, appendix)."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from floq.data.collection.experts import ManipulationExpert, MazeExpert
from floq.envs.ogbench import dataset_name
from floq.utils.errors import UserError, nearest

MAZES = {"medium": (1000, 1001), "large": (1000, 1001), "giant": (500, 2001), "teleport": (1000, 1001)}
STITCH = (5000, 201)
MANIPULATION = {
    **dict.fromkeys(("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4"), (1000, 1001)),
    **dict.fromkeys(("cube-triple", "puzzle-4x5"), (3000, 1001)),
    **dict.fromkeys(("cube-quadruple", "puzzle-4x6"), (5000, 1001)),
}
"""Number of training episodes, and rows per episode."""

STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
"""Interval from which a cube episode draws its probability of stacking; scenes and puzzles have 0.5."""


@dataclass(frozen=True)
class Recipe:
    """Settings with which the benchmark makes the dataset `name`."""

    name: str
    episodes: int
    rows: int
    expert: Callable[..., Any]
    settings: dict[str, Any]


def with_validation(episodes: int) -> int:
    """Return the total number of episodes for this many training episodes: a tenth is added for validation."""
    return episodes + max(1, episodes // 10)


def recipe(name: str) -> Recipe:
    """Return the recipe of a dataset such as `pointmaze-medium-navigate-v0` or `cube-single-play-v0`.

    Raises:
        UserError: no expert makes this dataset.
    """
    known = {made.name: made for made in _recipes()}
    if name in known:
        return known[name]
    if re.match(r"(antsoccer|humanoid)", name):
        raise UserError(f"cannot collect {name}: floq brings no expert for that; of those that learn, the ant alone")
    if "singletask" in name:
        shared = dataset_name(name)
        raise UserError(f"cannot collect {name}: all tasks share one dataset, write floq data collect {shared}")
    raise UserError(
        f"cannot collect {name!r}{nearest(name, known)}; experts make {{pointmaze,antmaze}}-MAZE-{{navigate,stitch}}"
        f"-v0 with MAZE one of {', '.join(MAZES)}, and ENV-{{play,noisy}}-v0 with ENV one of {', '.join(MANIPULATION)}"
    )


def _recipes():
    for maze, counts in MAZES.items():
        for kind, goal_cells in (("navigate", None), ("stitch", 4)):
            episodes, rows = STITCH if kind == "stitch" else counts
            point = {"action_noise": 0.5, "goal_cells": goal_cells}
            ant = {"action_noise": 0.2, "goal_cells": goal_cells, "walker": "ant"}
            yield Recipe(f"pointmaze-{maze}-{kind}-v0", episodes, rows, MazeExpert, point)
            yield Recipe(f"antmaze-{maze}-{kind}-v0", episodes, rows, MazeExpert, ant)
    for env, (episodes, rows) in MANIPULATION.items():
        play = {
            "oracle": "plan",
            "oracle_settings": {"noise": 0.1, "noise_smoothing": 0.5},
            "action_noise": 0.0,
            "random_action": 0.0,
            "stacking": STACKING.get(env, (0.5, 0.5)),
        }
        noisy = play | {
            "oracle": "markov",
            "oracle_settings": {"min_norm": 0.4},
            "action_noise": 0.1,
            "random_action": 0.2 if env.startswith("puzzle") else 0.1,
        }
        for kind, settings in (("play", play), ("noisy", noisy)):
            yield Recipe(f"{env}-{kind}-v0", episodes, rows, ManipulationExpert, settings)
