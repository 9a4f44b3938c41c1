"""The command `floq sweep`."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from floq.cli.flags import Flags, fields_of, parse
from floq.utils.errors import UserError
from floq.utils.schema import NonNegativeFloat, Positive, Settings


@dataclass(frozen=True)
class Sweep(Settings):
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
    max_retries: Annotated[int, Ge(-1)] | None = None
    """On Ray, how many more times a job is tried whose process or node was lost; by default 20, -1 is no limit."""


RAY_FLAGS = ("address", "gpus_per_cell", "cores_per_cell", "fleet_size", "max_retries")
FILE_FLAGS = ("budget", "out", "redraw")


def sweep_command(argv: list[str]) -> None:
    """Run `floq sweep`."""
    if not argv:
        raise UserError(
            "floq sweep needs an experiment file, floq sweep experiments/steps.toml, or flags of floq train, as in "
            "floq sweep --seeds 0 1 2"
        )
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    if late := [word for word in argv[count:] if word.endswith(".toml")]:
        raise UserError(f"floq sweep needs its files before the flags: floq sweep {late[0]} ...")
    flags = Flags(argv[count:])
    if count or flags.help:
        _sweep_files(argv[:count], flags)
    else:
        _sweep_flags(flags)


def _sweep_files(files: Sequence[str], flags: Flags) -> None:
    seeds = flags.take_seeds()
    options = _options(flags)
    if options.redraw and options.dry_run:
        raise UserError("--redraw with --dry_run: give one of them")
    own = {name: value for name, value in vars(options).items() if name not in RAY_FLAGS}
    placement = _placement(options)
    from floq.sweep.sweep import sweep
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    sweep(files, seeds=seeds, placement=placement, **own)


def _sweep_flags(flags: Flags) -> None:
    """Train the runs that flags of `floq train` describe."""
    from floq.cli.train import check_tasks, resolve_train

    if own := [name for name in flags.values if name in FILE_FLAGS]:
        raise UserError(f"--{own[0]} is about experiment files, and none is given: leave it out")
    placement = _placement(_options(flags.selected(RAY_FLAGS)))
    flags.drop(RAY_FLAGS)
    request = resolve_train(flags)
    check_tasks(request.configs)
    from floq.sweep.sweep import sweep_configs
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    sweep_configs(request.configs, request.notes, request.dry_run, placement)


def _options(flags: Flags) -> Sweep:
    return parse(Sweep, flags.normalised(fields_of(Sweep)), "floq sweep FILE [FILE ...]")


def _placement(options: Sweep) -> Any:
    """Return the cluster and resources of jobs, None for this process. Raises UserError if a flag is wrong or Ray is
    not installed."""
    given = {name: value for name in RAY_FLAGS if (value := getattr(options, name)) is not None}
    if options.address is None:
        if given:
            raise UserError(f"--{next(iter(given))} is about a Ray cluster: give --address=auto or --address=local")
        return None
    if not re.fullmatch(r"auto|local|[^/:]+:\d+", options.address):
        raise UserError(f"--address={options.address}: give auto, local or HOST:PORT")
    if (gpus := options.gpus_per_cell) is not None and gpus > 1 and gpus != int(gpus):
        raise UserError(f"--gpus_per_cell={gpus:g}: give a whole number, or a part of one GPU")
    if importlib.util.find_spec("ray") is None:
        raise UserError("--address needs Ray: pip install 'floq[ray]'")
    from floq.sweep.ray import Placement

    return Placement(**given)
