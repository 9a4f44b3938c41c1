"""Progress of the jobs of a sweep on Ray: a line for each that begins or ends, and a summary every minute. `floq watch`
shows the runs themselves.

It is read from files on the shared storage: those of the runs, and a line that each try of a job writes when it starts.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from floq.analysis.metrics import last, primary_metric
from floq.runs.record import RunRecord, read_runs
from floq.sweep.jobs import Job, Outcome
from floq.sweep.plan import folders_of

ATTEMPTS = "cell-{}.jsonl"
"""The file of a job, by its number: a line for each try, with `node`, `pid` and `time` (seconds since 1970)."""

LOOK_SECONDS, SUMMARY_SECONDS = 2.0, 60.0
STATES = ("waiting", "running", "done", "failed", "stopped")


class Board:
    """Display of the jobs of a sweep; a context manager that discards all other output.

    Args:
        jobs: in the order of their numbers.
        mark: the folder in which each try of a job writes its line.
        console: the console to print to; by default standard output.
    """

    def __init__(self, jobs: Sequence[Job], mark: Path, console: Console | None = None):
        self._jobs, self._mark = jobs, mark
        self._console = console or Console(file=sys.stdout, highlight=False)
        self._outcomes: dict[int, Outcome] = {}
        self._shown_tries = [0] * len(jobs)
        self._looked_at = self._summary_at = time.monotonic()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Board":
        # Ray prints messages about retries between the lines; its logs keep the messages.
        self._stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return self

    def __exit__(self, *_: object) -> None:
        self.say(self._summary())
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def ended(self, number: int, outcome: Outcome) -> None:
        """Record and print the outcome of a job."""
        self._outcomes[number] = outcome
        self._print_started()
        tries, runs, result = len(self._tries(number)), self._read(number), outcome.line
        metric = primary_metric(runs)
        known = [value for run in runs if np.isfinite(value := last(run, metric))]
        if outcome.state == "done" and known:
            result = f"{metric.short} {metric.shown(float(np.mean(known)))}"
        again = f", {tries} tries" if tries > 1 else ""
        self.say(f"{outcome.state:<8}job {number + 1}{again}: {self._jobs[number].label}, {result}".rstrip(", "))

    def look(self) -> None:
        """Print which jobs have begun if `LOOK_SECONDS` have passed, and a summary after `SUMMARY_SECONDS`."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        self._print_started()
        if time.monotonic() - self._summary_at > SUMMARY_SECONDS:
            self._summary_at = time.monotonic()
            self.say(self._summary())

    def _tries(self, number: int) -> list[dict]:
        """Read the lines that the tries of a job have written, the newest last."""
        try:
            lines = (self._mark / ATTEMPTS.format(number)).read_text().splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # half written
                found.append(json.loads(line))
        return found

    def _print_started(self) -> None:
        """Print a line for each job with a new try since the last call."""
        for number, job in enumerate(self._jobs):
            tries, count = self._tries(number), len(job.configs)
            if len(tries) > self._shown_tries[number]:
                again = f", try {len(tries)}" if len(tries) > 1 else ""
                runs = f"{count} run{'s' * (count > 1)}"
                self.say(f"begun   job {number + 1} on {tries[-1]['node']}{again}: {job.label}, {runs}")
            self._shown_tries[number] = len(tries)

    def _summary(self) -> str:
        tries = [len(self._tries(number)) for number in range(len(self._jobs))]
        begun = ["running" if count else "waiting" for count in tries]
        states = [self._outcomes[n].state if n in self._outcomes else state for n, state in enumerate(begun)]
        counts = ", ".join(f"{states.count(name)} {name}" for name in STATES if name in states)
        retries = sum(max(0, count - 1) for count in tries)
        steps = sum(run.step for number in range(len(self._jobs)) for run in self._read(number))
        total = sum(len(job.configs) * job.configs[0].total_steps for job in self._jobs)
        again = f"{retries} {'retry' if retries == 1 else 'retries'}"
        return f"jobs   {counts}; {again}; {steps / total:.0%} of all steps"

    def _read(self, number: int) -> list[RunRecord]:
        """Read the runs of a job; those without a folder are left out."""
        return read_runs(newest for config in self._jobs[number].configs for newest in folders_of(config)[:1])[0]
