"""`floq sweep`: train the runs of experiment files or flags, on this machine or a cluster, and write their results as
CSV files, tables and figures.

A run is identified by its configuration and its seed: one that has ended, for any experiment, is not trained again.
"""

import contextlib
import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
from annotated_types import Ge

from floq.analysis.metrics import METRICS
from floq.analysis.report.csv_files import evaluation_rows, read_tables, run_rows, write_csv
from floq.analysis.report.figures import draw_figure
from floq.analysis.report.groups import RunGroup
from floq.analysis.report.page import comparison_markdown
from floq.analysis.report.scores import Report, assemble
from floq.analysis.results import config_labels, show_result
from floq.envs import ogbench
from floq.runs.config import Config
from floq.runs.record import RunRecord, read_runs
from floq.runs.run import Run
from floq.runs.run_data import collect_with_progress, fetch_missing
from floq.sweep.experiment import PROJECT, Experiment, read_experiment
from floq.sweep.jobs import (
    Entry,
    Job,
    Outcome,
    finished_run,
    jobs_of,
    plan,
    runs_of,
    show_jobs,
    show_plan,
    try_job,
    unfinished,
)
from floq.training.train import check_built, fleets, resolve_paths
from floq.utils.errors import Failed, Interrupted, UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import clear_jit_cache, device, use_all_cores
from floq.utils.progress import Display
from floq.utils.schema import NonNegativeFloat, Positive, Settings

LOCAL = ("folder", "save_dir", "dataset_dir", "total_time")
"""Columns that the CSV files of a sweep leave out: where its runs were trained, and when."""


@dataclass(frozen=True)
class SweepOptions(Settings):
    """Train the runs of experiment files, and write for each a table, a figure and two CSV files. Runs that have ended
    are not trained again, and a sweep that was stopped continues where it was. The files come first:
    floq sweep experiments/steps.toml --budget laptop. With --seeds 0 1 2, these seeds instead of those of the files.
    Instead of files, the flags of floq train, several values of each: floq sweep --seeds 0 1 2 --agent.alpha 10 30.
    With --address, on a Ray cluster; --save_dir and --dataset_dir must then be on storage that all its nodes share."""

    budget: str = "laptop"
    """Which budget: the name of a file in the folder budgets beside the experiment."""
    out: str | None = None
    """Where tables and figures go; by default SAVE_DIR/sweep/BUDGET."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's datasets are, and where missing ones are collected."""
    save_dir: str = "exp"
    """Where run folders go."""
    dry_run: bool = False
    """Show the plan and what it costs, and train nothing."""
    grid: bool = False
    """Instead of an experiment, try the values of its [grid]: each group with every combination, on other seeds."""
    redraw: bool = False
    """Draw figures and tables again, from the CSV files alone."""

    address: str | None = None
    """Train on Ray: auto is the cluster of this machine, local one of this machine alone, HOST:PORT another."""
    gpus_per_cell: NonNegativeFloat | None = None
    """On Ray, GPUs of each job (of runs that one process trains as one program); by default 1 if there are any."""
    cores_per_cell: Positive | None = None
    """On Ray, cores of each job; by default a node's cores in proportion to the job's GPUs, or two."""
    fleet_size: Positive | None = None
    """On Ray, most runs in a job; by default so many that all machines have work."""
    max_retries: Annotated[int, Ge(-1)] = 20
    """On Ray, how many more times a job is tried whose process or node was lost; -1 is no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redraw and self.dry_run:
            raise UserError("--redraw with --dry_run: give one of them")
        if self.address is not None and not re.fullmatch(r"auto|local|[^/:]+:\d+", self.address):
            raise UserError(f"--address={self.address}: give auto, local or HOST:PORT")
        if (gpus := self.gpus_per_cell) is not None and gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus_per_cell={gpus:g}: give a whole number, or a part of one GPU")


RAY_OPTIONS = ("address", "gpus_per_cell", "cores_per_cell", "fleet_size", "max_retries")


# --- Sweeps ---


def sweep(files: Sequence[str], options: SweepOptions, seeds: Sequence[int] = ()) -> list[Path]:
    """Train the runs of these experiments (see `floq.sweep.experiment`) that have not ended yet, with other `seeds` if
    they are given; then write tables and figures. Returns the paths of the figures.

    Raises:
        UserError: a file is wrong, before anything is trained.
        Failed: some runs could not be trained; the others were.
        Interrupted: a signal ended the training.
    """
    budget, display = options.budget, Display()
    folder = user_path(options.out or Path(options.save_dir) / PROJECT / budget)
    experiments = [read_experiment(file, budget, options.grid) for file in files]
    names = [experiment.name for experiment in experiments]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two files are called {twice[0]}.toml, and would write the same table: give one at a time")
    if options.redraw:
        tables = [read_tables(folder / f"{name}-runs.csv", folder / f"{name}.csv") for name in names]
        both = zip(experiments, tables, strict=True)
        return [_draw(experiment, report_of(experiment, runs), folder, display) for experiment, runs in both]
    check_writable(folder, "choose another --out")
    if seeds:
        experiments = [dataclasses.replace(experiment, seeds=tuple(seeds)) for experiment in experiments]
    count = sum(len(e.groups) * len(e.tasks) * len(e.seeds) for e in experiments)
    _start_jax(count, options)  # before costs are traced, which starts it
    entries = [entry for experiment in experiments for entry in plan(experiment, options.save_dir, options.dataset_dir)]
    labels: dict[Config, str] = {}
    for entry in entries:
        for config in entry.configs:
            labels.setdefault(config, f"{entry.group.name!r} on {entry.task}")
    if options.dry_run:
        show_plan(entries, display)
    episodes = {name: n for experiment in experiments for name, n in experiment.budget.data.items()}
    failures = _train(labels, folder, options, display, episodes)
    if options.dry_run:
        return []
    figures = []
    for experiment in experiments:
        own = [entry for entry in entries if entry.experiment is experiment]
        report = report_of(experiment, read_finished(own, display))
        folder.mkdir(parents=True, exist_ok=True)
        whose = {"experiment": experiment.name, "budget": experiment.budget.name}
        first = [*whose, "group", "task", "seed", "step"]
        write_csv(folder / f"{experiment.name}.csv", [whose | row for row in evaluation_rows(report)], first, LOCAL)
        write_csv(folder / f"{experiment.name}-runs.csv", run_rows(report), left_out=LOCAL)
        figures.append(_draw(experiment, report, folder, display))
    if failures:
        raise Failed("; ".join(failures))
    return figures


def sweep_configs(configs: Sequence[Config], options: SweepOptions, notes: Sequence[str] = ()) -> list[Run]:
    """Train those of these runs that have not ended yet, and show the results of all. `notes` are printed first.
    Returns the finished runs, in the order of `configs`. Raises: see `sweep`."""
    display = Display()
    for config in configs:
        check_built(config)
    folder = Run.parent(configs[0]).parent
    check_writable(folder, "choose another --save_dir")
    for note in notes:
        display.note(f"note    {note}")
    _start_jax(len(configs), options)
    configs = [resolve_paths(config) for config in configs]
    named = zip(configs, config_labels(configs), strict=True)
    labels = {c: name or f"{c.agent.critic_name}+{c.agent.actor_name} on {c.task}" for c, name in named}
    local = [] if options.address else fleets(unfinished(labels))  # their results are shown when they are trained
    failures = _train(labels, folder, options, display, {})
    if options.dry_run:
        return []
    finished = [run for run in map(finished_run, labels) if run]
    for numbers in fleets([run.config for run in finished]) if list(map(len, local)) != [len(labels)] else []:
        with display.tolerate("table of results"):
            show_result([finished[number] for number in numbers], display)
    display.note(f"page    floq report {folder} --out report.html")
    if failures:
        raise Failed("; ".join(failures))
    return finished


# --- Training ---


def _start_jax(runs: int, options: SweepOptions) -> None:
    """Initialise JAX for the training; if that is in other processes, on the CPU, which leaves accelerators to them."""
    if options.address or options.dry_run:
        jax.config.update("jax_platforms", "cpu")
        return
    use_all_cores(runs)
    device()


def _train(
    labels: Mapping[Config, str], folder: Path, options: SweepOptions, display: Display, episodes: Mapping[str, int]
) -> list[str]:
    """Train those of these runs that have not ended, in this process or on the cluster, or only show the jobs. Return a
    line for each job that failed."""
    left = unfinished(labels)
    with contextlib.ExitStack() as stack:
        share: Any = None  # the resources of a job on Ray
        if options.address and left:
            from floq.sweep.ray import ray_cluster

            share = stack.enter_context(ray_cluster(options))
        most = (options.fleet_size or max(1, -(-len(left) // share.slots))) if share else None  # all slots have work
        jobs = jobs_of({config: labels[config] for config in left}, most)
        if options.dry_run:
            slots, machines = (share.slots, share.machines) if share else (1, "this machine, one after another")
            show_jobs(jobs, slots, machines, display)
            return []
        display.note(f"sweep   {len(labels)} runs, {len(left)} to train, in {len(jobs)} programs")
        ended = [config for config in labels if config not in left and not finished_run(config)]
        for run in (run for config in ended for run in runs_of(config) if run.diverged):
            display.note(f"diverged {run.folder}, at step {run.diverged.get('step')}: not trained again")
        wanted = {(ogbench.dataset_name(config.task), user_path(config.dataset_dir)) for config in left}
        for name, directory in sorted(wanted):  # others are downloaded when their runs begin
            if name in episodes and not (directory / f"{name}.npz").exists():
                collect_with_progress(name, directory, episodes[name], display)
        if share is not None:
            from floq.sweep.ray import train_jobs

            fetch_missing(left, display)  # once, rather than by every job
            display.note(f"ray     {share}")
            outcomes = train_jobs(jobs, options.max_retries, share, display)
        else:
            outcomes = _train_here(jobs, display)
    failures = []
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.state == "failed":
            failures.append(f"{job.label} failed: {outcome.line}")
        if outcome.trace:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "failures.txt", "a") as file:
                file.write(f"{failures[-1]}\n{outcome.trace}\n")
    return failures


def _train_here(jobs: Sequence[Job], display: Display) -> list[Outcome]:
    """Train jobs in this process, one after another."""
    outcomes = []
    for number, job in enumerate(jobs, 1):
        display.note(f"program {number} of {len(jobs)}: {job.label}, {len(job.configs)} runs")
        try:
            outcomes.append(try_job(job))
        except Interrupted as stop:
            raise Interrupted("stopped; the same command goes on, with what is on disk", stop.signum) from stop
        if outcomes[-1].state == "failed":
            display.note(f"failed  {job.label}: {outcomes[-1].line}")
        clear_jit_cache()
    return outcomes


# --- Results ---


def report_of(experiment: Experiment, runs: Mapping[str, Sequence[RunRecord]]) -> Report:
    """Return the report on these runs, by the experiment's groups: each is compared with the one that it names, or with
    the reference."""
    groups = []
    for group in experiment.groups:
        other = group.against or experiment.reference
        own = tuple(runs.get(group.name, ()))
        groups.append(RunGroup(group.name, own, against=None if other == group.name else other))
    return assemble(groups, reference=experiment.reference, metric=METRICS[experiment.score])


def read_finished(entries: Sequence[Entry], display: Display) -> dict[str, list[RunRecord]]:
    """Read the finished runs of these entries, by group, and add the cost of an agent to their summaries."""
    found: dict[str, list[RunRecord]] = {}
    for entry in entries:
        runs, damaged = read_runs(run.folder for run in entry.finished if run)
        for one in damaged:
            display.note(f"damaged {one.folder}: {one.reason}")
        costs = {"parameters": entry.cost.parameters, "critic_parameters": entry.cost.critic_parameters}
        costs |= {"update_gflop": entry.cost.update_flops / 1e9, "action_mflop": entry.cost.action_flops / 1e6}
        own = [dataclasses.replace(run, summary=run.summary | costs) for run in runs]
        found.setdefault(entry.group.name, []).extend(own)
    return found


def _draw(experiment: Experiment, report: Report, folder: Path, display: Display) -> Path:
    """Write the figure and the table of an experiment. Return the path of the figure."""
    picture, text = (folder / f"{experiment.name}.{suffix}" for suffix in ("png", "md"))
    with display.tolerate(str(text)):
        text.write_text(comparison_markdown(report, experiment.title, experiment.question))
        display.note(f"wrote   {text}")
    with display.tolerate(str(picture)):
        for line in draw_figure(picture, report, title=experiment.title, curves=experiment.curves):
            display.note(f"left out {line}")
        display.note(f"wrote   {picture}")
    return picture
