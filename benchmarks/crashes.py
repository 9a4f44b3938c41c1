"""Crash trainings at random and at chosen moments, resume them, and compare what comes of it with undisturbed ones.

    python benchmarks/crashes.py --kills 120 --seed 0

Each run is ended again and again, by a signal from outside or by SIGKILL from inside a function (see
`crash_inside.py`), and resumed with `floq train --resume`, until it has ended. After every kill the newest checkpoints
are read; in the end parameters, optimiser states, random keys and log rows are compared (see `crash_scenarios.py`).
"""

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crash_inside import WRITING
from crash_processes import PATIENCE, Forks, Fresh, Process
from crash_scenarios import SCENARIOS, Scenario, damage, losses, phase, run_folders, write_data

from floq.utils.progress import Display

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MAX_OPERATIONS = {"create": 8, "json": 6, "find": 3, "cut back": 14, "cut csv": 4, "log": 60, "save": 80, "draw": 3}
TO_RUN, AT_RUN = 6.0, 4.0  # seconds: of a process until it trains, and from there; measured with the undisturbed run


@dataclass
class Tally:
    """What was done, and what it did."""

    kills: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    lost: list[str] = field(default_factory=list)
    rounds: int = 0
    anew: int = 0
    resumes: int = 0

    @property
    def total(self) -> int:
        return sum(self.kills.values())


class Crasher:
    """Trains a scenario while it ends the process again and again.

    Args:
        folder: for the data, the undisturbed runs and the crashed ones.
        seed: of the moments.
        forks: where most processes come from.
        environment: of the others.
    """

    def __init__(self, folder: Path, seed: int, forks: Forks, environment: Mapping[str, str]):
        self.folder, self.rng, self.tally = folder, random.Random(seed), Tally()
        self._forks, self._environment = forks, environment
        self._data = write_data(folder / "data.npz")
        self._output, self._durations = folder / "output.txt", (TO_RUN, AT_RUN)

    def reference(self, scenario: Scenario) -> list[Path]:
        """The undisturbed runs of a scenario."""
        save_dir = self.folder / "undisturbed" / scenario.name.replace(" ", "-")
        if not save_dir.exists():
            words, started = scenario.command(self._data, save_dir), time.monotonic()
            process = self._forks.start(words, self._output)
            self._wait_for_training(process)
            trains = time.monotonic()
            self._check(process.end()[0], (0,), words)
            self._durations = trains - started, time.monotonic() - trains
        return run_folders(save_dir)

    def go(self, scenario: Scenario, most_kills: int) -> None:
        """One round: from a fresh run to its end, with up to so many kills on the way."""
        reference = self.reference(scenario)
        self.tally.rounds += 1
        save_dir = self.folder / "crashed" / f"{self.tally.rounds:03d}"
        killed, ended = 0, False
        while not ended:
            folders = run_folders(save_dir)
            if folders and len(folders) < scenario.runs:  # a fleet whose folders were not all made yet
                shutil.rmtree(save_dir)
                self.tally.anew += 1
                folders = []
            words = ["train", "--resume", *map(str, folders)] if folders else scenario.command(self._data, save_dir)
            self.tally.resumes += bool(folders)
            kill = killed < most_kills
            kind, code = self._attempt(scenario, words, bool(folders)) if kill else self._undisturbed(words)
            ended = code == 0
            if not ended:
                folders = run_folders(save_dir)
                printed = self._output.read_text()
                self.tally.kills[kind, phase(folders, printed) if folders else "start-up"] += 1
                killed += 1
                print(f"{self.tally.total:4d}  {scenario.name:20}  {kind}", file=sys.stderr, flush=True)
                self._note(damage(folders), scenario)
        self._note(losses(scenario, reference, run_folders(save_dir)), scenario)
        if not self.tally.lost:
            shutil.rmtree(save_dir)

    def _note(self, found: Sequence[str], scenario: Scenario) -> None:
        self.tally.lost += [f"{scenario.name}, round {self.tally.rounds}: {what}" for what in found]

    def _attempt(self, scenario: Scenario, words: list[str], resumes: bool) -> tuple[str, int]:
        """Start a process and end it, if it has not ended before. Returns how, and its exit code."""
        if self.rng.random() < 0.5:
            return self._killed_inside(scenario, words, resumes)
        return self._signalled(words)

    def _killed_inside(self, scenario: Scenario, words: list[str], resumes: bool) -> tuple[str, int]:
        resuming = ("find", "cut back", "cut csv")
        only_here, other = (resuming, ("create",)) if resumes else (("create",), resuming)
        points = [point for point in scenario.points if point not in other]
        point = self.rng.choice(only_here if self.rng.random() < 0.25 else points)
        number = self.rng.randint(1, MAX_OPERATIONS.get(point, 3))
        code = self._ended(self._forks.start(words, self._output, point, number))
        self._check(code, (0, -signal.SIGKILL), [point, str(number), *words])
        return f"inside: {point}" if point in WRITING else f"during: {point}", code

    def _signalled(self, words: list[str]) -> tuple[str, int]:
        chosen = self.rng.choice(SIGNALS)
        if self.rng.random() < 0.2:
            process, delay = Fresh(words, self._output, self._environment), self.rng.uniform(0, self._durations[0])
        else:
            process, delay = self._forks.start(words, self._output), self.rng.uniform(0, self._durations[1])
            self._wait_for_training(process)
        process.wait(delay)
        process.signal(chosen)
        code = self._ended(process)
        self._check(code, (0, -chosen, 128 + chosen), [chosen.name, *words])
        return chosen.name, code

    def _undisturbed(self, words: list[str]) -> tuple[str, int]:
        code = self._ended(self._forks.start(words, self._output))
        self._check(code, (0,), words)
        return "", code

    def _ended(self, process: Process) -> int:
        code, orphans = process.end()
        if orphans:
            self.tally.lost.append(f"processes left behind after exit code {code}")
        return code

    def _check(self, code: int, expected: Sequence[int], words: Sequence[str]) -> None:
        if code not in expected:
            raise RuntimeError(f"exit code {code} of {' '.join(words)}:\n{self._output.read_text()}")

    def _wait_for_training(self, process: Process) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and process.wait(0.02) is None:
            if self._output.exists() and "run     " in self._output.read_text():
                return


def show(tally: Tally, seconds: float, display: Display) -> None:
    """Print one table, and what was lost."""
    rows = [[kind, place, str(count)] for (kind, place), count in sorted(tally.kills.items())]
    title = f"{tally.total} kills in {tally.rounds} trainings, {tally.resumes} resumes, {seconds / 60:.0f} minutes"
    display.columns(title, ["how", "where", "kills"], rows)
    display.note(f"begun anew, since not all folders of a fleet were made: {tally.anew}")
    display.note(f"lost: {len(tally.lost) or 'nothing'}")
    for what in tally.lost:
        display.note(f"  {what}")


def crash(kills: int, seed: int, folder: Path, per_round: int = 12, scenarios: Sequence[Scenario] = SCENARIOS) -> Tally:
    """Crash the scenarios in turn until there were so many kills, or until Ctrl-C."""
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
    quick = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "XLA_FLAGS": "--xla_backend_optimization_level=1"}
    environment = os.environ | quick | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": "cpu"}
    with Forks(environment) as forks:
        crasher = Crasher(folder, seed, forks, environment)
        with contextlib.suppress(KeyboardInterrupt):
            while crasher.tally.total < kills:
                for scenario in scenarios:
                    if (left := kills - crasher.tally.total) > 0:
                        crasher.go(scenario, min(per_round, left))
    return crasher.tally


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=120, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--per_round", type=int, default=12, help="kills of one training, at most")
    parser.add_argument("--folder", type=Path, help="where to work; by default a temporary folder")
    options, started = parser.parse_args(), time.monotonic()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job would pass on that it is ignored
    with tempfile.TemporaryDirectory() if options.folder is None else contextlib.nullcontext(options.folder) as folder:
        tally = crash(options.kills, options.seed, Path(folder), options.per_round)
    show(tally, time.monotonic() - started, Display())
    sys.exit(1 if tally.lost else 0)


if __name__ == "__main__":
    main()
