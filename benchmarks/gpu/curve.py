"""A learning curve of floq and FQL on a task of the paper, from data that is collected here.

    python benchmarks/gpu/curve.py --out FOLDER [--env_name cube-single-play-singletask-v0] [--steps 20000] [--seeds 3]

Collects as many episodes as all cores make in about a minute (the published number at most), or has a --data_program
write the file that it is given (as examples/pixel_maze.py, for its environment), trains a fleet of floq
(published settings, bf16), one with `--preset fast` and one of FQL, evaluations beside them, and writes a table and a
picture after each. With `--rounds N` they go on in turns, for as many steps again. What is finished when the time is up
stays.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from floq.data.collection.collect import recipe
from floq.envs.ogbench import dataset_name
from floq.utils.machine import cores

EPISODES_PER_CORE = 30  # of 1,000 steps: about a minute of a cube or a puzzle

FLEETS = {
    "floq": ["--agent=floq"],
    "floq fast": ["--agent=floq", "--preset=fast"],
    "fql": ["--agent=fql"],
    "fql of equal operations": ["--agent=fql", "--preset=fast", "--match=flops"],  # to those of floq fast
}
USUAL = ["floq", "floq fast", "fql"]
CURVES = Path(__file__).parents[1] / "learning_curves.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "floq-curve", help="data and runs")
    parser.add_argument("--env_name", default="cube-single-play-singletask-v0")
    parser.add_argument("--episodes", type=int, help="to collect")
    parser.add_argument("--data_program", help="makes the data")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--fleets", nargs="+", default=USUAL, choices=FLEETS)
    options, settings = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data, exp, own_data = options.work / "data", options.work / "exp", []
    python = [sys.executable, "-W", "ignore"]
    floq = [*python, "-m", "floq"]
    if options.data_program:
        data.mkdir(parents=True, exist_ok=True)
        own_data = [f"--dataset={data / 'made.npz'}"]
        subprocess.run([*python, options.data_program, str(data / "made.npz")], check=True)
    elif not (data / f"{(name := dataset_name(options.env_name))}.npz").exists():
        episodes = options.episodes or min(recipe(name).episodes, EPISODES_PER_CORE * cores())
        subprocess.run([*floq, "data", "collect", name, f"--dataset_dir={data}", f"--episodes={episodes}"], check=True)
    seeds = [str(seed) for seed in range(options.seeds)]
    intervals = {"eval_interval": 10, "log_interval": 20, "save_interval": 1}  # parts of the run
    flags = [f"--{name}={max(1, options.steps // parts)}" for name, parts in intervals.items()]
    flags += [f"--env_name={options.env_name}", f"--dataset_dir={data}", f"--save_dir={exp}", "--seeds", *seeds]
    flags += ["--precision=bf16", *own_data]
    groups: dict[str, Path] = {}
    for steps in range(options.steps, options.rounds * options.steps + 1, options.steps):
        for fleet in options.fleets:
            folder, total = exp / "floq" / fleet.replace(" ", "_"), f"--offline_steps={steps}"
            if steps == options.steps:
                shutil.rmtree(folder, ignore_errors=True)  # of a curve before this one
                own = [f"--run_group={folder.name}", *FLEETS[fleet], *settings]
                subprocess.run([*floq, "train", *flags, total, *own], check=True)
            else:
                runs = [str(path.parent) for path in sorted(folder.glob("*/*/config.json"))]
                subprocess.run([*floq, "train", "--resume", *runs, total], check=True)
            groups[fleet] = folder
            named = [f"{name}={folder}" for name, folder in groups.items()]
            table = [*python, str(CURVES), "--out", str(options.out / "curve.png"), *named]
            subprocess.run(table, check=True)


if __name__ == "__main__":
    main()
