"""The command `floq export`."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from tyro.conf import Positional

from floq.cli.flags import parse_options


@dataclass(frozen=True)
class ExportRun:
    """Write the policy of a run as a folder that runs without floq: operations and arrays, with a reader of one file
    that needs NumPy alone. Its actions are compared with the agent's before the folder appears, and the time of an
    action is printed."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    out: str | None = None
    """The folder to write; by default export in the run's, or export-stablehlo, export-onnx."""
    format: Literal["numpy", "stablehlo", "onnx"] = "numpy"
    """numpy: JSON, safetensors and a reader. stablehlo: for jax.export. onnx: for ONNX runtimes. The latter two need
    the extra floq[export]."""
    explore: bool = False
    """Export the exploration policy (a Gaussian's samples, noise on a deterministic action) instead of the one that is
    evaluated."""
    tolerance: float = 1e-5
    """Largest difference of an action from the agent's; rounding errors grow where a policy is very steep."""
    overwrite: bool = False
    """Replace an earlier export in that folder."""


def export_command(argv: list[str]) -> None:
    """Run `floq export`."""
    options = parse_options(ExportRun, argv, "floq export")
    from floq.export.export_run import export_run
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    export_run(**dataclasses.asdict(options))
