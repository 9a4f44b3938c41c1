"""Data collection with random actions. No JAX in here: worker processes import this file."""

import time
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.envs.environments import EnvFactory

STREAM = 3  # distinguishes these seeds from those of evaluation and exploration
PIECE_SECONDS = 0.5  # duration of one call, so that a call that hangs can be detected


class RandomRollout:
    """Rollout of `steps` environment steps with actions drawn uniformly from [-1, 1]; the last episode is truncated.
    The data depends on the seed, not on its division into pieces.

    Raises:
        UserError: there is no such environment.
    """

    def __init__(self, make_env: EnvFactory, seed: int, steps: int):
        self._env, self._rng = make_env(), np.random.default_rng([seed, STREAM])
        self._name, self._seed, self._max_steps = make_env.name, seed, steps
        self._episodes: list[dict[str, Any]] = []
        self._num_steps, self._needs_reset = 0, True

    def go_on(self) -> int:
        """Collect another piece. Returns the number of steps so far. Raises ValueError for numbers that are not finite,
        and the environment's exceptions."""
        until = time.monotonic() + PIECE_SECONDS
        while self._num_steps < self._max_steps and time.monotonic() < until:
            if self._needs_reset:
                obs = self._env.begin_episode((self._seed, len(self._episodes), 0, STREAM))
                self._episodes.append({"observations": [obs], "actions": [], "rewards": [], "terminations": False})
            episode = self._episodes[-1]
            act = self._rng.uniform(-1, 1, self._env.action_space.shape or ()).astype(np.float32)
            obs, reward, episode["terminations"], result, _ = self._env.advance(act)
            for name, value in (("observations", obs), ("actions", act), ("rewards", reward)):
                episode[name].append(value)
            self._needs_reset, self._num_steps = result is not None, self._num_steps + 1
        return self._num_steps

    def trajectories(self) -> Trajectories:
        """Return the collected trajectories and close the environment."""
        self._env.close()
        arrays = [e | {name: np.array(e[name]) for name in ("actions", "rewards")} for e in self._episodes]
        for made, episode in zip(arrays, self._episodes, strict=True):
            made["observations"] = self._env.obs_spec.to_records(np.stack(episode["observations"]))
        return from_episodes(arrays, f"random play in {self._name}")
