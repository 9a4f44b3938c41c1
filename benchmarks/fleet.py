"""What a fleet costs: run-updates per second over its size, against the same runs one by one.

    python benchmarks/fleet.py [--sizes 1 2 4 8] [--agents floq fql] [--steps 300] [settings of both agents]

Each line is a process of its own, since the number of devices is fixed when JAX starts. `host loop` is one run with one
device call per step; `alone` one run in the compiled loop; `cores share the batch` the same with all cores as
`--batch_devices`; a fleet's line gives what all its runs make together, and that as a ratio to `alone`. Settings and
sizes are those of the demonstration where none are given.
"""

import argparse
import os
import platform
import subprocess
import sys
from datetime import date

TRIES = 3


def measure(agent: str, size: int, layout: str, steps: int, settings: list[str]) -> None:
    """Run-updates per second of one fleet, in this process; the best of a few tries."""
    import jax

    from floq.agent.state import Keys
    from floq.cli.train import parse_train
    from floq.runs.run import make_agent
    from floq.training.bench import best_in_turn, fleet_of, synthetic_data
    from floq.training.fleet import Layout
    from floq.utils.machine import cores, use_all_cores

    use_all_cores({"shared": size, "batch": cores()}.get(layout, 1))
    from training_loop import host_loop

    (config,), data = parse_train([f"--agent={agent}", *settings]).configs, synthetic_data(2, 2)
    first = jax.devices()[:1]
    if layout == "host":
        fresh, key = make_agent(config, data), Keys.of(0).batches
        run = lambda n: jax.block_until_ready(host_loop(jax.tree.map(jax.numpy.copy, fresh), data, key, n))  # noqa: E731
    else:
        layouts = {"vmapped": Layout(tuple(first), True), "mapped": Layout(tuple(first), False)}
        layouts["batch"] = Layout(tuple(jax.devices()), False, len(jax.devices()))
        run = fleet_of(config, size, data, layouts.get(layout)).advance
    run(1)  # compile
    print(size / best_in_turn({"": run}, {"": steps}, TRIES)[""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--agents", nargs="+", default=["floq", "fql"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options, settings = parser.parse_known_args()
    if options.measure:
        agent, size, layout = options.measure
        return measure(agent, int(size), layout, options.steps, settings)

    def rate(agent: str, size: int, layout: str) -> float:
        command = [sys.executable, "-W", "ignore", __file__, "--measure", agent, str(size), layout]
        done = subprocess.run(
            [*command, "--steps", str(options.steps), *settings], check=True, stdout=subprocess.PIPE, text=True
        )
        return float(done.stdout)

    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.steps} updates, best of {TRIES}")
    print(f"{'agent':<6} {'runs':>4}  {'layout':<22} {'run-updates/s':>13} {'to alone':>8}")
    for agent in options.agents:
        rows = [(1, "mapped", "alone"), (1, "host", "host loop"), (1, "batch", "cores share the batch")]
        for size in options.sizes:
            if size > 1:
                rows.append((size, "shared", "cores share the runs"))
                rows += [(size, "mapped", "one after another"), (size, "vmapped", "vmapped")]
        alone = None
        for size, layout, name in rows:
            found = rate(agent, size, layout)
            alone = alone or found
            print(f"{agent:<6} {size:>4}  {name:<22} {found:>13.0f} {found / alone:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
