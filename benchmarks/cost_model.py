"""How the time of an update grows with K, M, E, width, batch and fleet size, beside the operations that it takes.

    python benchmarks/cost_model.py [--seconds 0.5] [--sizes 37 5] [any setting of floq train]
    python benchmarks/cost_model.py --count      # measures nothing: what an update comes to at published sizes

One dial at a time is turned from a middle setting (K = 4, M = 4, E = 2, width 256, batch 128, one run). Prints
milliseconds per update of the fleet, GFLOP of the traced program, and what both come to: GFLOP/s. `time` and `work` are
ratios to the middle setting, measured alternately with it: where they agree, operations are what is paid for.
"""

import argparse
import dataclasses
import platform
from collections.abc import Iterator
from datetime import date
from typing import Any

import jax
from cost_formula import FLOAT, update_cost

from floq.agent.config import AgentConfig
from floq.analysis.cost import cost_of
from floq.cli.train import parse_train
from floq.runs.config import Config, configure
from floq.training.bench import best_in_turn, fleet_of, repetitions_for, synthetic_data
from floq.utils.machine import cores, use_all_cores

MIDDLE: dict[str, Any] = {"critic_flow_steps": 4, "noise_samples": 4, "flow_num_ensembles": 2, "block_width": 256}
MIDDLE_BATCH = 128
DIALS: dict[str, tuple[str, tuple[int, ...]]] = {
    "K": ("critic_flow_steps", (1, 2, 8, 16)),
    "M": ("noise_samples", (1, 2, 8)),
    "E": ("flow_num_ensembles", (1, 4)),
    "width": ("block_width", (64, 128, 512)),
    "batch": ("batch_size", (32, 64, 256, 512)),
    "runs": ("runs", (2, 4, 8)),
}


def settings(config: Config) -> Iterator[tuple[str, int, Config, int]]:
    """Every dial with its values: name, value, configuration, number of runs."""
    for dial, (field, values) in DIALS.items():
        for value in values:
            agent, runs = config.agent, 1
            if field == "runs":
                runs = value
            elif field == "batch_size":
                agent = dataclasses.replace(agent, batch_size=value)
            else:
                agent = dataclasses.replace(agent, critic=dataclasses.replace(agent.critic, **{field: value}))
            yield dial, value, dataclasses.replace(config, agent=agent), runs


def count(obs_dim: int, action_dim: int) -> None:
    """Print operations and bytes of an update with published networks, by formula."""
    agents = {f"floq, K = {k}": AgentConfig.from_flat("floq", "fql", {"critic_flow_steps": k}) for k in (1, 4, 8, 16)}
    agents["floq, K = 8, fast"] = configure("scene-play-singletask-v0", preset="fast").agent
    agents = {"fql": AgentConfig.from_flat("scalar", "fql", {})} | agents
    costs = {name: update_cost(agent, obs_dim, action_dim) for name, agent in agents.items()}
    print(f"{'agent':<18} {'GFLOP':>7} {'to fql':>7} {'hidden, GB':>11} {'Adam and average, GB':>21}")
    for name, cost in costs.items():
        ratio, hidden = cost.flops / costs["fql"].flops, FLOAT * cost.hidden / 1e9
        print(f"{name:<18} {cost.flops / 1e9:>7.1f} {ratio:>7.1f} {hidden:>11.2f} {cost.optimiser_bytes / 1e9:>21.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each try")
    parser.add_argument("--sizes", type=int, nargs=2, default=(37, 5), help="numbers in an observation and an action")
    parser.add_argument("--count", action="store_true", help="print the model of the published sizes, and stop")
    options, words = parser.parse_known_args()
    if options.count:
        return count(*options.sizes)
    use_all_cores(max(DIALS["runs"][1]))
    (given,) = parse_train(["--env_name=cube-double-play-singletask-v0", "--agent.block_depth=4", *words]).configs
    critic = dataclasses.replace(given.agent.critic, **MIDDLE)
    config = dataclasses.replace(given, agent=dataclasses.replace(given.agent, batch_size=MIDDLE_BATCH, critic=critic))
    data = synthetic_data(*options.sizes)

    def work(config: Config, runs: int) -> float:
        return runs * cost_of(config.agent, *options.sizes).update_flops

    middle = fleet_of(config, 1, data)
    middle.advance(1)
    print(f"{date.today()}, {jax.devices()[0].device_kind}, {platform.machine()}, {cores()} cores, {config.precision}")
    print(f"{'dial':<6} {'value':>5} {'ms':>9} {'GFLOP':>8} {'GFLOP/s':>8} {'time':>6} {'work':>6}")
    for dial, value, changed, runs in settings(config):
        fleet = fleet_of(changed, runs, data)
        fleet.advance(1)
        calls = {"middle": middle.advance, "changed": fleet.advance}
        best = best_in_turn(calls, {name: repetitions_for(call, options.seconds) for name, call in calls.items()})
        flops, time = work(changed, runs), best["changed"]
        ratios = f"{time / best['middle']:>6.2f} {flops / work(config, 1):>6.2f}"
        print(
            f"{dial:<6} {value:>5} {1e3 * time:>9.2f} {flops / 1e9:>8.3g} {flops / time / 1e9:>8.0f} {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
