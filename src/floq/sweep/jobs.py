"""Runs of a sweep: the plan of its experiments, and jobs, which one process each trains as one program."""

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from floq.analysis.cost import Cost, cost_of
from floq.analysis.matching import matched
from floq.analysis.metrics import last, primary_metric
from floq.envs import ogbench
from floq.envs.environments import task_dims
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.record import RunRecord, read_runs
from floq.runs.run import Run
from floq.runs.run_data import fetch_missing, resolve_data_paths
from floq.sweep.experiment import Experiment, Group, resolve
from floq.training.resume import resume_fleet, stopped_together
from floq.training.train import check_built, fleets, train_fleet
from floq.utils.errors import Failed, Interrupted, UserError, nearest
from floq.utils.progress import Display

# --- Plan ---


@dataclass(frozen=True)
class Entry:
    """The runs of one group on one task: their resolved configurations, and the cost of one of them."""

    experiment: Experiment
    group: Group
    task: str
    configs: tuple[Config, ...]
    cost: Cost

    @property
    def finished(self) -> list[Run | None]:
        """The finished run of each configuration, None if there is none."""
        return [finished_run(config) for config in self.configs]


def plan(experiment: Experiment, save_dir: str, dataset_dir: str) -> list[Entry]:
    """Return the runs of an experiment, group by group and task by task. Raises UserError if a group, a setting or a
    task of the file is wrong."""
    named, datasets = experiment.budget.data, {ogbench.dataset_name(task) for task in ogbench.names()}
    if unknown := sorted(named.keys() - datasets):
        raise UserError(
            f"{experiment.budget.path}: data: no OGBench task has {unknown[0]}{nearest(unknown[0], datasets)}"
        )
    resolved = {(g.name, task): resolve(experiment, g, task) for g in experiment.groups for task in experiment.tasks}
    for (_, task), config in resolved.items():
        if not config.from_scratch:
            ogbench.check_task(task)
    entries = []
    for group in experiment.groups:
        for task in experiment.tasks:
            config = resolved[group.name, task]
            dims = task_dims(config.make_env)
            if group.match is not None:
                reference = resolved[group.match_to or "", task].agent
                agent = matched(config.agent, reference, *dims, group.match, group.match_by or "width")
                config = dataclasses.replace(config, agent=agent)
            check_built(config)
            config = resolve_data_paths(dataclasses.replace(config, save_dir=save_dir, dataset_dir=dataset_dir))
            configs = tuple(dataclasses.replace(config, seed=seed) for seed in experiment.seeds)
            entries.append(Entry(experiment, group, task, configs, cost_of(config.agent, *dims)))
    return entries


def runs_of(config: Config) -> list[Run]:
    """Return the runs with this resolved configuration and seed, the newest first. A run that was resumed with another
    number of steps is not among them."""
    runs = [Run.open(folder, makes_env=False) for folder in folders_of(config)]
    # The folder's name has the precision that was given, auto perhaps, the run's configuration what it was there.
    return [run for run in runs if dataclasses.replace(run.config, precision=config.precision) == config]


def folders_of(config: Config) -> list[Path]:
    """Return the folders whose names fit this configuration and seed, the newest first, without reading them."""
    found = Run.parent(config).glob(f"sd{config.seed:03d}_*_{config.digest()}/config.json")
    return sorted((path.parent for path in found), reverse=True)


def finished_run(config: Config) -> Run | None:
    """Return the newest finished run with this resolved configuration and seed, None if there is none."""
    return next((run for run in runs_of(config) if run.is_finished), None)


def unfinished(configs: Iterable[Config]) -> list[Config]:
    """Return those of these resolved configurations of which no run has ended, each once."""
    return [config for config in dict.fromkeys(configs) if not any(run.has_ended for run in runs_of(config))]


def show_plan(entries: Sequence[Entry], display: Display) -> None:
    """Show the plan as tables, one for each task of each experiment. GFLOP are those of an update."""
    header = "group", "agent", "runs", "done", "params", "GFLOP"
    tables: dict[str, list[list[str]]] = {}
    for entry in entries:
        agent, done = entry.configs[0].agent, sum(run is not None for run in entry.finished)
        row = [entry.group.name, f"{agent.critic_name}+{agent.actor_name}", str(len(entry.configs)), str(done)]
        row += [f"{entry.cost.parameters:,}", f"{entry.cost.update_flops / 1e9:.3g}"]
        tables.setdefault(f"{entry.experiment.path}: {entry.task}", []).append(row)
    for title, rows in tables.items():
        display.columns(title, header, rows)
    costs = {config: entry.cost.update_flops for entry in entries for config in entry.configs}
    left = unfinished(costs)
    updates, flops = sum(c.total_updates for c in left), sum(c.total_updates * costs[c] for c in left)
    display.note(
        f"total   {len(costs)} different runs, {len(costs) - len(left)} finished, {len(left)} to train in "
        f"{len(fleets(left))} programs: {updates:,} updates, {flops / 1e12:,.4g} TFLOP"
    )


# --- Jobs ---


@dataclass(frozen=True)
class Job:
    """Runs that fit one program, and their label."""

    label: str
    configs: tuple[Config, ...]


class Outcome(NamedTuple):
    """Result of a job: all its runs are finished, it failed, or it was stopped. A failure has its reason in `line`, and
    an unexpected one also a traceback in `trace`."""

    state: Literal["done", "failed", "stopped"]
    line: str = ""
    trace: str = ""


def jobs_of(labels: Mapping[Config, str], most: int | None = None) -> list[Job]:
    """Divide runs, given with their labels, into jobs of at most so many, by default all that fit one program: programs
    with more are divided evenly, in the order of the runs."""
    configs, jobs = list(labels), []
    for numbers in fleets(configs):
        parts = -(-len(numbers) // (most or len(numbers)))
        for part in range(parts):
            first, last = (len(numbers) * i // parts for i in (part, part + 1))
            own = tuple(configs[number] for number in numbers[first:last])
            jobs.append(Job(", ".join(dict.fromkeys(labels[config] for config in own)), own))
    return jobs


def try_job(job: Job) -> Outcome:
    """Train a job in this process and return its outcome, which may be a failure. Raises Interrupted on a signal."""
    try:
        train_job(job.configs)
    except Interrupted:
        raise
    except (UserError, Failed) as error:
        return Outcome("failed", " ".join(str(error).split()))
    except Exception as error:
        return Outcome("failed", repr(error)[:300], traceback.format_exc())
    return Outcome("done")


def train_job(configs: Sequence[Config], show: bool = True) -> None:
    """Train those of these runs that have not ended. Runs that have a folder are resumed from their newest checkpoints,
    if any; runs that stopped at distant steps are resumed one group after another."""
    by_config = {config: runs_of(config) for config in configs}
    left = {config: runs for config, runs in by_config.items() if not any(run.has_ended for run in runs)}
    new = [config for config, runs in left.items() if not runs]
    started = [max(runs, key=newest_step) for runs in left.values() if runs]
    groups: dict[int, list[Run]] = {}  # of runs that can be resumed as one fleet
    if started:
        fetch_missing([run.config for run in started], Display(show))  # trusted: the configurations equal the plan's
        together = stopped_together(started)
        for run in started:
            groups.setdefault(0 if together else newest_step(run), []).append(run)
    for group in groups.values():
        resume_fleet([run.folder for run in group], show=show, draw=False)
    if new:
        train_fleet(new, show=show, draw=False)


def newest_step(run: Run) -> int:
    """Return the step of a run's newest checkpoint; 0 before the first."""
    return max(checkpoint.steps(run.folder / "checkpoints"), default=0)


def show_jobs(jobs: Sequence[Job], slots: int, machines: str, display: Display) -> None:
    """Show a table of the jobs, of which `slots` are trained at once on machines that `machines` describes."""
    rows = []
    for number, job in enumerate(jobs, 1):
        steps = sum(c.total_steps - max(map(newest_step, runs_of(c)), default=0) for c in job.configs)
        rows.append([job.label, str(number), str(len(job.configs)), f"{steps:,}"])
    display.columns("jobs", ("what", "job", "runs", "steps left"), rows)
    display.note(f"plan    {len(jobs)} jobs, {min(slots, len(jobs))} at once, on {machines}")


# --- Progress on Ray ---

ATTEMPTS = "cell-{}.jsonl"
"""The file of a job, by its number: a line for each try, with `node`, `pid` and `time` (seconds since 1970)."""

LOOK_SECONDS, SUMMARY_SECONDS = 2.0, 60.0
STATES = ("waiting", "running", "done", "failed", "stopped")


class Board:
    """A line for each job that begins or ends, and a summary every minute, read from files on the shared storage: those
    of the runs, and in the folder `mark` the line that each try of a job writes when it starts."""

    def __init__(self, jobs: Sequence[Job], mark: Path, display: Display):
        self._jobs, self._mark, self._display = jobs, mark, display
        self.outcomes: dict[int, Outcome] = {}
        self._shown_tries = [0] * len(jobs)
        self._looked_at = self._summary_at = time.monotonic()

    def ended(self, number: int, outcome: Outcome) -> None:
        """Record and print the outcome of a job."""
        self.outcomes[number] = outcome
        self._print_started()
        tries, runs, result = len(self._tries(number)), self._read(number), outcome.line
        metric = primary_metric(runs)
        known = [value for run in runs if np.isfinite(value := last(run, metric))]
        if outcome.state == "done" and known:
            result = f"{metric.short} {metric.shown(float(np.mean(known)))}"
        again = f", {tries} tries" if tries > 1 else ""
        line = f"{outcome.state:<8}job {number + 1}{again}: {self._jobs[number].label}, {result}"
        self._display.note(line.rstrip(", "))

    def look(self) -> None:
        """Print which jobs have begun if `LOOK_SECONDS` have passed, and a summary after `SUMMARY_SECONDS`."""
        if time.monotonic() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = time.monotonic()
            self._print_started()
        if time.monotonic() - self._summary_at >= SUMMARY_SECONDS:
            self._summary_at = time.monotonic()
            self.summarise()

    def summarise(self) -> None:
        """Print how many jobs are in which state."""
        tries = [len(self._tries(number)) for number in range(len(self._jobs))]
        begun = ["running" if count else "waiting" for count in tries]
        states = [self.outcomes[n].state if n in self.outcomes else state for n, state in enumerate(begun)]
        counts = ", ".join(f"{states.count(name)} {name}" for name in STATES if name in states)
        retries = sum(max(0, count - 1) for count in tries)
        steps = sum(run.step for number in range(len(self._jobs)) for run in self._read(number))
        total = sum(len(job.configs) * job.configs[0].total_steps for job in self._jobs)
        again = f"{retries} {'retry' if retries == 1 else 'retries'}"
        self._display.note(f"jobs   {counts}; {again}; {steps / total:.0%} of all steps")

    def _tries(self, number: int) -> list[dict]:
        """Read the lines that the tries of a job have written, the newest last."""
        found, path = [], self._mark / ATTEMPTS.format(number)
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # half written
                found.append(json.loads(line))
        return found

    def _print_started(self) -> None:
        """Print a line for each job with a new try since the last call."""
        for number, job in enumerate(self._jobs):
            tries, count = self._tries(number), len(job.configs)
            if len(tries) > self._shown_tries[number]:
                again = f", try {len(tries)}" if len(tries) > 1 else ""
                where = f"{tries[-1]['node']}{again}: {job.label}, {count} run{'s' * (count > 1)}"
                self._display.note(f"begun   job {number + 1} on {where}")
            self._shown_tries[number] = len(tries)

    def _read(self, number: int) -> list[RunRecord]:
        """Read the runs of a job; those without a folder are left out."""
        return read_runs(newest for config in self._jobs[number].configs for newest in folders_of(config)[:1])[0]
