"""Progress of the jobs of a sweep: a line for each that begins or ends, and on a terminal the live table of the runs
that train.

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
from rich.console import Console, RenderableType
from rich.live import Live

from floq.analysis.metrics import last, primary_metric
from floq.analysis.report.watch import look, screen
from floq.runs.record import RunRecord
from floq.sweep.jobs import Job, Outcome
from floq.sweep.plan import folders_of

ATTEMPTS = "cell-{}.jsonl"
"""The file of a job, by its number: a line for each try, with `node`, `pid` and `time` (seconds since 1970)."""

REFRESH_SECONDS = 2.0
SUMMARY_SECONDS = 60.0  # between summaries where there is no terminal
STATES = ("waiting", "running", "done", "failed", "stopped")


class Board:
    """Display of the jobs of a sweep; a context manager that discards all other output.

    Args:
        jobs: in the order of their numbers.
        mark: the folder in which each try of a job writes its line.
        show: print at all.
        console: the console to print to; by default standard output.
    """

    def __init__(self, jobs: Sequence[Job], mark: Path, show: bool = True, console: Console | None = None):
        self._jobs, self._mark, self._cache = jobs, mark, {}
        self._console = console or Console(file=sys.stdout, highlight=False, quiet=not show)
        self._outcomes: dict[int, Outcome] = {}
        self._runs = {number: self._read(number) for number in range(len(jobs))}
        self._shown_tries = dict.fromkeys(range(len(jobs)), 0)
        self._refreshed_at = self._summary_at = time.monotonic()
        self._live: Live | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Board":
        if self._console.is_terminal and not self._console.quiet:
            live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live = self._stack.enter_context(live)
        # Ray prints messages about retries into the table; its logs keep the messages.
        self._stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update("", refresh=True)
        self.say(self._summary())
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, markup=False, soft_wrap=True)

    def ended(self, number: int, outcome: Outcome) -> None:
        """Record and print the outcome of a job."""
        self._outcomes[number], self._runs[number] = outcome, self._read(number)
        self._print_started()
        tries, runs, result = len(self._tries(number)), self._runs[number], outcome.line
        metric = primary_metric(runs)
        known = [value for run in runs if np.isfinite(value := last(run, metric))]
        if outcome.state == "done" and known:
            result = f"{metric.short} {metric.shown(float(np.mean(known)))}"
        again = f", {tries} tries" if tries > 1 else ""
        self.say(f"{outcome.state:<8}job {number + 1}{again}: {self._jobs[number].label}, {result}".rstrip(", "))

    def look(self) -> None:
        """Update the display if `REFRESH_SECONDS` have passed."""
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        self._runs |= {number: self._read(number) for number in range(len(self._jobs)) if self._is_running(number)}
        self._print_started()
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        elif time.monotonic() - self._summary_at > SUMMARY_SECONDS:
            self._summary_at = time.monotonic()
            self.say(self._summary())

    def table(self) -> RenderableType:
        """Return the table of the runs of jobs that are being trained, as many as fit the terminal."""
        runs = (run for number in range(len(self._jobs)) if self._is_running(number) for run in self._runs[number])
        height = self._console.height if self._live is not None else None
        return screen({run.folder: run for run in runs}, self._console.width, height, self._summary())

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

    def _state(self, number: int) -> str:
        """Return the state of a job, one of `STATES`."""
        if number in self._outcomes:
            return self._outcomes[number].state
        return "running" if self._tries(number) else "waiting"

    def _is_running(self, number: int) -> bool:
        return self._state(number) == "running"

    def _summary(self) -> str:
        states = [self._state(number) for number in range(len(self._jobs))]
        counts = ", ".join(f"{states.count(name)} {name}" for name in STATES if name in states)
        retries = sum(max(0, len(self._tries(number)) - 1) for number in range(len(self._jobs)))
        steps = sum(run.step for runs in self._runs.values() for run in runs)
        total = sum(len(job.configs) * job.configs[0].total_steps for job in self._jobs)
        again = f"{retries} {'retry' if retries == 1 else 'retries'}"
        return f"jobs   {counts}; {again}; {steps / total:.0%} of all steps"

    def _read(self, number: int) -> list[RunRecord]:
        """Read the runs of a job; those without a folder are left out."""
        folders = [newest for config in self._jobs[number].configs for newest in folders_of(config)[:1]]
        return [run for run in look(folders, self._cache).values() if isinstance(run, RunRecord)]
