"""Jobs of a sweep: runs that one process trains as one program, and how they are trained."""

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.run import Run
from floq.runs.run_data import fetch_missing
from floq.sweep.plan import runs_of
from floq.training.resume import resume_fleet, stopped_together
from floq.training.train import fleets, train_fleet
from floq.utils.errors import Failed, Interrupted, UserError
from floq.utils.progress import Display


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
    """Divide runs into jobs. Programs with too many runs are divided evenly, in the order of the runs.

    Args:
        labels: label of each run.
        most: maximum number of runs of a job; by default all that fit one program.
    """
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
    new: list[Config] = []
    started: list[Run] = []
    for config in configs:
        runs = runs_of(config)
        if any(run.has_ended for run in runs):
            continue
        if runs:
            started.append(max(runs, key=newest_step))
        else:
            new.append(config)
    if started:
        fetch_missing([run.config for run in started], Display(show))  # trusted: the configurations equal the plan's
    for group in _resume_groups(started):
        resume_fleet([run.folder for run in group], show=show, draw=False)
    if new:
        train_fleet(new, show=show, draw=False)


def _resume_groups(runs: Sequence[Run]) -> list[list[Run]]:
    """Group runs that can be resumed as one fleet."""
    if runs and stopped_together(runs):
        return [list(runs)]
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(newest_step(run), []).append(run)
    return list(groups.values())


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
