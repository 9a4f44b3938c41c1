"""What one update costs: floq as published, with `--preset fast`, and FQL, alternately in one process.

    python benchmarks/update_cost.py [--env_name scene-play-singletask-v0] [--steps 5]

Published network sizes on random data of cube-double's sizes. Prints milliseconds per update, the best of three tries,
and each as a ratio to FQL.
"""

import argparse
import os
import platform
import time
from datetime import date

import numpy as np

from floq.data.transitions import Dataset
from floq.fleet import Fleet, FleetData
from floq.keys import Keys
from floq.presets import configure
from floq.weights import make_agent

ROWS, OBS, ACT, REPETITIONS = 20_000, 37, 5, 3
AGENTS = {"floq, published": ("floq", None), "floq, fast": ("floq", "fast"), "fql": ("fql", None)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_name", default="scene-play-singletask-v0", help="whose settings")
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    rng, keys = np.random.default_rng(0), Keys.of(0)
    ends = np.arange(1, ROWS + 1) % 1001 == 0
    obs, act = rng.normal(size=(ROWS, OBS)), rng.uniform(-1, 1, (ROWS, ACT))
    data = Dataset.from_rows(obs, act, -np.ones(ROWS), np.ones(ROWS), ends)
    both, fleets = FleetData.of([data]), {}
    for name, (agent, preset) in AGENTS.items():
        config = configure(options.env_name, agent, preset=preset)
        fleets[name] = Fleet([make_agent(config, data)], [0], both, both, [keys.batches], [keys.validation])
        fleets[name].advance(1)  # compile
    best = dict.fromkeys(fleets, np.inf)
    for _ in range(REPETITIONS):
        for name, fleet in fleets.items():
            started = time.perf_counter()
            fleet.advance(options.steps)
            best[name] = min(best[name], (time.perf_counter() - started) / options.steps)
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, settings of {options.env_name}")
    print(f"{'agent':<18} {'ms per update':>14} {'to fql':>7}")
    for name, seconds in best.items():
        print(f"{name:<18} {1e3 * seconds:>14.0f} {seconds / best['fql']:>7.2f}")


if __name__ == "__main__":
    main()
