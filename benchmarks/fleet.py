"""What a fleet costs: run-updates per second over its size, against the same runs one by one.

    python benchmarks/fleet.py [--sizes 1 2 4 8] [--agent floq fql] [--steps 300]

Each line is a process of its own, since the number of devices is fixed when JAX starts. `host loop` is one run with one
device call per step; `alone` one run in the compiled loop; a fleet's line gives what all its runs make together, and
that as a ratio to `alone`. Settings and sizes of the demonstration.
"""

import argparse
import dataclasses
import os
import platform
import subprocess
import sys
import time
from datetime import date

REPETITIONS = 3


def measure(agent: str, size: int, layout: str, steps: int) -> None:
    """Run-updates per second of one fleet, in this process; the best of a few tries."""
    import jax

    from floq.fleet import Fleet, FleetData, Layout
    from floq.keys import Keys
    from floq.machine import use_all_cores
    from floq.presets import configure
    from floq.weights import make_agent

    if layout == "shared":
        use_all_cores(size)
    from training_loop import host_loop, random_dataset

    data, config = random_dataset(), configure(agent=agent)
    keys = [Keys.of(seed).batches for seed in range(size)]
    agents = [make_agent(dataclasses.replace(config, seed=seed), data) for seed in range(size)]
    if layout == "host":
        run = lambda n: jax.block_until_ready(host_loop(jax.tree.map(jax.numpy.copy, agents[0]), data, keys[0], n))  # noqa: E731
    else:
        chosen = None if layout == "shared" else Layout((jax.devices()[0],), layout == "vmapped")
        both = FleetData.of([data])
        run = Fleet(agents, [0] * size, both, both, keys, keys, chosen).advance
    run(1)  # compile
    best = 0.0
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run(steps)
        best = max(best, size * steps / (time.perf_counter() - started))
    print(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--agent", nargs="+", default=["floq", "fql"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        agent, size, layout = options.measure
        return measure(agent, int(size), layout, options.steps)

    def rate(agent: str, size: int, layout: str) -> float:
        command = [sys.executable, "-W", "ignore", __file__, "--measure", agent, str(size), layout]
        done = subprocess.run(
            [*command, "--steps", str(options.steps)], check=True, capture_output=True, text=True, cwd=os.getcwd()
        )
        return float(done.stdout)

    print(
        f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.steps} updates, best of {REPETITIONS}"
    )
    print(f"{'agent':<6} {'runs':>4}  {'layout':<22} {'run-updates/s':>13} {'to alone':>8}")
    for agent in options.agent:
        alone = rate(agent, 1, "mapped")
        rows = [(1, "host", "host loop", rate(agent, 1, "host")), (1, "mapped", "alone", alone)]
        for size in options.sizes:
            if size > 1:
                for layout, name in (
                    ("shared", "cores share the runs"),
                    ("mapped", "one after another"),
                    ("vmapped", "vmapped"),
                ):
                    rows.append((size, layout, name, rate(agent, size, layout)))
        for size, _, name, found in rows:
            print(f"{agent:<6} {size:>4}  {name:<22} {found:>13.0f} {found / alone:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
