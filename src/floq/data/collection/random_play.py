"""Data out of nothing: environment steps with random actions. No JAX in here: worker processes import this file."""

import time
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.envs.environments import check_step, make

STREAM = 3  # keeps these seeds apart from those of evaluations and of exploring
PIECE_SECONDS = 0.5  # a call plays for so long, so that one that hangs is told from a long one


class RandomPlay:
    """So many steps of an environment with actions drawn uniformly from [-1, 1]; the last episode is cut off. The same
    seed gives the same data, however it is divided into pieces.

    Raises:
        UserError: there is no such environment.
    """

    def __init__(self, env_name: str, success_timing: str | None, seed: int, steps: int):
        self._env, self._rng = make(env_name, success_timing), np.random.default_rng([seed, STREAM])
        self._name, self._seed, self._steps = env_name, seed, steps
        self._episodes: list[dict[str, Any]] = []
        self._done, self._over = 0, True

    def go_on(self) -> int:
        """Play another piece. Returns how many steps there are now. Raises ValueError for numbers that are not finite,
        and what the environment raises."""
        until = time.monotonic() + PIECE_SECONDS
        while self._done < self._steps and time.monotonic() < until:
            if self._over:
                first = self._env.reset_with((self._seed, len(self._episodes), 0, STREAM))
                obs, _ = check_step(first, 0.0, self._env.observation_space.shape)
                self._episodes.append({"observations": [obs], "actions": [], "rewards": [], "terminations": False})
            self._step(self._episodes[-1])
        return self._done

    def trajectories(self) -> Trajectories:
        """What was played. The environment is closed."""
        self._env.close()
        arrays = [e | {name: np.array(e[name]) for name in ("actions", "rewards")} for e in self._episodes]
        return from_episodes(arrays, f"random play in {self._name}")

    def _step(self, episode: dict[str, Any]) -> None:
        act = self._rng.uniform(-1, 1, self._env.action_space.shape or ()).astype(np.float32)
        next_obs, reward, episode["terminations"], truncated, _ = self._env.step(act)
        obs, _ = check_step(next_obs, reward, self._env.observation_space.shape)
        for name, value in (("observations", obs), ("actions", act), ("rewards", float(reward))):
            episode[name].append(value)
        self._over, self._done = bool(episode["terminations"] or truncated), self._done + 1


def play_randomly(env_name: str, success_timing: str | None, seed: int, steps: int) -> Trajectories:
    """`RandomPlay` from beginning to end, in this process."""
    play = RandomPlay(env_name, success_timing, seed, steps)
    while play.go_on() < steps:
        pass
    return play.trajectories()
