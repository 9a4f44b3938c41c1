"""What the compiled training loop saves over a host loop with one device call per step, on the same agent and data.

    python benchmarks/training_loop.py [--steps 1000]

Prints one table: updates per second of both loops, measured alternately in this process, and their ratio. Both end
with the same parameters, or it says so.
"""

import argparse
import platform
import time
from datetime import date
from functools import partial

import jax
import numpy as np

from floq.agent.state import Keys
from floq.runs.config import configure
from floq.runs.run import make_agent
from floq.training.bench import synthetic_data
from floq.training.fleet import Fleet, FleetData, sample_batch

REPETITIONS = 3


def scanned(agent, dataset, key, steps):
    """The loop of `floq train`: many steps per device call, here for a fleet of one."""
    data = FleetData.of([dataset])
    fleet = Fleet([agent], [0], data, data, [key], [key])
    fleet.advance(steps)
    return fleet.agent(0)


def host_loop(agent, dataset, key, steps):
    """One device call per step, which draws the batch and updates the agent in place."""
    for _ in range(steps):
        agent = _one_step(agent, dataset, key)
    return agent


@partial(jax.jit, donate_argnums=0)
def _one_step(agent, dataset, key):
    return agent.update(sample_batch(agent, dataset, key))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    dataset, keys = synthetic_data(2, 2), Keys.of(0)
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {jax.devices()[0].device_kind}, {steps} steps"
    )
    print(f"{'agent':<6} {'one call per step':>18} {'compiled loop':>14} {'ratio':>6}  same result")
    for name in ("floq", "fql"):
        config = configure(agent=name)
        loops = {"host": host_loop, "scan": scanned}
        best, result = dict.fromkeys(loops, np.inf), {}
        for loop in loops.values():
            jax.block_until_ready(loop(make_agent(config, dataset), dataset, keys.batches, 1))  # compile
        for _ in range(REPETITIONS):
            for kind, loop in loops.items():
                agent = make_agent(config, dataset)
                started = time.perf_counter()
                result[kind] = jax.block_until_ready(loop(agent, dataset, keys.batches, steps))
                best[kind] = min(best[kind], time.perf_counter() - started)
        leaves = (jax.tree.leaves(result[kind].params) for kind in loops)
        same = all(np.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(*leaves, strict=True))
        rates = {kind: steps / seconds for kind, seconds in best.items()}
        print(
            f"{name:<6} {rates['host']:>14.0f} 1/s {rates['scan']:>10.0f} 1/s {rates['scan'] / rates['host']:>6.2f}  "
            f"{'yes' if same else 'no, beyond 1e-3'}"
        )


if __name__ == "__main__":
    main()
