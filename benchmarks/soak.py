"""A long training with evaluations and checkpoints, watched from outside: does anything grow, does it slow down?

    python benchmarks/soak.py [--minutes 60] [--out soak] [flags of floq train]

Trains with these flags beside some of its own (many evaluations and checkpoints, `--keep_checkpoints=3`), and ends it
with a signal when the time is over. Every ten seconds it looks at the process and its workers: memory, open files,
threads, mapped pieces of memory (Linux grants 65,530), processes, the size of the run folder, and gradient steps per
second of processor time, which other work on the machine disturbs less than the clock. Writes `OUT/soak.csv` and
`OUT/soak.png`, and prints one table: the first and the last quarter of the time, after the first tenth.
"""

import argparse
import csv
import os
import platform
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import psutil
from matplotlib.figure import Figure

EVERY = 10.0  # seconds between two looks
SMOOTH = 18  # looks over which the speed is taken: steps are known by the rows of a log
OWN = ["--seeds", "0", "1", "--offline_steps=100_000_000", "--log_interval=1_000", "--eval_interval=5_000"]
OWN += ["--save_interval=5_000", "--eval_episodes=4", "--keep_checkpoints=3"]
COLUMNS = {
    "memory": "memory of the trainer, MiB",
    "workers_memory": "memory of all workers, MiB",
    "files": "open files of the trainer",
    "workers_files": "open files of all workers",
    "threads": "threads of the trainer",
    "maps": "mapped pieces of memory",
    "processes": "processes",
    "disk": "run folders, MiB",
    "updates_per_cpu_second": "updates / second of processor time",
}


def look(process: psutil.Process, folder: Path) -> dict[str, float]:
    """What the process, its workers and their folders take now."""
    workers = process.children(recursive=True)
    own = {
        "memory": process.memory_info().rss / 2**20,
        "files": process.num_fds(),
        "threads": process.num_threads(),
        "maps": len(Path(f"/proc/{process.pid}/maps").read_text().splitlines()),
        "cpu": sum(process.cpu_times()[:2]),
    }
    theirs = {"workers_memory": 0.0, "workers_files": 0.0}
    for worker in workers:
        try:
            theirs["workers_memory"] += worker.memory_info().rss / 2**20
            theirs["workers_files"] += worker.num_fds()
        except psutil.NoSuchProcess:
            continue
    sizes = [path.lstat().st_size for path in _files(folder)]
    return own | theirs | {"processes": 1 + len(workers), "disk": sum(sizes) / 2**20, "step": _step(folder)}


def _files(folder: Path) -> list[Path]:
    return [Path(root) / name for root, _, names in os.walk(folder) for name in names if (Path(root) / name).exists()]


def _step(folder: Path) -> float:
    """The newest step in the log of the first run; 0 before there is one."""
    for log in sorted(folder.rglob("train.csv"))[:1]:
        lines = log.read_text().splitlines()
        if len(lines) > 1:
            return float(lines[-1].split(",")[0])
    return 0.0


def watch(command: list[str], folder: Path, minutes: float, out: Path) -> list[dict[str, float]]:
    """Run the command for so long, and return what was seen."""
    rows: list[dict[str, float]] = []
    started = time.monotonic()
    with open(out / "train.log", "w") as log:
        training = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        process = psutil.Process(training.pid)
        while (elapsed := time.monotonic() - started) < 60 * minutes and training.poll() is None:
            time.sleep(EVERY - elapsed % EVERY)
            if training.poll() is None:
                rows.append({"minutes": (time.monotonic() - started) / 60, **look(process, folder)})
                _write(rows, out / "soak.csv")
        training.send_signal(signal.SIGTERM)
        code = training.wait(120)
    if code != 128 + signal.SIGTERM:
        sys.exit(f"the training ended with {code}: see {out / 'train.log'}")
    return rows


def _write(rows: list[dict[str, float]], path: Path) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def columns(rows: list[dict[str, float]]) -> dict[str, np.ndarray]:
    """The rows after the first tenth, in which programs are compiled, as columns; the speed is over `SMOOTH` looks."""
    kept = [row for row in rows if row["minutes"] > rows[-1]["minutes"] / 10]
    table = {name: np.array([row[name] for row in kept]) for name in kept[0]}
    at = np.arange(len(kept))
    first, last = np.maximum(at - SMOOTH // 2, 0), np.minimum(at + SMOOTH // 2, len(kept) - 1)
    made, spent = (table[name][last] - table[name][first] for name in ("step", "cpu"))
    table["updates_per_cpu_second"] = made / np.maximum(spent, 1e-9)
    return table


def draw(table: dict[str, np.ndarray], title: str, path: Path) -> None:
    """Each column over the minutes, from zero."""
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    for axes, (name, label) in zip(figure.subplots(3, 3, sharex=True).flat, COLUMNS.items(), strict=True):
        axes.plot(table["minutes"], table[name], lw=1.2)
        axes.set_ylim(0, 1.25 * max(table[name].max(), 1))
        axes.set_title(label, fontsize=9)
        axes.grid(alpha=0.3)
    figure.supxlabel("minutes")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    options, flags = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    folder = options.out / "exp"
    own = [word for word in OWN if word.split("=")[0] not in {flag.split("=")[0] for flag in flags}]
    command = [sys.executable, "-m", "floq", "train", f"--save_dir={folder}", *own, *flags]
    rows = watch(command, folder, options.minutes, options.out)
    table = columns(rows)
    quarter = max(1, len(table["minutes"]) // 4)
    steps = f"{int(rows[-1]['step']):,} steps"
    title = f"{rows[-1]['minutes']:.0f} minutes, {steps}, {platform.machine()}, {os.cpu_count()} cores, {date.today()}"
    draw(table, title, options.out / "soak.png")
    print(title)
    print(f"{'':<36} {'first quarter':>14} {'last quarter':>14} {'ratio':>6}")
    for name, label in COLUMNS.items():
        first, last = np.median(table[name][:quarter]), np.median(table[name][-quarter:])
        print(f"{label:<36} {first:>14,.1f} {last:>14,.1f} {last / first if first else 1:>6.3f}")


if __name__ == "__main__":
    main()
