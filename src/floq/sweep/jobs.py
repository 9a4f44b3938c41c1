"""The jobs of a sweep: runs that one process trains as one program, and what comes of trying to."""

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


@dataclass(frozen=True)
class Job:
    """Runs that fit one program, and what they are called."""

    label: str
    configs: tuple[Config, ...]


class Outcome(NamedTuple):
    """How a job ended: its runs came to their end, it cannot be trained, or somebody stopped it. What failed says why
    in a line, and where nobody foresaw it in a traceback too."""

    state: Literal["done", "failed", "stopped"]
    line: str = ""
    trace: str = ""


def jobs_of(labels: Mapping[Config, str], most: int | None = None) -> list[Job]:
    """These runs as jobs, none of more than `most` runs; by default of all that fit one program. A program with too
    many is divided evenly, and neighbours stay together.

    Args:
        labels: what each run is called.
        most: runs of a job.
    """
    configs, jobs = list(labels), []
    for numbers in fleets(configs):
        parts = -(-len(numbers) // (most or len(numbers)))
        for part in range(parts):
            first, last = (len(numbers) * i // parts for i in (part, part + 1))
            own = tuple(configs[number] for number in numbers[first:last])
            jobs.append(Job(", ".join(dict.fromkeys(labels[config] for config in own)), own))
    return jobs


def attempt(job: Job, show: bool = True) -> Outcome:
    """Train a job in this process; a failure is an outcome. Raises Interrupted: a signal ended it."""
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
    """Train those of these runs that have not ended. What was begun goes on in the folders that it has, from its
    checkpoints if it has any; runs that stopped far from each other go on one group after another."""
    fresh: list[Config] = []
    begun: list[Run] = []
    for config in configs:
        runs = runs_of(config)
        if any(run.has_ended for run in runs):
            continue
        if runs:
            begun.append(max(runs, key=_newest_step))
        else:
            fresh.append(config)
    if begun:
        fetch_missing([run.config for run in begun], Display(show))  # as the plan says, which is theirs
    for group in _that_go_on_together(begun):
        resume_fleet([run.folder for run in group], show=show, draw=False)
    if fresh:
        train_fleet(fresh, show=show, draw=False)


def _that_go_on_together(runs: Sequence[Run]) -> list[list[Run]]:
    if runs and stopped_together(runs):
        return [list(runs)]
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(_newest_step(run), []).append(run)
    return list(groups.values())


def _newest_step(run: Run) -> int:
    """Of its checkpoints; 0 before the first."""
    return max(checkpoint.steps(run.folder / "checkpoints"), default=0)


# --- How long the jobs of a sweep will take, by finished runs of the same programs ---

IGNORED = {name: "any" for name in ("save_dir", "project_name", "run_group", "dataset_dir")}
IGNORED |= {"logger": (), "on_divergence": "stop"}
IGNORED |= {"keep_checkpoints": None, "checkpoint_minutes": None}


def show_jobs(jobs: Sequence[Job], slots: int, machines: str, save_dir: str, display: Display) -> None:
    """The jobs as a table, with the hours of each where a finished run below `save_dir` tells its speed.

    Args:
        slots: how many jobs are trained at once.
        machines: where, in words.
    """
    known, rows, hours = seconds_per_step(save_dir), [], []
    for number, job in enumerate(jobs, 1):
        steps = [config.total_steps - _step(config) for config in job.configs]
        hours.append(sum(steps) * known.get(_kind(job.configs[0]), math.nan) / 3600)
        rows.append([job.label, str(number), str(len(steps)), f"{sum(steps):,}", _shown(hours[-1])])
    display.columns("jobs", ("what", "job", "runs", "steps left", "hours"), rows)
    display.note(f"plan    {len(jobs)} jobs, {min(slots, len(jobs))} at once, on {machines}")
    timed = [x for x in hours if not math.isnan(x)]
    if not timed:
        display.note(f"time    unknown: no finished run of these programs below {save_dir} to go by")
        return
    about = max(max(timed), sum(timed) / slots)
    rest = f", and {len(hours) - len(timed)} jobs of unknown length" if len(timed) < len(hours) else ""
    display.note(
        f"time    about {_shown(about)} hours{rest}, by finished runs of these programs below {save_dir}; runs that an "
        "accelerator trains side by side take less"
    )


def seconds_per_step(save_dir: str) -> dict[Config, float]:
    """By kind of program, what a step of one run takes with its evaluations, as the fastest of its finished runs tells:
    others may have had to share the machine."""
    found: dict[Config, float] = {}
    for path in user_path(save_dir).glob("*/*/*/*/summary.json"):
        try:
            run = Run.open(path.parent)
            summary = run.summary
            each = summary["seconds"] / summary["steps"] / summary["runs_in_fleet"]
        except (UserError, KeyError, TypeError, ZeroDivisionError):
            continue  # damaged, or of another version: it tells nothing
        kind = _kind(run.config)
        found[kind] = min(each, found.get(kind, math.inf))
    return found


def _kind(config: Config) -> Config:
    """What runs have in common that take the same time for a step: the program, whatever its data lies in and, with
    one phase, however many steps there are."""
    steps = {}
    if not config.online_steps:
        steps = {"offline_steps": 1}
    elif not config.offline_steps:
        steps = {"online_steps": config.num_envs}
    return dataclasses.replace(program_of(config), **IGNORED, **steps)


def _step(config: Config) -> int:
    """Up to which step a run that has not ended is kept."""
    saved = (checkpoint.steps(run.folder / "checkpoints") for run in runs_of(config))
    return max((step for steps in saved for step in steps), default=0)


def _shown(hours: float) -> str:
    return "-" if math.isnan(hours) else f"{hours:.2g}" if hours < 10 else f"{hours:.0f}"
