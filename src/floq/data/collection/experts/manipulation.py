"""Expert of a robot arm: OGBench's scripted oracles, by the benchmark's published procedure. No JAX in here."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from floq.data.collection.experts.episode import Rows, as_episode
from floq.envs import environments

NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])  # action noise on position, yaw and gripper, relative to each other


class ManipulationExpert:
    """Expert that moves cubes, presses buttons, and opens and closes a drawer and a window, one random subtask after
    another.

    Args:
        name: the dataset, such as `cube-single-play-v0`.
        rows: the length of an episode.
        seed: with an episode's number, determines it.
        oracle: `plan` follows a smooth plan made at the start of a subtask, `markov` decides at each step.
        oracle_settings: of OGBench's oracle.
        action_noise: noise on actions of standard deviation xi * (1, 1, 1, 3, 10) where each episode draws xi ~
            U[0, action_noise].
        random_action: probability of a uniformly random action instead.
        stacking: each episode draws from this interval the probability that a cube goes on top of another.
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
        self._rows, self._seed = rows, seed
        self._action_noise, self._random_action, self._stacking = action_noise, random_action, stacking
        self._has_health_check = name.startswith("scene")
        self._env = environments.make(name, mode="data_collection", terminate_at_goal=False, max_episode_steps=rows)
        self._base: Any = self._env.unwrapped
        self._oracles: dict[str, Any] = {}
        for task in ("cube", "button", "drawer", "window"):
            # Imported here, since these modules import MuJoCo's renderer, which other processes do not need.
            module = importlib.import_module(f"ogbench.manipspace.oracles.{oracle}.{task}_{oracle}")
            kind = getattr(module, f"{task}_{oracle}_oracle".title().replace("_", ""))
            # On the puzzles there is nothing to grasp, and the gripper stays closed.
            closed = {"gripper_always_closed": True} if task == "button" and name.startswith("puzzle") else {}
            self._oracles[task] = kind(env=self._env, **oracle_settings, **closed)

    def episode(self, number: int) -> Rows:
        """Collect all rows of episode `number`, the last one marked terminal. A scene that loses its cube is redone."""
        attempt = 0
        while True:
            rows = as_episode(list(self._steps((self._seed, number, attempt))))
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
