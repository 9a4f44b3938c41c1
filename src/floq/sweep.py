"""`floq sweep`: train what experiment files ask for, and draw what came of it.

A run is known by its configuration and its seed: one that has ended, for whichever experiment, is never trained again.
"""

import csv
import dataclasses
import math
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from floq import checkpoint, envs
from floq.analysis import comparison, comparison_figure
from floq.analysis.cost import Cost
from floq.analysis.statistics import area_under_curve
from floq.config import Config
from floq.errors import Failed, Interrupted, UserError
from floq.experiment import PROJECT, Experiment, read_experiment
from floq.folders import check_writable, user_path
from floq.loggers import read_csv
from floq.machine import forget_programs, use_all_cores
from floq.progress import Display
from floq.resuming import resume_fleet
from floq.run import Run
from floq.run_data import collect_shown
from floq.schedule import Schedule
from floq.sweep_plan import Entry, plan, runs_of, show_plan
from floq.train import fleets, train_fleet

METRICS = {"success": "success", "episode_return": "episode.return", "episode_length": "episode.length"}
"""Columns of the tidy CSV, and what eval.csv calls them."""


def sweep(
    files: Sequence[str],
    budget: str,
    out: str | None = None,
    dataset_dir: str = Config.dataset_dir,
    save_dir: str = Config.save_dir,
    seeds: Sequence[int] = (),
    dry_run: bool = False,
    redraw: bool = False,
    show: bool = True,
) -> list[Path]:
    """Train the runs of these experiments that have not ended yet, then write tables and figures.

    Args:
        files: experiments; see `floq.experiment`.
        budget: the name of the budget file beside them.
        out: where tables and figures go; by default into `save_dir`/sweep/`budget`.
        dataset_dir, save_dir: of the runs.
        seeds: instead of those of the files.
        dry_run: only show the plan.
        redraw: only draw figures and tables again, from the CSV files in `out`.
        show: print progress.

    Returns:
        The figures.

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
    if not dry_run:  # before costs are traced, which starts JAX
        use_all_cores(sum(len(e.groups) * len(e.tasks) * len(e.seeds) for e in experiments))
        jax.devices()
    entries = [entry for experiment in experiments for entry in plan(experiment, save_dir, dataset_dir)]
    if dry_run:
        show_plan(entries, display)
        return []
    failures = _train(entries, folder, display, show)
    figures = []
    for experiment in experiments:
        write_rows([entry for entry in entries if entry.experiment is experiment], folder)
        figures.append(_draw(experiment, folder, display))
    if failures:
        raise Failed("; ".join(failures))
    return figures


# --- training ---


def _train(entries: Sequence[Entry], folder: Path, display: Display, show: bool) -> list[str]:
    """Train what has not ended, cell by cell. Returns a line for each cell that failed."""
    labels: dict[Config, str] = {}
    for entry in entries:
        for config, finished in zip(entry.configs, entry.finished, strict=True):
            if finished is None:
                labels.setdefault(config, f"{entry.group.name!r} on {entry.task}")
    missing = list(labels)
    cells = [[missing[number] for number in cell] for cell in fleets(missing)]
    total = len({config for entry in entries for config in entry.configs})
    display.note(f"sweep   {total} runs, {len(missing)} to train, in {len(cells)} programs")
    _collect_missing(entries, missing, display)
    failures = []
    for number, cell in enumerate(cells, 1):
        label = ", ".join(dict.fromkeys(labels[config] for config in cell))
        display.note(f"program {number} of {len(cells)}: {label}, {len(cell)} runs")
        try:
            train_cell(cell, show)
        except Interrupted as stop:
            raise Interrupted("stopped; the same command goes on, with what is on disk", stop.signum) from stop
        except Exception as error:
            text = " ".join(str(error).split()) or "no message"
            failures.append(f"{label} failed: {text if isinstance(error, UserError) else f'{error!r}'[:300]}")
            display.note(f"failed  {failures[-1]}")
            if not isinstance(error, UserError):
                folder.mkdir(parents=True, exist_ok=True)
                with open(folder / "failures.txt", "a") as file:
                    file.write(f"{label}\n{traceback.format_exc()}\n")
        forget_programs()
    return failures


def train_cell(configs: Sequence[Config], show: bool = True) -> list[Run]:
    """Train runs that fit one program: go on where all of them were left at the same step, or else begin."""
    left: dict[Path, int] = {}
    for config in configs:
        saved = ((run.folder, checkpoint.steps(run.folder / "checkpoints")) for run in runs_of(config))
        left |= next(({folder: steps[-1]} for folder, steps in saved if steps), {})
    if len(left) == len(configs) and len(set(left.values())) == 1:
        return resume_fleet(list(left), show=show, draw=False)
    return train_fleet(configs, show=show, draw=False)


def _collect_missing(entries: Sequence[Entry], configs: Iterable[Config], display: Display) -> None:
    """Collect the datasets of these runs that are not on disk and that the budget has a number of episodes for; what
    it does not name is downloaded when its run begins."""
    episodes = {name: count for entry in entries for name, count in entry.experiment.budget.data.items()}
    wanted = dict.fromkeys((envs.dataset_name(config.task), config.dataset_dir) for config in configs)
    for name, directory in wanted:
        if name in episodes and not (user_path(directory) / f"{name}.npz").exists():
            collect_shown(name, user_path(directory), episodes[name], display)


# --- what is written ---


def _draw(experiment: Experiment, folder: Path, display: Display) -> Path:
    """The figure and the table of an experiment, from its CSV files alone."""
    groups = {group.name: group.against for group in experiment.groups}
    evaluations, runs = (comparison.read_rows(folder / f"{experiment.name}{end}.csv") for end in ("", "-runs"))
    found = comparison.compare(groups, experiment.reference, evaluations, runs, experiment.score)
    figure, table = (folder / f"{experiment.name}.{suffix}" for suffix in ("png", "md"))
    table.write_text(comparison.table(found, experiment.title, experiment.question))
    comparison_figure.draw(figure, found, experiment.title, experiment.curves)
    display.note(f"wrote   {figure} and {table.name}")
    return figure


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


def _run_row(run: Run, columns: dict[str, list[float]], costs: Cost, score: str) -> dict[str, Any]:
    """What a run came to, and what its critic was like at the end. The first evaluation, of an agent that has not
    learned, is no part of the area."""
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
    """Atomically; what is missing or not a number is empty."""
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value is None or value != value else value for key, value in row.items()})
    partial.replace(path)
