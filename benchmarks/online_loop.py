"""How close the online loop comes to what its environments, and its updates, could do alone.

    python benchmarks/online_loop.py [--env_name HalfCheetah-v5] [--width 256] [--seconds 3]

Prints one table. In each row, in turns and in this process: environment steps per second of the loop and of the
environments in their workers with nothing else to do, and updates per second without environments. The slower of the
two, the updates divided by UTD, bounds the loop, which steps environments while it updates; `share` is what it reaches
of that bound.
"""

import dataclasses
import platform
from datetime import date
from typing import Any

import jax
import numpy as np
import tyro

from floq.agent.state import Keys
from floq.data.collection.random_play import RandomRollout
from floq.data.dataset import Dataset
from floq.envs.environments import EnvFactory
from floq.runs.config import Config, configure
from floq.runs.run import make_agent
from floq.training.bench import best_in_turn, repetitions_for
from floq.training.fleet import Fleet, FleetData
from floq.training.online import Online
from floq.utils.machine import use_all_cores
from floq.utils.progress import Display

STEPS = 1_000_000  # room in the replay
GAUSSIAN = {"actor": "gaussian", "alpha": 0.0, "temperature": 1.0, "learn_temperature": True}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure the online loop."""

    env_name: str = "HalfCheetah-v5"
    """The environment."""
    width: int = 256
    """Hidden layers are three of this width, for actor and critic."""
    batch_size: int = 256
    """Transitions per update."""
    utds: tuple[int, ...] = (1, 8, 32)
    """Gradient steps for each environment step."""
    num_envs: tuple[int, ...] = (1, 8)
    """Environments at once."""
    critics: tuple[str, ...] = ("fql", "floq")
    """Agents, with the Gaussian actor."""
    seconds: float = 3.0
    """Each of the three tries of a number takes about this long."""


def main() -> None:
    a = tyro.cli(Arguments)
    use_all_cores(1)
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}; {a.env_name}, "
        f"layers 3 x {a.width}, batch {a.batch_size}, Gaussian actor"
    )
    print(
        f"{'critic':<7} {'UTD':>4} {'envs':>5} {'loop/s':>8} {'envs/s':>8} {'updates/s':>10} {'bound by':>9}", end=" "
    )
    print(f"{'share':>6} {'hours per 1M steps':>19} {'replay':>8}")
    play = RandomRollout(EnvFactory(a.env_name), 0, 2_000)
    while play.go_on() < 2_000:
        pass
    rows = Dataset.from_rows(*play.trajectories())
    for critic in a.critics:
        for utd in a.utds:
            for num_envs in a.num_envs:
                sizes = {"value_hidden_dims": (a.width,) * 3, "actor_hidden_dims": (a.width,) * 3}
                own: dict[str, Any] = {"block_width": a.width, "block_depth": 3} if critic == "floq" else {}
                run = {"offline_steps": 0, "online_steps": STEPS, "utd": utd, "num_envs": num_envs}
                own |= sizes | run | {"batch_size": a.batch_size}
                measure(configure(a.env_name, critic, **GAUSSIAN, **own), rows, a.seconds)


def measure(config: Config, rows: Dataset, seconds: float) -> None:
    keys = Keys.of(0)
    data = FleetData.of([rows])
    fleet = Fleet([make_agent(config, rows)], [0], data, data, [keys.batches], [keys.validation])
    with Online([config], fleet, 0, [None], Display(False)) as online:
        online.advance(2)  # compiles
        actions = np.zeros((1, config.num_envs, rows.actions.shape[1]), np.float32)
        updates_per_tick = round(config.utd * config.num_envs)

        def loop(ticks: int) -> None:
            online.advance(ticks)
            jax.block_until_ready(fleet.agents)

        def environments(ticks: int) -> None:
            for _ in range(ticks):
                online._workers.answers(online._workers.begin_call("step", online._calls(actions)), config.env_timeout)

        def updates(ticks: int) -> None:
            assert online._pending is not None
            online.fleet.learn(online._pending, ticks * updates_per_tick, config.online_share(0))
            jax.block_until_ready(fleet.agents)

        calls = {"loop": loop, "envs": environments, "updates": updates}
        repetitions = {name: repetitions_for(call, seconds) for name, call in calls.items()}
        best = {name: config.num_envs / s for name, s in best_in_turn(calls, repetitions).items()}
        replay = sum(x.nbytes for x in jax.tree.leaves(online.fleet._replay))
    binding = min("envs", "updates", key=lambda name: best[name])
    print(
        f"{config.agent.critic_name:<7} {config.utd:>4g} {config.num_envs:>5} {best['loop']:>8.1f} "
        f"{best['envs']:>8.0f} {best['updates'] * config.utd:>10.1f} {binding:>9} {best['loop'] / best[binding]:>6.0%} "
        f"{STEPS / best['loop'] / 3600:>19.1f} {replay / 1e6:>5.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
