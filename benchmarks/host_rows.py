"""What it costs that the images of a dataset do not lie on the device, but in the host's memory or in a mapped file.

    python benchmarks/host_rows.py [--gb 1] [--size 64] [--encoder impala_debug] [--runs 1]

Random images (size x size x 3), FQL with the settings of visual-cube-single and a small actor and critic. Compares a
batch of each, and prints updates per second, the best of three tries in turn, and the memory of the process, its own
and that of files that are mapped, after each try of the mapped file: flat, if only pages of the file come and go.
"""

import argparse
import os
import re
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

from floq.data.arrays import Trajectories, records
from floq.data.dataset import Dataset
from floq.data.formats.files import open_npz
from floq.runs.config import configure
from floq.training.bench import best_in_turn, fleet_of, repetitions_for
from floq.utils.machine import DATA_GB, cores, processor, use_all_cores

SMALL: dict[str, Any] = {"actor_hidden_dims": (64, 64), "value_hidden_dims": (64, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=1.0, help="of images")
    parser.add_argument("--size", type=int, default=64, help="pixels along a side")
    parser.add_argument("--encoder", default="impala_debug")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--runs", type=int, default=1, help="size of the fleets")
    parser.add_argument("--seconds", type=float, default=10, help="of a try")
    options = parser.parse_args()
    use_all_cores(options.runs)
    with tempfile.TemporaryDirectory() as folder:
        places = datasets(Path(folder) / "images.npz", options.gb, options.size)
    keys = jax.random.split(jax.random.key(0), 3)
    draws = {name: jax.jit(lambda data, key: data.sample(key, 64))(data, keys[0]) for name, data in places.items()}
    same = [jax.tree.all(jax.tree.map(np.array_equal, draws["device"], draw)) for draw in draws.values()]
    assert all(same), "the batches differ"

    own: dict[str, Any] = {"encoder": options.encoder, "batch_size": options.batch_size} | SMALL
    config = configure("visual-cube-single-play-singletask-v0", "fql", frame_stack=1, **own)
    fleets = {name: fleet_of(config, options.runs, data) for name, data in places.items()}
    used = []

    def advance(name: str, steps: int) -> None:
        fleets[name].advance(steps)
        if name == "mapped file":
            used.append(memory())

    calls = {name: lambda steps, name=name: advance(name, steps) for name in fleets}
    for call in calls.values():
        call(1)  # compile
    steps = repetitions_for(calls["device"], options.seconds)
    used.clear()
    best = best_in_turn(calls, dict.fromkeys(calls, steps))
    print(f"{date.today()}, {jax.devices()[0].device_kind}; {processor()}, {cores()} cores; {options.runs} runs")
    images = f"{options.gb:g} GB of images {options.size} x {options.size} x 3"
    print(f"{images}, {options.encoder}, batches of {options.batch_size}")
    for name, seconds in best.items():
        print(f"{name:<16} {1 / seconds:>8.2f} updates/s {seconds / best['device']:>6.3f} of the device's time")
    for number, (anonymous, mapped) in enumerate(used):
        print(f"after try {number + 1} from the mapped file: {anonymous:,.0f} MB in memory, {mapped:,.0f} MB of files")


def datasets(path: Path, gb: float, size: int) -> dict[str, Dataset]:
    """Write random images to a file, and read them in three ways."""
    rng, rows = np.random.default_rng(0), round(gb * 1e9 / (3 * size**2))
    np.savez(path, observations=rng.integers(0, 256, (rows, size, size, 3), np.uint8))
    ends = np.arange(1, rows + 1) % 200 == 0
    others = rng.uniform(-1, 1, (rows, 5)), -np.ones(rows), np.ones(rows), ends

    def read(mapped: bool, on_device: bool) -> Dataset:
        limits = "0" if mapped else "1e6", "1e6" if on_device else "0"
        os.environ[DATA_GB] = limits[0]
        images = records(open_npz(path, ["observations"]), str(path))
        os.environ[DATA_GB] = limits[1]
        return Dataset.from_rows(*Trajectories(images, *others))

    return {"device": read(False, True), "host's memory": read(False, False), "mapped file": read(True, False)}


def memory() -> tuple[float, float]:
    """Return the MB of this process: its own, and pages of files."""
    status = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    return int(status["RssAnon"]) / 1e3, int(status["RssFile"]) / 1e3


if __name__ == "__main__":
    main()
