"""What each pair of critic and actor costs at the demonstration's sizes: updates, an evaluation, the pictures.

    python benchmarks/pairs.py [--critics floq scalar] [--actors fql] [--updates 300] [--dataset_dir DIR]

Trains each for a few updates, then evaluates 50 episodes at once, which the untrained policy makes as long as the task
allows, and draws the pictures of a finished run; both with the compilation. Prints a row for each pair.
"""

import argparse
import os
import tempfile
from datetime import date

import jax

from floq.actors import ACTORS
from floq.analysis import pictures
from floq.critics import CRITICS
from floq.evaluation.rollouts import Evaluator, on_cpu
from floq.runs.config import configure
from floq.runs.run_data import load_data
from floq.training.bench import best_in_turn, fleet_of, seconds_of
from floq.training.train import train_fleet
from floq.utils.machine import cores, processor
from floq.utils.progress import Display


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critics", nargs="+", default=list(CRITICS))
    parser.add_argument("--actors", nargs="+", default=[name for name in ACTORS if name != "fixed"])
    parser.add_argument("--updates", type=int, default=300, help="updates of the run, and of each of three tries")
    parser.add_argument("--dataset_dir", default="~/.ogbench/data")
    options = parser.parse_args()
    print(f"{date.today()}, {processor()}, {cores()} cores, jax {jax.__version__}")
    print(f"{'critic':<12} {'actor':<14} {'precision':>9} {'updates/s':>9} {'50 episodes, s':>14} {'pictures, s':>11}")
    for critic in options.critics:
        for actor in options.actors:
            with tempfile.TemporaryDirectory() as folder:
                print(f"{critic:<12} {actor:<14} {row(critic, actor, options, folder)}", flush=True)
            jax.clear_caches()


def row(critic: str, actor: str, options: argparse.Namespace, folder: str) -> str:
    steps, where = options.updates, {"dataset_dir": os.path.expanduser(options.dataset_dir), "save_dir": folder}
    schedule = {"offline_steps": steps, "save_interval": steps, "log_interval": steps, "eval_interval": 0}
    config = configure(critic=critic, actor=actor, **schedule, **where)
    display = Display(False)
    data = load_data(config, display).train
    fleet = fleet_of(config, 1, data)
    fleet.advance(1)  # compile
    updates = 1 / best_in_turn({"": fleet.advance}, {"": steps})[""]
    (run,) = train_fleet([config], show=False, draw=False)
    agent = run.load_agent()
    with Evaluator(config.make_env, 50) as evaluator:
        evaluating = seconds_of(lambda: evaluator(on_cpu(agent.policy), 0, 0))
    drawing = seconds_of(lambda: pictures.draw_pictures(run, agent, data, display))
    return f"{run.config.precision:>9} {updates:>9.0f} {evaluating:>14.1f} {drawing:>11.1f}"


if __name__ == "__main__":
    main()
