"""The command `floq inspect`."""

import dataclasses
from dataclasses import dataclass

from tyro.conf import Positional

from floq.cli.flags import parse_with_folder


@dataclass(frozen=True)
class InspectRun:
    """Draw what the critic of a run has learned, and how: for a flow critic how noise becomes a value, how Q settles
    with K and what is left of the noise; for others what each network says; for all how they developed, the value over
    the maze, and along episodes. Prints what each picture shows."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    out: str | None = None
    """The folder of the pictures; by default the run's own plots."""
    episodes: int = 3
    """Episodes that are played, the first of the evaluation at that step."""
    video: bool = False
    """Film them, beside their value; needs the extra floq[video], and a renderer (MUJOCO_GL)."""


def inspect_run_command(argv: list[str]) -> None:
    options = parse_with_folder(InspectRun, argv, "floq inspect")
    from floq.analysis.inspect_run import inspect_run
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    inspect_run(**dataclasses.asdict(options))
