"""Jobs of a sweep: runs that one process trains as one program, how they are trained, and how long they take."""

import dataclasses
import math
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
from floq.training.train import fleets, program_of, train_fleet
from floq.utils.errors import Failed, Interrupted, UserError
from floq.utils.files import user_path
from floq.utils.progress import Display

IGNORED = {name: "any" for name in ("save_dir", "project_name", "run_group", "dataset_dir")}
IGNORED |= {"logger": (), "on_divergence": "stop"}
IGNORED |= {"keep_checkpoints": None, "checkpoint_minutes": None}
"""Settings that do not affect the time of a step, and the value that replaces them in comparisons."""


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


# --- Training ---


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


def try_job(job: Job, show: bool = True) -> Outcome:
    """Train a job in this process and return its outcome, which may be a failure. Raises Interrupted on a signal."""
    try:
        train_job(job.configs, show)
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
            started.append(max(runs, key=_newest_step))
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
        groups.setdefault(_newest_step(run), []).append(run)
    return list(groups.values())


def _newest_step(run: Run) -> int:
    """Return the step of a run's newest checkpoint; 0 before the first."""
    return max(checkpoint.steps(run.folder / "checkpoints"), default=0)


# --- Time estimates ---


def show_jobs(jobs: Sequence[Job], slots: int, machines: str, save_dir: str, display: Display) -> None:
    """Show a table of the jobs, with the hours of each if a finished run of the same program below `save_dir` exists.

    Args:
        jobs: in the order of their numbers.
        slots: number of jobs that are trained at once.
        machines: description of the machines.
        save_dir: root of the run folders.
        display: prints the table.
    """
    known, rows, hours = seconds_per_step(save_dir), [], []
    for number, job in enumerate(jobs, 1):
        steps = [config.total_steps - _saved_step(config) for config in job.configs]
        hours.append(sum(steps) * known.get(_timing_key(job.configs[0]), math.nan) / 3600)
        rows.append([job.label, str(number), str(len(steps)), f"{sum(steps):,}", _format_hours(hours[-1])])
    display.columns("jobs", ("what", "job", "runs", "steps left", "hours"), rows)
    display.note(f"plan    {len(jobs)} jobs, {min(slots, len(jobs))} at once, on {machines}")
    timed = [x for x in hours if not math.isnan(x)]
    if not timed:
        display.note(f"time    unknown: no finished run of these programs below {save_dir} to go by")
        return
    total = max(max(timed), sum(timed) / slots)
    rest = f", and {len(hours) - len(timed)} jobs of unknown length" if len(timed) < len(hours) else ""
    display.note(
        f"time    about {_format_hours(total)} hours{rest}, by finished runs of these programs below {save_dir}; runs "
        "that an accelerator trains side by side take less"
    )


def seconds_per_step(save_dir: str) -> dict[Config, float]:
    """Return the seconds that a step of one run takes, evaluations included, by program. It is the minimum over the
    finished runs of the program, since others may have shared the machine."""
    found: dict[Config, float] = {}
    for path in user_path(save_dir).glob("*/*/*/*/summary.json"):
        try:
            run = Run.open(path.parent, makes_env=False)
            summary = run.summary
            each = summary["seconds"] / summary["steps"] / summary["runs_in_fleet"]
        except (UserError, KeyError, TypeError, ZeroDivisionError):
            continue  # damaged, or of another version
        key = _timing_key(run.config)
        found[key] = min(each, found.get(key, math.inf))
    return found


def _timing_key(config: Config) -> Config:
    """Return the settings that determine the time of a step: those of the program, without folders and, if the run has
    one phase only, without its number of steps."""
    steps = {}
    if not config.online_steps:
        steps = {"offline_steps": 1}
    elif not config.offline_steps:
        steps = {"online_steps": config.num_envs}
    return dataclasses.replace(program_of(config), **IGNORED, **steps)


def _saved_step(config: Config) -> int:
    """Return the newest step in the checkpoints of a run that has not ended; 0 without any."""
    saved = (checkpoint.steps(run.folder / "checkpoints") for run in runs_of(config))
    return max((step for steps in saved for step in steps), default=0)


def _format_hours(hours: float) -> str:
    return "-" if math.isnan(hours) else f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
