"""`floq sweep`: train what experiment files or flags ask for, here or on a cluster, and draw what came of it.

A run is known by its configuration and its seed: one that has ended, for whichever experiment, is never trained again.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax

from floq import envs
from floq.analysis import comparison, comparison_figure
from floq.config import Config
from floq.errors import Failed, Interrupted, UserError
from floq.experiment import PROJECT, Experiment, read_experiment
from floq.folders import check_writable, user_path
from floq.machine import forget_programs, use_all_cores
from floq.progress import Display
from floq.results import differences, show_result
from floq.run import Run
from floq.run_data import collect_shown, fetch_missing
from floq.sweep_cells import Cell, Outcome, attempt, cells_of
from floq.sweep_estimate import show_cells
from floq.sweep_plan import missing, plan, runs_of, show_plan
from floq.sweep_tables import write_rows
from floq.train import check_built, fleets, settled

if TYPE_CHECKING:  # it needs Ray
    from floq.cluster import Placement, Share


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
        files: experiments; see `floq.experiment`.
        budget: the name of the budget file beside them.
        out: where tables and figures go; by default into `save_dir`/sweep/`budget`.
        dataset_dir, save_dir: of the runs.
        seeds: instead of those of the files.
        dry_run: only show the plan.
        redraw: only draw figures and tables again, from the CSV files in `out`.
        placement: train on this Ray cluster; by default one program after another in this process.
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
    """Train those of these runs that have not ended yet, and show what all of them came to.

    Args:
        configs: the runs.
        notes: lines to print first.
        dry_run, placement, show: see `sweep`.

    Returns:
        The runs that came to their end, in the order of `configs`.

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
    configs = [settled(config) for config in configs]
    named = zip(configs, differences(configs), strict=True)
    labels = {config: name or _called(config) for config, name in named}
    here = [] if placement else fleets(missing(labels))  # whose results are shown when they have been trained
    failures = _train(labels, folder, display, show, dry_run, placement, {})
    if dry_run:
        return []
    finished = [run for config in labels for run in runs_of(config)[:1] if run.is_finished]
    for numbers in fleets([run.config for run in finished]) if list(map(len, here)) != [len(labels)] else []:
        show_result([finished[number] for number in numbers], display)
    display.note(f"page    floq report {folder} --out report.html")
    if failures:
        raise Failed("; ".join(failures))
    return finished


# --- training ---


def _start_jax(runs: int, dry_run: bool, placement: "Placement | None") -> None:
    """As the training needs it. Where that happens elsewhere, no accelerator is taken from it."""
    if placement is not None or dry_run:
        jax.config.update("jax_platforms", "cpu")
        return
    use_all_cores(runs)
    jax.devices()


def _called(config: Config) -> str:
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
    """Train what has not ended of these runs, here or there, or only show how. Returns a line for each cell that
    failed."""
    left = missing(labels)
    with contextlib.ExitStack() as stack:
        share: Share | None = None
        if placement is not None and left:
            from floq.cluster import connected

            share = stack.enter_context(connected(placement))
        cells = cells_of({config: labels[config] for config in left}, _most(len(left), placement, share))
        if dry_run:
            if cells:
                slots, machines = (share.slots, share.machines) if share else (1, "this machine, one after another")
                show_cells(cells, slots, machines, left[0].save_dir, display)
            return []
        display.note(f"sweep   {len(labels)} runs, {len(left)} to train, in {len(cells)} programs")
        for run in (run for config in labels.keys() - set(left) for run in runs_of(config)[:1] if run.diverged):
            display.note(f"diverged {run.folder}, at step {run.diverged.get('step')}: not trained again")
        _collect_missing(episodes, left, display)
        if share is not None and placement is not None and cells:
            from floq.cluster import train_cells

            fetch_missing(left, display)  # once, rather than by every cell
            display.note(f"ray     {share}")
            outcomes = train_cells(cells, placement, share, show)
        else:
            outcomes = _train_here(cells, display, show)
    failures = []
    for cell, outcome in zip(cells, outcomes, strict=True):
        if outcome.state == "failed":
            failures.append(f"{cell.label} failed: {outcome.line}")
        if outcome.trace:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / "failures.txt", "a") as file:
                file.write(f"{failures[-1]}\n{outcome.trace}\n")
    return failures


def _most(runs: int, placement: "Placement | None", share: "Share | None") -> int | None:
    """How many runs a cell may have: on a cluster, so many that no machine is idle while another has two's work."""
    if placement is None or share is None:
        return None
    return placement.fleet_size or max(1, -(-runs // share.slots))


def _train_here(cells: Sequence[Cell], display: Display, show: bool) -> list[Outcome]:
    """Train cells in this process, one after another."""
    outcomes = []
    for number, cell in enumerate(cells, 1):
        display.note(f"program {number} of {len(cells)}: {cell.label}, {len(cell.configs)} runs")
        try:
            outcomes.append(attempt(cell, show))
        except Interrupted as stop:
            raise Interrupted("stopped; the same command goes on, with what is on disk", stop.signum) from stop
        if outcomes[-1].state == "failed":
            display.note(f"failed  {cell.label}: {outcomes[-1].line}")
        forget_programs()
    return outcomes


def _collect_missing(episodes: Mapping[str, int], configs: Iterable[Config], display: Display) -> None:
    """Collect the datasets of these runs that are not on disk and that the budget has a number of episodes for; what
    it does not name is downloaded when its run begins."""
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
