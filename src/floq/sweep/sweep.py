"""`floq sweep`: train the runs of experiment files or flags, on this machine or a cluster, and write their results as
CSV files, tables and figures.

A run is identified by its configuration and its seed: one that has ended, for any experiment, is not trained again.
"""

import contextlib
import csv
import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from floq.analysis import comparison
from floq.analysis.cost import Cost
from floq.analysis.figures import comparison_figure
from floq.analysis.results import config_labels, show_result
from floq.analysis.statistics import area_under_curve
from floq.envs import environments
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.run import Run
from floq.runs.run_data import collect_with_progress, fetch_missing
from floq.sweep.experiment import PROJECT, Experiment, read_experiment
from floq.sweep.jobs import Job, Outcome, jobs_of, show_jobs, try_job
from floq.sweep.plan import Entry, plan, runs_of, show_plan, unfinished
from floq.training.schedule import Schedule
from floq.training.train import check_built, fleets, resolve_paths
from floq.utils import files
from floq.utils.errors import Failed, Interrupted, UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import clear_jit_cache, use_all_cores
from floq.utils.progress import Display

if TYPE_CHECKING:  # it needs Ray
    from floq.sweep.ray import JobResources, Placement

METRICS = {"success": "success", "episode_return": "episode.return", "episode_length": "episode.length"}
"""Columns of the tidy CSV, and their names in eval.csv."""

_RUN_COLUMNS = (
    "final",
    "auc",
    "steps",
    "parameters",
    "critic_parameters",
    "update_gflop",
    "action_mflop",
    "updates_per_second",
)
_RUN_COLUMNS += ("runs_in_fleet", "seconds", "eval_episodes", "success_timing")

# --- CSV files ---


def write_rows(entries: Sequence[Entry], folder: Path) -> None:
    """Write `NAME.csv`, a row for each evaluation, and `NAME-runs.csv`, a row for each run that has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    evaluations: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for entry in entries:
        experiment = entry.experiment
        for run in filter(None, entry.finished):
            columns, seed = run.evaluations(), run.config.seed
            own = {"group": entry.group.name, "task": entry.task, "seed": seed}
            for number, step in enumerate(columns["step"]):
                row = {"experiment": experiment.name, "budget": experiment.budget.name, **own, "step": int(step)}
                metrics = {name: columns.get(f"evaluation/{theirs}") for name, theirs in METRICS.items()}
                evaluations.append(row | {name: x[number] if x else None for name, x in metrics.items()})
            runs.append(own | _run_row(run, columns, entry.cost, METRICS[comparison.SCORES[experiment.score].column]))
    name = entries[0].experiment.name
    _write(folder / f"{name}.csv", evaluations, ["experiment", "budget", "group", "task", "seed", "step", *METRICS])
    first = ["group", "task", "seed", *_RUN_COLUMNS]
    _write(folder / f"{name}-runs.csv", runs, list(dict.fromkeys([*first, *(key for row in runs for key in row)])))


def _run_row(run: Run, columns: dict[str, list[float]], costs: Cost, score: str) -> dict[str, Any]:
    """Return the results of a run and the last metrics of its critic. The area under the curve excludes the first
    evaluation, before any learning."""
    scores = columns.get(f"evaluation/{score}", [math.nan] * len(columns["step"]))
    first = Schedule(run.config).first_step
    learned = [pair for pair in zip(columns["step"], scores, strict=True) if pair[0] > first]
    steps, values = zip(*(learned or zip(columns["step"], scores, strict=True)), strict=True)
    summary, log = run.summary, run.folder / "train.csv"
    critic = {
        name: x[-1] for name, x in (read_csv(log) if log.exists() else {}).items() if "validation/critic/" in name
    }
    return {
        "final": scores[-1],
        "auc": area_under_curve(steps, values),
        "parameters": costs.parameters,
        "critic_parameters": costs.critic_parameters,
        "update_gflop": costs.update_flops / 1e9,
        "action_mflop": costs.action_flops / 1e6,
        **{name: summary.get(name) for name in ("steps", "updates_per_second", "runs_in_fleet", "seconds")},
        **{name: summary.get(name) for name in ("eval_episodes", "success_timing")},
        **critic,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write a CSV file atomically; missing values and NaN are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    files.replace(path, text.getvalue().encode())


# --- Sweeps ---


def sweep(
    files: Sequence[str],
    budget: str,
    out: str | None = None,
    dataset_dir: str = Config.dataset_dir,
    save_dir: str = Config.save_dir,
    seeds: Sequence[int] = (),
    dry_run: bool = False,
    redraw: bool = False,
    placement: "Placement | None" = None,
    show: bool = True,
) -> list[Path]:
    """Train the runs of these experiments that have not ended yet, then write tables and figures.

    Args:
        files: experiments; see `floq.sweep.experiment`.
        budget: the name of the budget file beside them.
        out: folder of tables and figures; by default `save_dir`/sweep/`budget`.
        dataset_dir: that of the runs.
        save_dir: that of the runs.
        seeds: instead of those of the files.
        dry_run: only show the plan.
        redraw: only draw figures and tables again, from the CSV files in `out`.
        placement: train on this Ray cluster; by default one program after another in this process.
        show: print progress.

    Returns:
        Paths of the figures.

    Raises:
        UserError: a file is wrong, before anything is trained.
        Failed: some runs could not be trained; the others were.
        Interrupted: a signal ended the training.
    """
    display, folder = Display(show), user_path(out or Path(save_dir) / PROJECT / budget)
    experiments = [read_experiment(file, budget) for file in files]
    names = [experiment.name for experiment in experiments]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two files are called {twice[0]}.toml, and would write the same table: give one at a time")
    if redraw:
        return [_draw(experiment, folder, display) for experiment in experiments]
    check_writable(folder, "choose another --out")
    if seeds:
        experiments = [dataclasses.replace(experiment, seeds=tuple(seeds)) for experiment in experiments]
    count = sum(len(e.groups) * len(e.tasks) * len(e.seeds) for e in experiments)
    _start_jax(count, dry_run, placement)  # before costs are traced, which starts it
    entries = [entry for experiment in experiments for entry in plan(experiment, save_dir, dataset_dir)]
    labels: dict[Config, str] = {}
    for entry in entries:
        for config in entry.configs:
            labels.setdefault(config, f"{entry.group.name!r} on {entry.task}")
    if dry_run:
        show_plan(entries, display)
    episodes = {name: n for experiment in experiments for name, n in experiment.budget.data.items()}
    failures = _train(labels, folder, display, show, dry_run, placement, episodes)
    if dry_run:
        return []
    figures = []
    for experiment in experiments:
        write_rows([entry for entry in entries if entry.experiment is experiment], folder)
        figures.append(_draw(experiment, folder, display))
    if failures:
        raise Failed("; ".join(failures))
    return figures


def sweep_configs(
    configs: Sequence[Config],
    notes: Sequence[str] = (),
    dry_run: bool = False,
    placement: "Placement | None" = None,
    show: bool = True,
) -> list[Run]:
    """Train those of these runs that have not ended yet, and show the results of all.

    Args:
        configs: the runs.
        notes: lines to print first.
        dry_run: see `sweep`.
        placement: see `sweep`.
        show: see `sweep`.

    Returns:
        The finished runs, in the order of `configs`.

    Raises: see `sweep`.
    """
    display = Display(show)
    for config in configs:
        check_built(config)
    folder = Run.parent(configs[0]).parent
    check_writable(folder, "choose another --save_dir")
    for note in notes:
        display.note(f"note    {note}")
    _start_jax(len(configs), dry_run, placement)
    configs = [resolve_paths(config) for config in configs]
    named = zip(configs, config_labels(configs), strict=True)
    labels = {config: name or _label(config) for config, name in named}
    local = [] if placement else fleets(unfinished(labels))  # their results are shown when they have been trained
    failures = _train(labels, folder, display, show, dry_run, placement, {})
    if dry_run:
        return []
    finished = [run for config in labels for run in runs_of(config)[:1] if run.is_finished]
    for numbers in fleets([run.config for run in finished]) if list(map(len, local)) != [len(labels)] else []:
        show_result([finished[number] for number in numbers], display)
    display.note(f"page    floq report {folder} --out report.html")
    if failures:
        raise Failed("; ".join(failures))
    return finished


# --- Training ---


def _start_jax(runs: int, dry_run: bool, placement: "Placement | None") -> None:
    """Initialise JAX for the training; if that is in other processes, on the CPU, which leaves accelerators to them."""
    if placement is not None or dry_run:
        jax.config.update("jax_platforms", "cpu")
        return
    use_all_cores(runs)
    jax.devices()


def _label(config: Config) -> str:
    agent = config.agent
    return f"{agent.critic_name}+{agent.actor_name} on {config.task}"


def _train(
    labels: Mapping[Config, str],
    folder: Path,
    display: Display,
    show: bool,
    dry_run: bool,
    placement: "Placement | None",
    episodes: Mapping[str, int],
) -> list[str]:
    """Train those of these runs that have not ended, in this process or on the cluster, or only show the jobs. Return a
    line for each job that failed."""
    left = unfinished(labels)
    with contextlib.ExitStack() as stack:
        share: JobResources | None = None
        if placement is not None and left:
            from floq.sweep.ray import ray_cluster

            share = stack.enter_context(ray_cluster(placement))
        jobs = jobs_of({config: labels[config] for config in left}, _max_runs(len(left), placement, share))
        if dry_run:
            if jobs:
                slots, machines = (share.slots, share.machines) if share else (1, "this machine, one after another")
                show_jobs(jobs, slots, machines, left[0].save_dir, display)
            return []
        display.note(f"sweep   {len(labels)} runs, {len(left)} to train, in {len(jobs)} programs")
        for run in (run for config in labels.keys() - set(left) for run in runs_of(config)[:1] if run.diverged):
            display.note(f"diverged {run.folder}, at step {run.diverged.get('step')}: not trained again")
        _collect_missing(episodes, left, display)
        if share is not None and placement is not None and jobs:
            from floq.sweep.ray import train_jobs

            fetch_missing(left, display)  # once, rather than by every job
            display.note(f"ray     {share}")
            outcomes = train_jobs(jobs, placement, share, show)
        else:
            outcomes = _train_here(jobs, display, show)
    failures = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.state == "failed":
            failures.append(f"{job.label} failed: {outcome.line}")
        if outcome.trace:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "failures.txt", "a") as file:
                file.write(f"{failures[-1]}\n{outcome.trace}\n")
    return failures


def _max_runs(runs: int, placement: "Placement | None", share: "JobResources | None") -> int | None:
    """Return the maximum number of runs of a job: on a cluster, such that all its slots have work."""
    if placement is None or share is None:
        return None
    return placement.fleet_size or max(1, -(-runs // share.slots))


def _train_here(jobs: Sequence[Job], display: Display, show: bool) -> list[Outcome]:
    """Train jobs in this process, one after another."""
    outcomes = []
    for number, job in enumerate(jobs, 1):
        display.note(f"program {number} of {len(jobs)}: {job.label}, {len(job.configs)} runs")
        try:
            outcomes.append(try_job(job, show))
        except Interrupted as stop:
            raise Interrupted("stopped; the same command goes on, with what is on disk", stop.signum) from stop
        if outcomes[-1].state == "failed":
            display.note(f"failed  {job.label}: {outcomes[-1].line}")
        clear_jit_cache()
    return outcomes


def _collect_missing(episodes: Mapping[str, int], configs: Iterable[Config], display: Display) -> None:
    """Collect the datasets of these runs that are not on disk and have a number of episodes in the budget; others are
    downloaded when their runs begin."""
    wanted = dict.fromkeys((environments.dataset_name(config.task), config.dataset_dir) for config in configs)
    for name, directory in wanted:
        if name in episodes and not (user_path(directory) / f"{name}.npz").exists():
            collect_with_progress(name, user_path(directory), episodes[name], display)


# --- Figures and tables ---


def _draw(experiment: Experiment, folder: Path, display: Display) -> Path:
    """Write the figure and the table of an experiment, from its CSV files alone. Return the path of the figure."""
    groups = {group.name: group.against for group in experiment.groups}
    evaluations, runs = (comparison.read_score_rows(folder / f"{experiment.name}{end}.csv") for end in ("", "-runs"))
    found = comparison.compare_groups(groups, experiment.reference, evaluations, runs, experiment.score)
    figure, table = (folder / f"{experiment.name}.{suffix}" for suffix in ("png", "md"))
    table.write_text(comparison.comparison_table(found, experiment.title, experiment.question))
    comparison_figure.draw_comparison(figure, found, experiment.title, experiment.curves)
    display.note(f"wrote   {figure} and {table.name}")
    return figure
