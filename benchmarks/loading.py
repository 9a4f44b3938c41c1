"""Loading a task's data and sampling from it, against OGBench's own loader and batches made on the host.

    python benchmarks/loading.py [--dataset_dir DIR] [--env_name TASK]

Prints two tables. Loading: seconds and peak memory, each in a process of its own, alternately; memory is what
the process took beyond what it had after its imports, at its peak and at the end. Both loaders make the task's
environment, whose share stands in the first row. Sampling: batches of 256 per second,
inside one compiled loop as floq trains, and on the host from OGBench's arrays with a copy to the device for each batch.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

REPETITIONS, BATCH, BATCHES = 3, 256, 5000
LOADERS = {
    "env": "the environment alone",
    "ogbench": "OGBench 1.2, one task",
    "floq": "floq, one task",
    "floq5": "floq, five tasks",
}


def resident(key: str) -> float:
    """MB of this process by /proc: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def load_theirs(env_name: str, dataset_dir: str) -> Any:
    """Training and validation data as dictionaries, from OGBench's loader."""
    import ogbench

    loaded: Any = ogbench.make_env_and_datasets(env_name, dataset_dir=dataset_dir)
    return loaded[1:]


def load(kind: str, env_name: str, dataset_dir: str):
    """The data as one of the loaders returns it."""
    if kind == "env":
        from floq.envs import environments

        return environments.make(env_name) and ()  # dropped at once, as the loaders do
    if kind == "ogbench":
        return load_theirs(env_name, dataset_dir)
    from floq.data.formats.ogbench import load_tasks

    names = [env_name.replace("-v0", f"-task{task}-v0") for task in range(1, 6)] if kind == "floq5" else [env_name]
    return load_tasks(names, Path(dataset_dir))


def measure(kind: str, env_name: str, dataset_dir: str) -> None:
    """Load once, in this process, and print seconds and MB."""
    import jax
    import ogbench  # noqa: F401

    import floq.data.formats.ogbench  # noqa: F401

    jax.block_until_ready(jax.numpy.zeros(3))
    before = resident("VmRSS")
    started = time.perf_counter()
    data = load(kind, env_name, dataset_dir)
    jax.block_until_ready(data)
    seconds = time.perf_counter() - started
    gc.collect()
    print(seconds, resident("VmHWM") - before, resident("VmRSS") - before)


def loading(env_name: str, dataset_dir: str) -> None:
    results: dict[str, list[list[float]]] = {kind: [] for kind in LOADERS}
    for _ in range(REPETITIONS):
        for kind, found in results.items():
            command = [sys.executable, "-W", "ignore", __file__, "--measure", kind]
            command += ["--env_name", env_name, "--dataset_dir", dataset_dir]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found.append([float(word) for word in done.stdout.split()])
    print(f"{'loading':<24} {'seconds':>8} {'peak MB':>8} {'MB after':>9}   best of {REPETITIONS}")
    for kind, found in results.items():
        seconds, peak, after = np.min(found, axis=0)
        print(f"{LOADERS[kind]:<24} {seconds:>8.2f} {peak:>8.0f} {after:>9.0f}")


def sampling(env_name: str, dataset_dir: str) -> None:
    import jax

    from floq.data.formats.ogbench import load_tasks

    data = load_tasks([env_name], Path(dataset_dir))[0].train
    theirs: Any = load_theirs(env_name, dataset_dir)[0]
    keys = ("observations", "actions", "next_observations", "rewards", "masks")
    rng = np.random.default_rng(0)

    def weigh(batch):
        return sum(batch[key].sum() for key in keys)  # so that nothing is optimised away

    @jax.jit
    def on_device(key):
        step = lambda i, total: total + weigh(data.sample(jax.random.fold_in(key, i), BATCH))  # noqa: E731
        return jax.lax.fori_loop(0, BATCHES, step, 0.0)

    weigh_one = jax.jit(weigh)

    def on_host(_):
        total = 0.0
        for _ in range(BATCHES):
            rows = rng.integers(0, len(theirs["rewards"]), BATCH)
            total = weigh_one(jax.device_put({key: theirs[key][rows] for key in keys}))
        return total

    best = {}
    for name, run in (("compiled loop", on_device), ("host and copy", on_host)) * REPETITIONS:
        if name not in best:
            jax.block_until_ready(run(jax.random.key(0)))  # compile
        started = time.perf_counter()
        jax.block_until_ready(run(jax.random.key(1)))
        best[name] = min(best.get(name, np.inf), time.perf_counter() - started)
    print(f"\n{'sampling, batch 256':<24} {'batches/s':>10}")
    for name, seconds in best.items():
        print(f"{name:<24} {BATCHES / seconds:>10,.0f}")
    print(f"{'ratio':<24} {best['host and copy'] / best['compiled loop']:>10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env_name", default="cube-single-play-singletask-v0")
    parser.add_argument("--dataset_dir", default=str(Path("~/.ogbench/data").expanduser()))
    parser.add_argument("--measure", choices=LOADERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure, options.env_name, options.dataset_dir)
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.env_name}")
    loading(options.env_name, options.dataset_dir)
    sampling(options.env_name, options.dataset_dir)


if __name__ == "__main__":
    main()
