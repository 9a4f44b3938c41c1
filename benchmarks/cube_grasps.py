"""Where the episodes of a cube policy fail: does the gripper reach the cube, does it lift it, is the task solved?

    python benchmarks/cube_grasps.py exp/floq/cube_floq exp/floq/cube_fql [--episodes 20]

Plays episodes with the newest checkpoint of every finished run below each folder, and prints one row for each run. The
episodes are other ones than training evaluates on.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from floq.envs import environments
from floq.runs.run import Run

SEED = 9  # of the episodes
NEAR, LIFTED = 0.05, 0.05  # metres: between gripper and cube; height of the cube's centre, 0.02 on the table


def play(agent: Any, env: environments.SeededEnv, episode: int) -> tuple[bool, bool, bool]:
    """Whether the gripper came near the cube, lifted it, and the task was solved."""
    obs, near, lifted = env.reset_with((SEED, episode)), False, False
    for step in range(10**6):
        key = jax.random.key(1000 * episode + step + 1)
        obs, _, terminated, truncated, info = env.step(np.asarray(agent.act(np.asarray(obs, np.float32), key)))
        cube = info["privileged/block_0_pos"]
        near |= bool(np.linalg.norm(info["proprio/effector_pos"] - cube) < NEAR)
        lifted |= bool(cube[2] > LIFTED)
        if terminated or truncated:
            return near, lifted, bool(info["success"])
    raise AssertionError("an episode without an end")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=20)
    options = parser.parse_args()
    print(f"{'run':<40} {'near':>6} {'lifted':>6} {'solved':>6}  of {options.episodes}")
    for folder in options.folders:
        for path in sorted(folder.glob("**/summary.json")):
            run = Run.open(path.parent)
            agent, env = run.load_agent(), environments.make(run.config.task, run.config.success_timing)
            counts = np.sum([play(agent, env, episode) for episode in range(options.episodes)], axis=0)
            print(f"{f'{folder.name}, seed {run.config.seed}':<40} {counts[0]:>6} {counts[1]:>6} {counts[2]:>6}")


if __name__ == "__main__":
    main()
