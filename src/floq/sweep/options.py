"""Options of `floq sweep`: its budget and folders, and the machines that train. No JAX in here."""

import re
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from floq.utils.errors import UserError
from floq.utils.schema import NonNegativeFloat, Positive, Settings


@dataclass(frozen=True)
class Placement(Settings):
    """Cluster and resources of the jobs; None is resolved when the machines are known."""

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
        if self.address is not None and not re.fullmatch(r"auto|local|[^/:]+:\d+", self.address):
            raise UserError(f"--address={self.address}: give auto, local or HOST:PORT")
        if (gpus := self.gpus_per_cell) is not None and gpus > 1 and gpus != int(gpus):
            raise UserError(f"--gpus_per_cell={gpus:g}: give a whole number, or a part of one GPU")


@dataclass(frozen=True)
class SweepOptions(Placement):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redraw and self.dry_run:
            raise UserError("--redraw with --dry_run: give one of them")
