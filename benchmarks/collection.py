"""How fast the scripted experts make data, with one worker process and with two, family by family.

    python benchmarks/collection.py [--rows 20000] [NAME ...]

Prints one table: rows per second with one worker and with two, starting the processes and writing the files included,
and the ratio. The two are measured one after the other, into a temporary folder.
"""

import argparse
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path

from floq.data.collection.collect import MANIPULATION, MAZES, collect, recipe, with_validation

NAMES = (
    *(f"pointmaze-{maze}-navigate-v0" for maze in MAZES),
    "pointmaze-medium-stitch-v0",
    *(f"antmaze-{maze}-navigate-v0" for maze in MAZES),
    "antmaze-medium-stitch-v0",
    *(f"{family}-play-v0" for family in MANIPULATION),
    "cube-single-noisy-v0",
)


def rows_per_second(name: str, episodes: int, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        collect(name, Path(folder), episodes=episodes, workers=workers)
        return with_validation(episodes) * recipe(name).rows / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="datasets; by default one per family")
    parser.add_argument("--rows", type=int, default=20_000, help="at least so many; of a point, ten times as many")
    options = parser.parse_args()
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {options.rows:,} rows, of a point ten times")
    print(f"{'dataset':<30} {'1 worker':>12} {'2 workers':>12} {'ratio':>6} {'published, 2 workers':>21}")
    for name in options.names:
        made = recipe(name)
        episodes = -(-options.rows * (10 if name.startswith("pointmaze") else 1) // made.rows)
        one, two = (rows_per_second(name, episodes, workers) for workers in (1, 2))
        minutes = with_validation(made.episodes) * made.rows / two / 60
        print(f"{name:<30} {one:>8.0f} 1/s {two:>8.0f} 1/s {two / one:>6.2f} {minutes:>17.0f} min", flush=True)


if __name__ == "__main__":
    main()
