"""What evaluating a fleet's runs together brings: episodes per second, and what the training beside it keeps.

    python benchmarks/evaluation.py [--runs 10] [--episodes 5] [settings]

`together` asks all policies in one call and steps all their environments at once, as floq does where environments are
small; `one after another` plays the runs in turn. Each alone and beside the training of the same fleet, by policies
that have learned nothing, so that episodes are as long as the task allows. The two take turns in one process; the rates
are over all of it. Settings and sizes are those of the demonstration where none are given.
"""

import argparse
import os
import platform
import threading
import time
from contextlib import ExitStack
from datetime import date

TRIES = 3
STEPS = 20  # of the training, per device call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--episodes", type=int, default=5)
    options, settings = parser.parse_known_args()

    from floq.bench import fleet_of, random_data
    from floq.cli import parse_train
    from floq.evaluate import Evaluator, Player, on_cpu
    from floq.machine import use_all_cores

    use_all_cores(options.runs)
    (config,) = parse_train(settings).configs
    assert config.env_name is not None, "an environment is what this measures"
    fleet = fleet_of(config, options.runs, random_data(2, 2))
    fleet.advance(1)  # compile
    players = [Player(on_cpu(fleet.agent(i).policy), i, 0, config.env_name) for i in range(options.runs)]
    protocol = config.env_name, config.success_timing, options.episodes
    with ExitStack() as stack:
        open_ = lambda players: stack.enter_context(Evaluator(*protocol, players=players))  # noqa: E731
        ways = {"one after another": open_(1), "together": open_(options.runs)}
        played, done = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0)

        def evaluate_all(name: str) -> None:
            for group in ways[name].groups(players):
                ways[name].play(group)

        for name in ways:
            evaluate_all(name)  # starts the workers and compiles
        alone = {name: min(_seconds(evaluate_all, name) for _ in range(TRIES)) for name in ways}

        steps, stop = 0, threading.Event()

        def train() -> None:
            nonlocal steps
            while not stop.is_set():
                fleet.advance(STEPS)
                steps += STEPS

        thread = threading.Thread(target=train)
        thread.start()
        time.sleep(1)
        for _ in range(TRIES):
            for name in ways:
                before = steps
                played[name] += _seconds(evaluate_all, name)
                done[name] += steps - before
        before, started = steps, time.perf_counter()
        time.sleep(5)
        undisturbed = (steps - before) / (time.perf_counter() - started)
        stop.set()
        thread.join()

    episodes = options.runs * options.episodes
    print(f"{date.today()}, {platform.machine()}, {os.cpu_count()} cores, {config.env_name}, {options.runs} runs")
    print(f"{'evaluation of the fleet':<24} {'episodes/s alone':>16} {'beside training':>16} {'run-updates/s':>14}")
    for name in ways:
        beside, updates = TRIES * episodes / played[name], options.runs * done[name] / played[name]
        print(f"{name:<24} {episodes / alone[name]:>16.1f} {beside:>16.1f} {updates:>14.0f}")
    print(f"{'none':<24} {'':>16} {'':>16} {options.runs * undisturbed:>14.0f}")


def _seconds(call, name: str) -> float:
    started = time.perf_counter()
    call(name)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
