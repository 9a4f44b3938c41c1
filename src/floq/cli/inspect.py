"""The command `floq inspect`."""

import dataclasses
from dataclasses import dataclass

from tyro.conf import Positional

from floq.cli.flags import parse_options


@dataclass(frozen=True)
class InspectRun:
    """Draw what the critic of a run has learned: for a flow critic the flow from noise to value, the convergence of Q
    with K and the noise that remains; for others the value of each network; for all their metrics during training, the
    value over the maze, and along episodes. Prints a description of each picture."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    dataset: str | None = None
    """Where the data of the run lie now, if they were moved."""
    out: str | None = None
    """The folder of the pictures; by default the run's own plots."""
    episodes: int = 3
    """Episodes to run, the first ones of the evaluation at that step."""
    video: bool = False
    """Film them, beside their value; needs the extra floq[video], and a renderer (MUJOCO_GL)."""
    env_name: str | None = None
    """Its environment, if that is a module:Id whose module may be imported."""


def inspect_run_command(argv: list[str]) -> None:
    """Run `floq inspect`."""
    options = parse_options(InspectRun, argv, "floq inspect")
    from floq.analysis.inspect_run import inspect_run
    from floq.runs.run import Run
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    values = dataclasses.asdict(options)
    Run.open(options.run_dir, values.pop("env_name"))
    inspect_run(**values)
