"""Collect a dataset with OGBench's own scripted experts, in OGBench's file format.

Procedure and counts are the benchmark's (METHOD: "Collecting the paper's data"; OGBench, arXiv 2410.20092, appendix).
An episode depends on the seed and its number alone, so the result does not depend on how many workers share the work.
No JAX in here: worker processes import this file.
"""

import hashlib
import json
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from floq import envs
from floq.errors import UserError
from floq.workers import Workers, worker_count

Rows = dict[str, np.ndarray]
POINT_NOISE = 0.5  # standard deviation of the action noise on the point's oracle direction
STITCH_CELLS = 4  # a stitch episode's goal lies this many cells away


@dataclass(frozen=True)
class Recipe:
    """How the benchmark makes a dataset. A tenth of the episodes on top is for validation."""

    env: str
    kind: str
    episodes: int
    rows: int
    collector: Callable[["Recipe", int], Any]


def recipe(name: str) -> Recipe:
    """The recipe of a dataset such as `pointmaze-medium-navigate-v0`.

    Raises:
        UserError: no scripted expert makes this dataset.
    """
    match = re.fullmatch(r"pointmaze-(medium|large|giant|teleport)-(navigate|stitch)-v0", name)
    if match is None:
        raise UserError(
            f"cannot collect {name!r}: scripted experts are available for "
            "pointmaze-{medium,large,giant,teleport}-{navigate,stitch}-v0"
        )
    maze, kind = match.groups()
    if kind == "stitch":
        episodes, rows = 5000, 201
    else:
        episodes, rows = (500, 2001) if maze == "giant" else (1000, 1001)
    return Recipe(f"pointmaze-{maze}-v0", kind, episodes, rows, PointMazeCollector)


class PointMazeCollector:
    """Collects episodes of a point that follows the shortest path through the maze with noisy actions."""

    def __init__(self, recipe: Recipe, seed: int):
        self._recipe, self._seed = recipe, seed
        name = recipe.env.replace("-v0", f"-{recipe.kind}-v0")
        self._env = envs.make(name, terminate_at_goal=False, max_episode_steps=recipe.rows)
        self._maze: Any = self._env.unwrapped
        self._free = [(int(i), int(j)) for i, j in np.argwhere(self._maze.maze_map == 0)]
        self._goals = [cell for cell in self._free if not self._is_hallway(cell)]
        self._subgoals: dict[tuple[Any, Any], np.ndarray] = {}

    def episode(self, number: int) -> Rows:
        """All rows of episode `number`, the last one marked terminal."""
        random = np.random.default_rng([self._seed, number])
        start, goal = self._draw(random, self._free), self._draw(random, self._goals)
        if self._recipe.kind == "stitch":
            goal = self._draw(random, self._cells_at(start, STITCH_CELLS) or [start])
        self._env.reset_with((self._seed, number))
        obs, _ = self._env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows: dict[str, list[Any]] = {key: [] for key in ("observations", "actions", "terminals", "qpos", "qvel")}
        for row in range(self._recipe.rows):
            direction = self._subgoal() - self._maze.get_xy()
            direction = direction / (np.linalg.norm(direction) + 1e-6)
            action = np.clip(direction + random.normal(0.0, POINT_NOISE, direction.shape), -1.0, 1.0)
            next_obs, _, _, _, info = self._env.step(action)
            if info["success"] and self._recipe.kind == "navigate":
                self._maze.set_goal(goal_xy=self._noisy_xy(random, self._draw(random, self._goals)))
            last = row + 1 == self._recipe.rows
            values = obs, action, last, info["prev_qpos"], info["prev_qvel"]
            for key, value in zip(rows, values, strict=True):
                rows[key].append(value)
            obs = next_obs
        return {key: np.array(values, bool if key == "terminals" else np.float32) for key, values in rows.items()}

    def _subgoal(self) -> np.ndarray:
        """The centre of the next cell on the way to the goal. OGBench searches the maze anew at each step; the answer
        depends on two cells only, so it is kept."""
        here, goal = self._maze.get_xy(), self._maze.cur_goal_xy
        cells = self._maze.xy_to_ij(here), self._maze.xy_to_ij(goal)
        if cells not in self._subgoals:
            self._subgoals[cells] = self._maze.get_oracle_subgoal(here, goal)[0]
        return self._subgoals[cells]

    def _is_hallway(self, cell: tuple[int, int]) -> bool:
        """A cell with walls on two opposite sides and none on the other two: never a goal of a navigate episode."""
        i, j = cell
        wall = self._maze.maze_map == 1
        up, down, left, right = wall[i - 1, j], wall[i + 1, j], wall[i, j - 1], wall[i, j + 1]
        return bool((left and right and not up and not down) or (up and down and not left and not right))

    def _cells_at(self, start: tuple[int, int], distance: int) -> list[tuple[int, int]]:
        """The free cells whose shortest path from `start` has `distance` steps."""
        _, steps = self._maze.get_oracle_subgoal(self._maze.ij_to_xy(start), self._maze.ij_to_xy(start))
        return [cell for cell in self._free if steps[cell] == distance]

    def _noisy_xy(self, random: np.random.Generator, cell: tuple[int, int]) -> np.ndarray:
        quarter = self._maze._maze_unit / 4  # the spread of OGBench's own goal noise
        return np.array(self._maze.ij_to_xy(cell)) + random.uniform(-quarter, quarter, 2)

    @staticmethod
    def _draw(random: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[int, int]:
        return cells[random.integers(len(cells))]


def collect(
    name: str,
    directory: Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Collect the dataset `name` into `directory`: NAME.npz, NAME-val.npz, and NAME.json which says how it was made.

    Args:
        name: an OGBench dataset name, without a task.
        directory: where the files go; made if missing.
        episodes: fewer or more training episodes than the benchmark's; a tenth on top is for validation.
        seed: together with `episodes` it determines the result.
        workers: processes; by default one per core.
        on_progress: called with (episodes done, all episodes).

    Returns:
        The path of NAME.npz, which appears only when all files are complete.

    Raises:
        UserError: there is no recipe, the files exist already, or the directory cannot be written.
    """
    steps = recipe(name)
    num_train = steps.episodes if episodes is None else episodes
    if num_train < 1:
        raise UserError(f"episodes={num_train}: collect at least one")
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    total = num_train + max(1, num_train // 10)
    count = worker_count(workers, total)
    train = directory / f"{name}.npz"
    if train.exists():
        raise UserError(f"{train} exists already: delete it to collect it anew, or give another --dataset_dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}.")
    except OSError as error:
        raise UserError(f"cannot write to the dataset folder {directory}: {error.strerror}") from error

    with partial as folder, Workers(steps.collector, [(steps, seed)] * count) as pool:
        parts: dict[int, Rows] = {}
        for number, rows in pool.map("episode", range(total)):
            parts[number] = rows
            on_progress(len(parts), total)
        episodes_in_order = [parts[number] for number in range(total)]
        files = {f"{name}-val.npz": episodes_in_order[num_train:], f"{name}.npz": episodes_in_order[:num_train]}
        for file_name, group in files.items():
            arrays: dict[str, Any] = {key: np.concatenate([rows[key] for rows in group]) for key in group[0]}
            np.savez_compressed(Path(folder) / file_name, **arrays)
        record = {
            "dataset": name,
            "collected_by": "floq " + version("floq"),
            "procedure": {"env": steps.env, "kind": steps.kind, "rows": steps.rows, "action_noise": POINT_NOISE},
            "seed": seed,
            "episodes": num_train,
            "published_episodes": steps.episodes,
            "validation_episodes": total - num_train,
            "versions": {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")},
            "python": platform.python_version(),
            "sha256": {n: hashlib.sha256((Path(folder) / n).read_bytes()).hexdigest() for n in files},
        }
        (Path(folder) / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        for file_name in (f"{name}.json", *files):  # the training file last: its presence means that all is complete
            (Path(folder) / file_name).replace(directory / file_name)
    return train
