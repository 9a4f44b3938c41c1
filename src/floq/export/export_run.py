"""`floq export`: write the policy of a checkpoint as a folder that runs without floq."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from floq.analysis import critic_outputs
from floq.export import exported, verification
from floq.export.formats import Exportable, Format, check_packages, load_exported, write_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy
from floq.runs import checkpoint
from floq.runs.checkpoint import Checkpoint
from floq.runs.run import Run
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import device, version
from floq.utils.progress import Display
from floq.utils.schema import Settings
from floq.utils.untrusted import read_json

DEFAULT_FOLDERS = {"numpy": "export", "stablehlo": "export-stablehlo", "onnx": "export-onnx"}  # in the run's folder


@dataclass(frozen=True)
class ExportOptions(Settings):
    """Write the policy of a run as a folder that runs without floq: operations and arrays, with a reader of one file
    that needs NumPy alone. Its actions are compared with the agent's before the folder appears, and the time of an
    action is printed."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    out: str | None = None
    """The folder to write; by default export in the run's, or export-stablehlo, export-onnx."""
    format: Format = "numpy"
    """numpy: JSON, safetensors and a reader. stablehlo: for jax.export. onnx: for ONNX runtimes. The latter two need
    the extra floq[export]."""
    explore: bool = False
    """Export the exploration policy (a Gaussian's samples, noise on a deterministic action) instead of the one that is
    evaluated."""
    tolerance: float = verification.TOLERANCE
    """Largest difference of an action from the agent's; rounding errors grow where a policy is very steep."""
    overwrite: bool = False
    """Replace an earlier export in that folder."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.tolerance < 1:
            raise UserError(f"--tolerance={self.tolerance:g}: actions are in [-1, 1], give a small number such as 1e-4")


def export_run(options: ExportOptions) -> Path:
    """Write the policy of a checkpoint as a folder, compare it with the agent, and print the time of an action.

    Returns:
        The folder. It appears only when it is complete and its actions are those of the agent.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged or diverged, the folder is there already or cannot
            be written, a package is missing, or the policy computes what cannot be exported.
        Failed: the exported actions are not the agent's.
    """
    run, format, explore = Run.open(options.run_dir, makes_env=False), options.format, options.explore
    folder = (run.folder / DEFAULT_FOLDERS[format] if options.out is None else user_path(options.out)).absolute()
    _check_free(folder, options.overwrite)
    check_packages(format)
    here, display = device(), Display()
    saved = checkpoint.load(run.folder / "checkpoints", options.step)
    critic_outputs.check_finite(saved.agent, options.run_dir, saved.step)
    display.note(f"device  {here}")
    policy = saved.agent.policy
    traced = TracedPolicy.of(policy, saved.agent.obs_spec, explore)
    exportable = Exportable(traced, translate(traced), _description(run, saved, explore))
    expected = verification.samples(policy, traced, explore)
    with _appearing(folder) as partial:
        write_exported(format, exportable, partial)
        acting = load_exported(format, partial)
        agreement = verification.compare_with_agent(policy, acting, expected, options.tolerance)
        speed = verification.milliseconds(lambda sample: acting(sample.obs, sample.noise), expected)
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    actions = f"the agent's, within {agreement.largest:.1g}, for {agreement.count} observations"
    if agreement.ties:
        actions += f", but for {agreement.ties} where the critic likes two candidates equally well up to rounding"
    display.table(
        f"{run.config.task}, policy of step {saved.step}",
        {
            **{name: f"{size / 1000:,.1f} kB" for name, size in files.items()},
            "actions": actions,
            "one action": f"{speed:.3g} ms here, median of {verification.CALLS}",
        },
    )
    display.note(f"  policy      {folder}")
    return folder


def _description(run: Run, saved: Checkpoint, explore: bool) -> dict[str, Any]:
    agent, chunk = saved.config.agent, saved.config.agent.action_chunk
    about = {"task": run.config.task, "step": saved.step, "seed": saved.config.seed, "explores": explore}
    about |= {"critic": agent.critic_name, "actor": agent.actor_name, "floq": version("floq"), "jax": version("jax")}
    sizes = {"observation_size": saved.agent.obs_spec.dim, "action_size": saved.agent.action_dim // chunk}
    return {"about": about, **sizes, "action_chunk": chunk}


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError if the folder must not or cannot be written."""
    check_writable(folder.parent, "give another --out")
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: give another --out, or --overwrite to replace what was exported there")
    if not _is_export(folder):
        raise UserError(f"{folder} was not written by floq export, and is left as it is: give another --out")


def _is_export(folder: Path) -> bool:
    """Return whether `floq export` wrote the folder, and it holds no other files."""
    known = {*("policy.json", "policy.safetensors", "policy.stablehlo", "policy.onnx", "read_policy.py", "README.txt")}
    known |= {"__pycache__"}
    try:
        described = read_json(folder / exported.PROGRAM)
        return described.get("format") == exported.FORMAT and {p.name for p in folder.iterdir()} <= known
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to `folder`, replacing an earlier one, if no exception is raised."""
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    try:
        if old.exists() and not folder.exists():  # the process was killed between the two renames below
            old.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            files.sync(file)
        files.replace_folder(folder, partial, old)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
