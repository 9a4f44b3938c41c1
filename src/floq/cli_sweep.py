"""The command `floq sweep`."""

import dataclasses
from dataclasses import dataclass

from floq.errors import UserError
from floq.flags import Flags, described, parse


@dataclass(frozen=True)
class Sweep:
    """Train what experiment files compare, and write for each a table, a figure and two CSV files. Runs that have ended
    are not trained again, and a sweep that was stopped goes on where it was. The files come first:
    floq sweep experiments/steps.toml --budget laptop. With --seeds 0 1 2, these seeds instead of those of the files."""

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
    redraw: bool = False
    """Draw figures and tables again, from the CSV files alone."""


def sweep_command(argv: list[str]) -> None:
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    files, flags = argv[:count], Flags(argv[count:])
    seeds = flags.take_seeds()
    types = {f.name: f for f in dataclasses.fields(Sweep)}
    options = parse(Sweep, flags.normalised(types), "floq sweep FILE [FILE ...]", described(Sweep))
    if not files:
        raise UserError("floq sweep needs an experiment file, before the flags: floq sweep experiments/steps.toml")
    if options.redraw and options.dry_run:
        raise UserError("--redraw with --dry_run: give one of them")
    from floq.machine import keep_programs
    from floq.sweep import sweep

    keep_programs()
    sweep(files, seeds=seeds, **dataclasses.asdict(options))
