"""OGBench's experts, which collect one episode per call, by the benchmark's published procedures; and the ant's policy.

An episode depends on the seed and its number only. No JAX in here: worker processes import this file.
"""

import importlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from floq.envs import environments
from floq.utils.errors import UserError
from floq.utils.untrusted import read_tensors

Rows = dict[str, np.ndarray]
DTYPES = {"terminals": bool, "button_states": np.int64}  # of OGBench's files; all others are float32
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # action noise on position, yaw and gripper, relative to each other


def _as_episode(rows: list[dict[str, Any]]) -> Rows:
    """Stack rows into the arrays of an OGBench file; the last row is marked terminal."""
    is_image = rows[0]["observations"].dtype == np.uint8
    dtypes = DTYPES | ({"observations": np.uint8} if is_image else {})
    arrays = {key: np.array([row[key] for row in rows], dtypes.get(key, np.float32)) for key in rows[0]}
    return arrays | {"terminals": np.arange(1, len(rows) + 1) == len(rows)}


class ManipulationExpert:
    """Expert that moves cubes, presses buttons, and opens and closes a drawer and a window, one random subtask after
    another.

    Of the dataset `name`, an episode has `rows` rows, and is determined by `seed` and its number. The `oracle` `plan`
    follows a smooth plan made at the start of a subtask, `markov` decides at each step. Actions have noise of standard
    deviation xi * (1, 1, 1, 3, 10), where each episode draws xi ~ U[0, action_noise], or are uniformly random with
    probability `random_action`. Each episode draws from `stacking` the probability that a cube goes on top of another.
    """

    def __init__(
        self,
        name: str,
        rows: int,
        seed: int,
        *,
        oracle: str,
        oracle_settings: Mapping[str, float],
        action_noise: float,
        random_action: float,
        stacking: tuple[float, float],
    ):
        self._rows, self._seed, self._stacking = rows, seed, stacking
        self._action_noise, self._random_action = action_noise, random_action
        self._has_health_check = "scene" in name
        self._env = environments.make(name, mode="data_collection", terminate_at_goal=False, max_episode_steps=rows)
        self._base: Any = self._env.unwrapped
        self._oracles: dict[str, Any] = {}
        for task in ("cube", "button", "drawer", "window"):
            # Imported here, since these modules import MuJoCo's renderer, which other processes do not need.
            module = importlib.import_module(f"ogbench.manipspace.oracles.{oracle}.{task}_{oracle}")
            kind = getattr(module, f"{task}_{oracle}_oracle".title().replace("_", ""))
            # On the puzzles there is nothing to grasp, and the gripper stays closed.
            closed = {"gripper_always_closed": True} if task == "button" and "puzzle" in name else {}
            self._oracles[task] = kind(env=self._env, **oracle_settings, **closed)

    def episode(self, number: int) -> Rows:
        """Collect all rows of episode `number`, the last one marked terminal. A scene that loses its cube is redone."""
        attempt = 0
        while True:
            rows = _as_episode(list(self._steps((self._seed, number, attempt))))
            if not self._has_health_check or _cube_in_sight(rows["qpos"][:, 14:17]):
                return rows
            attempt += 1

    def _steps(self, seed: tuple[int, ...]) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(seed)
        stacking = random.uniform(*self._stacking)
        noise = random.uniform(0.0, self._action_noise) * NOISE_SHAPE
        obs, info = self._env.reset_with(seed), self._base.get_reset_info()
        oracle = self._next_oracle(obs, info)
        for _ in range(self._rows):
            if random.uniform() < self._random_action:
                action = random.uniform(-1.0, 1.0, len(NOISE_SHAPE))
            else:
                action = np.asarray(oracle.select_action(obs, info)) + random.normal(0.0, noise)
            action = np.clip(action, -1.0, 1.0)
            next_obs, _, _, _, info = self._env.step(action)
            if oracle.done:
                oracle = self._next_oracle(*self._base.set_new_target(p_stack=stacking))
            row = {"observations": obs, "actions": action, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            if "prev_button_states" in info:
                row["button_states"] = info["prev_button_states"]
            yield row
            obs = next_obs

    def _next_oracle(self, obs: np.ndarray, info: dict[str, Any]) -> Any:
        """Return the oracle for the environment's current subtask, ready to start."""
        oracle = self._oracles[info["privileged/target_task"]]
        with self._env.own_global_state():  # oracles draw their plans from NumPy's global generator
            oracle.reset(obs, info)
        return oracle


def _cube_in_sight(xyz: np.ndarray) -> bool:
    """Return whether the cube never is too far right, or too far left except in the drawer (OGBench's health check)."""
    _, y, z = xyz.T
    in_drawer = (z >= 0.06) & (z <= 0.08)
    return not bool(((y >= 0.29) | ((y <= -0.3) & ~in_drawer)).any())


def _draw(random: np.random.Generator, cells: list[tuple[int, int]]) -> tuple[int, int]:
    return cells[random.integers(len(cells))]


class MazeExpert:
    """Expert that follows the shortest path through a maze with noisy actions.

    `name`, `rows` and `seed` as for `ManipulationExpert`; `action_noise` is the standard deviation of each component.
    The only goal lies `goal_cells` cells from the start (stitch); None: a new random goal whenever one is reached
    (navigate). `walker`, the name or file of a `Walker`, makes an ant walk in a direction, the action of a point.
    """

    def __init__(
        self, name: str, rows: int, seed: int, *, action_noise: float, goal_cells: int | None, walker: str | None = None
    ):
        self._rows, self._seed, self._noise, self._goal_cells = rows, seed, action_noise, goal_cells
        self._walker = None if walker is None else Walker.load(walker)
        self._env = environments.make(name, terminate_at_goal=False, max_episode_steps=rows)
        self._maze: Any = self._env.unwrapped
        self._free = [(int(i), int(j)) for i, j in np.argwhere(self._maze.maze_map == 0)]
        self._goals = [cell for cell in self._free if not self._is_hallway(cell)]
        self._subgoals: dict[tuple[Any, Any], np.ndarray] = {}
        self.goals_reached = 0  # in the last episode

    def episode(self, number: int) -> Rows:
        """Collect all rows of episode `number`, the last one marked terminal."""
        random = np.random.default_rng([self._seed, number])
        start, goal = _draw(random, self._free), _draw(random, self._goals)
        if self._goal_cells is not None:
            goal = _draw(random, self._cells_at(start, self._goal_cells) or [start])
        self._env.reset_with((self._seed, number))
        obs, _ = self._env.reset(options={"task_info": {"init_ij": start, "goal_ij": goal}})

        rows: list[dict[str, Any]] = []
        self.goals_reached, was_there = 0, False
        for _ in range(self._rows):
            direction = self._subgoal() - self._maze.get_xy()
            action = direction / (np.linalg.norm(direction) + 1e-6)
            if self._walker is not None:
                action = self._walker.act(np.concatenate([self._state()[2:], action]))  # without its position
            action = np.clip(action + random.normal(0.0, self._noise, action.shape), -1.0, 1.0)
            next_obs, _, _, _, info = self._env.step(action)
            is_there = bool(info["success"])
            self.goals_reached += is_there and not was_there
            was_there = is_there
            if is_there and self._goal_cells is None:
                xy, noise = self._maze.ij_to_xy(_draw(random, self._goals)), self._maze._maze_unit / 4  # OGBench's
                self._maze.set_goal(goal_xy=np.array(xy) + random.uniform(-noise, noise, 2))
            rows.append({"observations": obs, "actions": action, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]})
            obs = next_obs
        return _as_episode(rows)

    def _state(self) -> np.ndarray:
        """Return the observation that is not an image."""
        return np.asarray(self._maze.get_ob(ob_type="states"))

    def _subgoal(self) -> np.ndarray:
        """Return the centre of the next cell on the way to the goal, cached: OGBench searches the maze each time."""
        here, goal = self._maze.get_xy(), self._maze.cur_goal_xy
        cells = self._maze.xy_to_ij(here), self._maze.xy_to_ij(goal)
        if cells not in self._subgoals:
            self._subgoals[cells] = self._maze.get_oracle_subgoal(here, goal)[0]
        return self._subgoals[cells]

    def _is_hallway(self, cell: tuple[int, int]) -> bool:
        """Return whether a cell has walls on two opposite sides and none on the others: never a goal of a navigate
        episode."""
        i, j = cell
        walls = [bool(self._maze.maze_map[at] == 1) for at in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1))]
        return walls in ([True, True, False, False], [False, False, True, True])

    def _cells_at(self, start: tuple[int, int], distance: int) -> list[tuple[int, int]]:
        """List the free cells whose shortest path from `start` has `distance` steps."""
        _, steps = self._maze.get_oracle_subgoal(self._maze.ij_to_xy(start), self._maze.ij_to_xy(start))
        return [cell for cell in self._free if steps[cell] == distance]


class Walker(NamedTuple):
    """Policy that walks in a given direction: a network with GELU between its layers, each a matrix and a bias; an
    action is tanh of the first half of the outputs.

    It is the mode of the actor of a run on OGBench's directed task (`floq train --env_name=online-ant-xy-v0`).
    `benchmarks/walker.py` evaluates one, and writes the file.
    """

    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    about: Mapping[str, str]  # how it was made

    @classmethod
    def load(cls, name: str) -> "Walker":
        """Load a walker from a file that `save` has written, or the one shipped under this name. Raises UserError if it
        is no such file."""
        path = Path(name) if name.endswith(".safetensors") else Path(__file__).with_name(f"{name}.safetensors")
        try:
            stored, about = read_tensors(path)
            if any(x.dtype != np.float32 for x in stored.values()):
                raise ValueError("its numbers are no 32-bit floats")
            layers = [(stored[f"weight{i}"], stored[f"bias{i}"]) for i in range(max(1, len(stored) // 2))]
            widths = [weight.shape for weight, _ in layers]
            fit = all(out == into for (_, out), (into, _) in itertools.pairwise(widths))
            if not fit or any(bias.shape != weight.shape[1:] for weight, bias in layers) or widths[-1][1] % 2:
                raise ValueError("its layers do not fit each other")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no walker ({error}): benchmarks/walker.py writes one") from error
        return cls(layers, about)

    def save(self, path: Path) -> None:
        """Write the network to a file, with `about` in the file's header."""
        arrays = {}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight{i}": np.ascontiguousarray(weight), f"bias{i}": np.ascontiguousarray(bias)}
        save_file(arrays, path, dict(self.about))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return an action in [-1, 1]; the observation ends in the direction to walk in, (x, y) of length 1."""
        x = obs.astype(np.float32)
        *hidden, (weight, bias) = self.layers
        for matrix, shift in hidden:
            x = x @ matrix + shift
            # GELU in its tanh form, as in training.
            x = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x**3)))
        mean, _ = np.split(x @ weight + bias, 2)
        return np.tanh(mean)
