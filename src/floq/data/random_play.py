"""Data out of nothing: environment steps with random actions. No JAX in here."""

from collections.abc import Callable
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.envs import make

STREAM = 3  # keeps these seeds apart from those of evaluations and of exploring


def play_randomly(
    env_name: str,
    success_timing: str | None,
    seed: int,
    steps: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Trajectories:
    """So many steps of an environment with actions drawn uniformly from [-1, 1]; the last episode is cut off. The same
    seed gives the same data.

    Raises:
        UserError: there is no such environment, or a number in it is not finite.
    """
    env, rng = make(env_name, success_timing), np.random.default_rng([seed, STREAM])
    episodes: list[dict[str, Any]] = []
    done = 0
    while done < steps:
        obs, acts, rewards, ended = [env.reset_with((seed, len(episodes), 0, STREAM))], [], [], False
        terminated = False
        while not ended and done < steps:
            act = rng.uniform(-1, 1, env.action_space.shape or ()).astype(np.float32)
            next_obs, reward, terminated, truncated, _ = env.step(act)
            ended, done = terminated or truncated, done + 1
            obs.append(next_obs)
            acts.append(act)
            rewards.append(float(reward))
        episodes.append(
            {"observations": obs, "actions": np.array(acts), "rewards": np.array(rewards), "terminations": terminated}
        )
        on_progress(done)
    return from_episodes(episodes, f"random play in {env_name}")
