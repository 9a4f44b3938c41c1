"""Loading the same transitions from every format that floq reads.

    python benchmarks/formats.py [--rows 1000000]

Writes 1,000 episodes of a HalfCheetah's sizes (17 numbers seen, 6 of an action) in each format, and loads each in a
process of its own, as a run does: read, checked, split and put on the device. Prints the size on disk, seconds, and the
memory that it took at its peak and in the end beyond what the process had after its imports.
"""

import argparse
import gc
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from loading import REPETITIONS, resident

OBS, ACT, EPISODES = 17, 6, 1_000
COLUMNS = {"observations": ["x*"], "actions": ["a*"], "reward": "r", "truncated": "cut", "episode": "episode"}


def write(folder: Path, rows: int) -> dict[str, Path]:
    """Write the data in every format; returns the path of each."""
    import h5py
    import minari
    import pyarrow
    from gymnasium.spaces import Box
    from minari.data_collector import EpisodeBuffer
    from pyarrow import csv, parquet

    rng, length = np.random.default_rng(0), rows // EPISODES
    states = rng.normal(size=(EPISODES, length + 1, OBS)).astype(np.float32)
    actions = rng.uniform(-1, 1, (EPISODES, length, ACT)).astype(np.float32)
    rewards = rng.normal(size=(EPISODES, length)).astype(np.float32)
    never, last = np.zeros(length, bool), np.arange(length) == length - 1
    flat: dict[str, Any] = {"observations": states[:, :-1].reshape(-1, OBS), "actions": actions.reshape(-1, ACT)}
    flat |= {"rewards": rewards.ravel(), "terminals": np.tile(never, EPISODES), "timeouts": np.tile(last, EPISODES)}
    kinds = {"npz": "flat.npz", "folder of npz": "folder", "D4RL": "d4rl.hdf5", "robomimic": "demos.hdf5"}
    kinds |= {"CSV": "a.csv", "parquet": "a.parquet", "Minari": "bench-v0"}
    paths = {kind: folder / name for kind, name in kinds.items()}
    np.savez(paths["npz"], **flat)
    paths["folder of npz"].mkdir()
    with h5py.File(paths["D4RL"], "w") as file:
        for key, x in flat.items():
            file[key] = x
    with h5py.File(paths["robomimic"], "w") as file:
        for n in range(EPISODES):
            one = {"observations": states[n], "actions": actions[n], "rewards": rewards[n]}
            np.savez(paths["folder of npz"] / f"{n:04d}.npz", **one, terminations=never)
            demo = file.create_group(f"data/demo_{n}")
            demo["obs/x"], demo["next_obs/x"], demo["actions"] = states[n, :-1], states[n, 1:], actions[n]
            demo["rewards"], demo["dones"] = rewards[n], never.astype(int)
    columns = {f"x{i}": flat["observations"][:, i] for i in range(OBS)}
    columns |= {f"a{i}": flat["actions"][:, i] for i in range(ACT)}
    columns |= {"r": flat["rewards"], "cut": flat["timeouts"], "episode": np.repeat(np.arange(EPISODES), length)}
    csv.write_csv(pyarrow.table(columns), paths["CSV"])
    parquet.write_table(pyarrow.table(columns), paths["parquet"])
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ends = {"terminations": never.tolist(), "truncations": last.tolist()}
        data = zip(states, actions, rewards, strict=True)
        episodes = [EpisodeBuffer(None, None, None, s, a, r.tolist(), **ends) for s, a, r in data]
        spaces = Box(-np.inf, np.inf, (OBS,), np.float32), Box(-1, 1, (ACT,), np.float32)
        minari.create_dataset_from_buffers("bench-v0", episodes, observation_space=spaces[0], action_space=spaces[1])
    return paths


def measure(path: str) -> None:
    """Load once, in this process, and print seconds and MB."""
    import jax

    from floq.data.formats.open import open_splits
    from floq.data.options import DataOptions

    jax.block_until_ready(jax.numpy.zeros(3))
    options = DataOptions(columns=COLUMNS) if path.endswith((".csv", ".parquet")) else DataOptions()
    before, started = resident("VmRSS"), time.perf_counter()
    splits = open_splits(path, "none", options=options)
    jax.block_until_ready(splits.train)
    seconds = time.perf_counter() - started
    gc.collect()
    print(seconds, resident("VmHWM") - before, resident("VmRSS") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return measure(options.measure)
    processor = next(x for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x).partition(": ")[2]
    print(f"{date.today()}, {processor} ({platform.machine()}), {os.cpu_count()} cores, {options.rows:,} transitions")
    with tempfile.TemporaryDirectory() as folder:
        results: dict[str, list[list[float]]] = {}
        paths = write(Path(folder), options.rows)
        for _ in range(REPETITIONS):
            for kind, path in paths.items():
                command = [sys.executable, "-W", "ignore", __file__, "--measure", str(path)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                results.setdefault(kind, []).append([float(word) for word in done.stdout.split()])
        print(
            f"{'format':<14} {'MB on disk':>10} {'seconds':>8} {'peak MB':>8} {'MB after':>9}   best of {REPETITIONS}"
        )
        for kind, found in results.items():
            files = [paths[kind], *paths[kind].rglob("*")]
            size = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
            seconds, peak, after = np.min(found, axis=0)
            print(f"{kind:<14} {size:>10.0f} {seconds:>8.2f} {peak:>8.0f} {after:>8.0f}")


if __name__ == "__main__":
    main()
