"""What one update costs: floq as published, with `--preset fast`, and FQL, alternately in one process.

    python benchmarks/update_cost.py [--env_name scene-play-singletask-v0] [--sizes 37 5] [--steps 5] [--runs 1]

Random data; network sizes and other settings of the task, but K = 8 and eight iid source samples in the first three
rows; float32, but where a row is in bf16. Prints milliseconds per update, the best of three tries, and each as a ratio
to FQL, in time and in the operations of the traced program; and what they come to, operations per second.
"""

import argparse
import dataclasses
from datetime import date

from floq.analysis.cost import cost_of
from floq.runs.config import configure
from floq.training.bench import best_in_turn, fleet_of, synthetic_data
from floq.utils.machine import cores, processor, use_all_cores

PUBLISHED = {
    "critic_flow_steps": 8,
    "noise_samples": 8,
    "target_noise_samples": None,
    "distill_noise_samples": None,
    "noise_scheme": "iid",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_name", default="scene-play-singletask-v0", help="whose settings")
    parser.add_argument("--sizes", type=int, nargs=2, default=(37, 5), help="numbers in an observation and an action")
    parser.add_argument("--steps", type=int, default=5, help="updates of a try")
    parser.add_argument("--runs", type=int, default=1, help="size of the fleets")
    options = parser.parse_args()
    use_all_cores(options.runs)
    data = synthetic_data(*options.sizes)
    configs = {
        "floq, published": configure(options.env_name, precision="f32", **PUBLISHED),
        "    in bf16": configure(options.env_name, precision="bf16", **PUBLISHED),
        "    folded": configure(options.env_name, precision="f32", integration="folded", **PUBLISHED),
        "floq, fast": configure(options.env_name, preset="fast", precision="f32"),
        "    fast in bf16": configure(options.env_name, preset="fast", precision="bf16"),
        "fql": configure(options.env_name, "fql", precision="f32"),
        "    fql in bf16": configure(options.env_name, "fql", precision="bf16"),
    }
    fleets = {name: fleet_of(config, options.runs, data) for name, config in configs.items()}
    for fleet in fleets.values():
        fleet.advance(1)  # compile
    calls = {name: fleet.advance for name, fleet in fleets.items()}
    best = best_in_turn(calls, {name: options.steps for name in fleets})
    work = {name: cost_of(config.agent, *options.sizes).update_flops for name, config in configs.items()}
    print(f"{date.today()}, {processor()}, {cores()} cores, {options.env_name}, {options.runs} runs")
    print(f"{'agent':<16} {'K':>3} {'ms':>9} {'to fql':>7} {'GFLOP':>8} {'to fql':>7} {'GFLOP/s':>8}")
    for name, seconds in best.items():
        k = dataclasses.asdict(configs[name].agent.critic).get("critic_flow_steps", "-")
        time, flops = f"{1e3 * seconds:>9.2f} {seconds / best['fql']:>7.2f}", options.runs * work[name] / 1e9
        print(f"{name:<16} {k:>3} {time} {flops:>8.3g} {work[name] / work['fql']:>7.2f} {flops / seconds:>8.0f}")


if __name__ == "__main__":
    main()
