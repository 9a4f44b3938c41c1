"""Progress of the jobs of a sweep: a live table on a terminal, otherwise a line for each change.

It is read from files on the shared storage: the CSV files of the runs, and a line that each try of a job writes when it
starts.
"""

import contextlib
import io
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from floq.analysis.metrics import last, primary_metric
from floq.analysis.report.groups import short_count
from floq.analysis.report.watch import STYLES, Watcher, clock, short_name
from floq.runs.record import RunRecord
from floq.sweep.jobs import Job, Outcome
from floq.sweep.plan import folders_of

ATTEMPTS = "cell-{}.jsonl"
"""The file of a job, by its number: a line for each try, with `node`, `pid` and `time` (seconds since 1970)."""

COLUMNS = {"job": 4, "what": 10, "runs": 4, "step / total": 13, "score": 8, "left": 5, "tries": 5, "time": 5}
COLUMNS |= {"node": 8, "state": 7}
"""Names and minimum widths."""

RATIOS = {"what": 3, "node": 1}
MIN_WIDTH_FOR_NODES = 100  # characters of a terminal that shows the column of nodes
REFRESH_SECONDS = 2.0
SUMMARY_SECONDS = 60.0  # between summaries where there is no terminal
COLOURS = {"waiting": "dim", "running": STYLES["running"], "done": "dim", "failed": "bold red", "stopped": "yellow"}


class Progress(NamedTuple):
    """Progress of a job's runs: mean step and score over them, the name of the score, and seconds left."""

    step: float = 0.0
    score: str = "-"
    metric: str = ""
    left: float = math.nan


class Board:
    """Display of the jobs of a sweep; a context manager that discards all other output.

    Args:
        jobs: in the order of their numbers.
        mark: the folder in which each try of a job writes its line.
        show: print at all.
        console: the console to print to; by default standard output.
    """

    def __init__(self, jobs: Sequence[Job], mark: Path, show: bool = True, console: Console | None = None):
        self._jobs, self._mark = jobs, mark
        self._console = console or Console(file=sys.stdout, highlight=False, quiet=not show)
        self._outcomes: dict[int, tuple[Outcome, float]] = {}
        self._watchers: dict[int, tuple[int, Watcher]] = {}
        self._progress = {number: self._read(number) for number in range(len(jobs))}
        self._shown_tries = dict.fromkeys(range(len(jobs)), 0)
        self._refreshed_at = self._summary_at = time.monotonic()
        self._live: Live | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Board":
        if self._console.is_terminal and not self._console.quiet:
            live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live = self._stack.enter_context(live)
        # Ray prints messages about retries into the table, which has a column for them; its logs keep the messages.
        self._stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self.table(), refresh=True)
        else:
            self.say(self._summary())
        self._stack.close()

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self._console.print(text, markup=False, soft_wrap=True)

    def ended(self, number: int, outcome: Outcome) -> None:
        """Record and print the outcome of a job."""
        self._outcomes[number] = outcome, time.time()
        self._progress[number] = self._read(number)
        tries = self.tries(number)
        again = f", {len(tries)} tries" if len(tries) > 1 else ""
        if self._live is None:
            self._print_started()
        if outcome.state == "failed" or self._live is None:
            progress = self._progress[number]
            result = f"{progress.metric} {progress.score}" if outcome.state == "done" else outcome.line
            self.say(f"{outcome.state:<8}job {number + 1}{again}: {self._jobs[number].label}, {result}".rstrip(", "))

    def look(self) -> None:
        """Update the display if `REFRESH_SECONDS` have passed."""
        if time.monotonic() - self._refreshed_at < REFRESH_SECONDS:
            return
        self._refreshed_at = time.monotonic()
        for number in range(len(self._jobs)):
            if self.state(number) == "running":
                self._progress[number] = self._read(number)
        if self._live is not None:
            return self._live.update(self.table(), refresh=True)
        self._print_started()
        if time.monotonic() - self._summary_at > SUMMARY_SECONDS:
            self._summary_at = time.monotonic()
            self.say(self._summary())

    def tries(self, number: int) -> list[dict]:
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
            tries = self.tries(number)
            if len(tries) > self._shown_tries[number]:
                again = f", try {len(tries)}" if len(tries) > 1 else ""
                self.say(f"begun   job {number + 1} on {tries[-1]['node']}{again}: {job.label}, {_runs(job)}")
            self._shown_tries[number] = len(tries)

    def state(self, number: int) -> str:
        """Return the state of a job, a key of `COLOURS`."""
        if number in self._outcomes:
            return self._outcomes[number][0].state
        return "running" if self.tries(number) else "waiting"

    def table(self) -> Table:
        """Return a table of the jobs, those that have ended last, as many as fit the terminal."""
        names = {progress.metric for progress in self._progress.values() if progress.metric}
        header = names.pop() if len(names) == 1 else "score"
        columns = [name for name in COLUMNS if name != "node" or self._console.width >= MIN_WIDTH_FOR_NODES]
        table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", title_justify="left", title_style="bold")
        table.title, table.expand = self._summary(), True
        for name in columns:
            size, is_text = COLUMNS[name], name in ("what", "node", "state")
            table.add_column(
                header if name == "score" else name,
                justify="left" if is_text else "right",
                no_wrap=True,
                overflow="ellipsis",
                min_width=size,
                ratio=RATIOS.get(name),
            )
        numbers = sorted(range(len(self._jobs)), key=lambda n: (n in self._outcomes, self.state(n) == "waiting", n))
        room = max(1, self._console.height - 5) if self._live is not None else len(numbers)
        for number in numbers[:room]:
            row = self._row(number)
            table.add_row(*(row[name] for name in columns))
        if len(numbers) > room:
            table.caption, table.caption_justify = f"... and {len(numbers) - room} more", "left"
        return table

    def _row(self, number: int) -> dict[str, str | Text]:
        """Return the cells of a job's row, by the names of `COLUMNS`."""
        job, tries, state = self._jobs[number], self.tries(number), self.state(number)
        progress, total = self._progress[number], job.configs[0].total_steps
        end = self._outcomes[number][1] if number in self._outcomes else time.time()
        return {
            "job": str(number + 1),
            "what": job.label,
            "runs": str(len(job.configs)),
            "step / total": f"{short_count(int(progress.step))} / {short_count(total)}",
            "score": progress.score,
            "left": clock(progress.left) if state == "running" else "",
            "tries": str(len(tries) or ""),
            "time": clock(end - tries[0]["time"]) if tries else "",
            "node": tries[-1]["node"] if tries else "",
            "state": Text(state, style=COLOURS[state]),
        }

    def _summary(self) -> str:
        states = [self.state(number) for number in range(len(self._jobs))]
        counts = ", ".join(f"{states.count(name)} {name}" for name in COLOURS if name in states)
        retries = sum(max(0, len(self.tries(number)) - 1) for number in range(len(self._jobs)))
        steps = [self._progress[n].step * len(job.configs) for n, job in enumerate(self._jobs)]
        total = sum(len(job.configs) * job.configs[0].total_steps for job in self._jobs)
        again = f"{retries} {'retry' if retries == 1 else 'retries'}"
        return f"jobs   {counts}; {again}; {sum(steps) / total:.0%} of all steps"

    def _read(self, number: int) -> Progress:
        """Read the progress of a job from the files of its runs; runs without files are at step 0."""
        job = self._jobs[number]
        folders = [newest for config in job.configs for newest in folders_of(config)[:1]]
        if not folders:
            return Progress()
        count, watcher = self._watchers.get(number, (0, None))
        if watcher is None or count != len(folders):
            watcher = Watcher(folders)
        self._watchers[number] = len(folders), watcher
        runs = [run for run in watcher.look().values() if isinstance(run, RunRecord)]
        if not runs:
            return Progress()
        metric, rates = primary_metric(runs), [run.steps_per_second for run in runs]
        known = [value for run in runs if math.isfinite(value := last(run, metric))]
        score = metric.shown(sum(known) / len(known)) if known else "-"
        slowest = min((rate for rate in rates if rate > 0), default=math.nan)
        left = max(run.total_steps - run.step for run in runs) / slowest
        name = short_name(metric) if known else ""
        return Progress(sum(run.step for run in runs) / len(job.configs), score, name, left)


def _runs(job: Job) -> str:
    return f"{len(job.configs)} run{'s' * (len(job.configs) > 1)}"
