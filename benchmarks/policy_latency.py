"""How long one action of an exported policy takes, actor by actor and format by format.

    python benchmarks/policy_latency.py [--sizes 37 5] [--width 512] [--calls 50]

Fresh networks of published size: four layers of 512 in the actor, in a scalar critic and in a velocity field; ten steps
of the behaviour flow, 32 candidates, K = 8. Formats take turns call by call. Prints the shortest time of each in
milliseconds, which what else the machine does disturbs least, and its ratio to that of the agent itself, jitted JAX.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import get_args

import jax
import numpy as np

from floq.actors import BestOfNConfig, DeterministicConfig, FQLConfig, GaussianConfig
from floq.agent.agent import Agent
from floq.agent.config import AgentConfig
from floq.critics import FloqConfig, ScalarConfig
from floq.export import export_run
from floq.export.formats import Exportable, Format, load_exported, write_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy
from floq.utils.machine import cores

CHECKED = 10  # observations of each policy, at which every format is compared with the agent


def agents(width: int) -> dict[str, AgentConfig]:
    """What is measured."""
    hidden = (width,) * 4
    scalar = ScalarConfig(value_hidden_dims=hidden)
    best = BestOfNConfig(actor_hidden_dims=hidden)
    integrated = FloqConfig(value_hidden_dims=hidden, block_width=width, actor_climbs="flow")
    return {
        "deterministic": AgentConfig(critic=scalar, actor=DeterministicConfig(actor_hidden_dims=hidden)),
        "gaussian": AgentConfig(critic=scalar, actor=GaussianConfig(actor_hidden_dims=hidden)),
        "fql": AgentConfig(critic=scalar, actor=FQLConfig(actor_hidden_dims=hidden)),
        "best_of_n, scalar": AgentConfig(critic=scalar, actor=best),
        "best_of_n, floq's flow": AgentConfig(critic=integrated, actor=best),
    }


def measure(config: AgentConfig, sizes: tuple[int, int], calls: int) -> tuple[int, dict[str, float]]:
    """Operations of the exported program, and the fewest seconds of an action in each format and of the agent."""
    agent = Agent.init(jax.random.key(0), *sizes, config)
    policy, traced = agent.policy, TracedPolicy.of(agent.policy, agent.obs_spec)
    about = {"task": "a benchmark", "step": 0, "floq": "-"}
    described = {"about": about, "observation_size": sizes[0], "action_size": sizes[1], "action_chunk": 1}
    exportable = Exportable(traced, translate(traced), described)
    samples = export_run.samples(policy, traced, count=CHECKED)
    keys = list(jax.random.split(jax.random.key(1), calls))
    acting: dict[str, Callable[[export_run.Sample], object]] = {
        "jax": lambda sample: np.asarray(policy.act(sample.obs, keys.pop()))
    }
    with tempfile.TemporaryDirectory() as root:
        for form in get_args(Format):
            folder = Path(root) / form
            folder.mkdir()
            write_exported(form, exportable, folder)
            act = load_exported(form, folder)
            export_run.compare_with_agent(policy, act, samples)
            acting[form] = lambda sample, act=act: act(sample.obs, sample.noise)
    taken: dict[str, list[float]] = {name: [] for name in acting}
    for number in range(calls):
        for name, act in acting.items():
            begin = time.perf_counter()
            act(samples[number % CHECKED])
            taken[name].append(time.perf_counter() - begin)
    return len(exportable.program.lines), {name: min(seconds) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=2, default=(37, 5), help="numbers in an observation and an action")
    parser.add_argument("--width", type=int, default=512, help="of all networks")
    parser.add_argument("--calls", type=int, default=50, help="actions of each")
    options = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, {cores()} cores, width {options.width}, best of {options.calls}, ms")
    print(f"{'policy':<24} {'operations':>10} {'jax':>8}" + "".join(f" {form:>15}" for form in get_args(Format)))
    for name, config in agents(options.width).items():
        operations, seconds = measure(config, options.sizes, options.calls)
        own = seconds["jax"]
        cells = [f" {1e3 * seconds[form]:>8.3f} {seconds[form] / own:>5.2f}x" for form in get_args(Format)]
        print(f"{name:<24} {operations:>10} {1e3 * own:>8.3f}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
