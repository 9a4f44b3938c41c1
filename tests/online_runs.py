"""Small online runs on probes, that several tests share."""

from pathlib import Path

import jax
import numpy as np
from helpers import ACTOR, SCALAR, agent_config

from floq.data.dataset import Dataset
from floq.runs.config import Config
from floq.runs.run import Run

FLAGS = [
    *("--agent=fql", "--agent.batch_size=8", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"),
    *("--eval_episodes=1", "--log_interval=2"),
]


def config(save_dir, env="Loop", **settings) -> Config:
    """A small run on a probe; settings of the agent go by the name `agent`."""
    own = {"offline_steps": 3, "online_steps": 8, "eval_episodes": 1, "agent": agent_config(SCALAR, ACTOR)}
    own |= {"env_name": f"probe_envs:{env}-v0", "save_dir": str(save_dir), "log_interval": 2}
    return Config(**(own | settings))


def episodes(count=30, low=-1.0, high=-0.5) -> Dataset:
    """Of the probe Choice, with actions in state 0 from this range and uniform ones in state 1."""
    rng = np.random.default_rng(0)
    first, second = rng.uniform(low, high, (count, 1)), rng.uniform(-1, 1, (count, 1))
    return Dataset.from_episodes(
        {
            "observations": np.array([[0.0], [1.0], [1.0]]),
            "actions": np.array([a, b]),
            "rewards": np.array([a[0], -b[0]]),
            "terminations": np.array([False, True]),
        }
        for a, b in zip(first, second, strict=True)
    )


def write_data(path: Path) -> Path:
    """The episodes of the probe Choice as a file."""
    rows = episodes().on_host()
    starts = np.flatnonzero(~rows.ends)
    np.savez(
        path,
        observations=rows.observations[starts],
        next_observations=rows.observations[starts + 1],
        actions=rows.actions[starts],
        rewards=rows.rewards[starts],
        terminals=rows.masks[starts] == 0,
    )
    return path


def only_run(folder: Path) -> Run:
    """The run in a `save_dir` that has one."""
    (found,) = folder.glob("floq/debug/*/*")
    return Run.open(found)


def params(run: Run):
    return jax.tree.leaves(run.load_agent().params)
