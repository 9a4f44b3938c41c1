"""`floq export`: write the policy of a checkpoint as a folder that runs without floq."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from floq.agent.policy import Policy
from floq.analysis import probing
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
from floq.utils.untrusted import read_json

DEFAULT_FOLDERS = {"numpy": "export", "stablehlo": "export-stablehlo", "onnx": "export-onnx"}  # in the run's folder


def export_run(
    run_dir: str,
    step: int | None = None,
    out: str | None = None,
    format: Format = "numpy",
    explore: bool = False,
    tolerance: float = verification.TOLERANCE,
    overwrite: bool = False,
    show: bool = True,
) -> Path:
    """Write the policy of a checkpoint as a folder, compare it with the agent, and print the time of an action.

    Args:
        run_dir: the run's folder.
        step: which checkpoint; by default the newest.
        out: the folder to write; by default `export` in the run's, or `export-stablehlo`, `export-onnx`.
        format: numpy, stablehlo or onnx.
        explore: export the exploration policy instead of the one that is evaluated.
        tolerance: largest absolute difference from the agent's actions.
        overwrite: replace an earlier export in that folder.
        show: print what was written.

    Returns:
        The folder. It appears only when it is complete and its actions are those of the agent.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged or diverged, the folder is there already or cannot
            be written, a package is missing, or the policy computes what cannot be exported.
        Failed: the exported actions are not the agent's.
    """
    if format not in get_args(Format):
        raise UserError(f"--format={format}: choose {', '.join(get_args(Format))}")
    if not 0 <= tolerance < 1:
        raise UserError(f"--tolerance={tolerance:g}: actions are in [-1, 1], give a small number such as 1e-4")
    run, display = Run.open(run_dir), Display(show)
    folder = (run.folder / DEFAULT_FOLDERS[format] if out is None else user_path(out)).absolute()
    _check_free(folder, overwrite)
    check_packages(format)
    here, saved = device(), checkpoint.load(run.folder / "checkpoints", step)
    display.note(f"device  {here}")
    probing.check_finite(saved.agent, run_dir, saved.step)
    policy = saved.agent.policy
    traced = TracedPolicy.of(policy, saved.sizes[0], explore)
    exportable = Exportable(traced, translate(traced), _description(run, saved, explore))
    expected = verification.samples(policy, traced, explore)
    with _appearing(folder) as partial:
        write_exported(format, exportable, partial)
        acting = load_exported(format, partial)
        agreement = verification.compare_with_agent(policy, acting, expected, tolerance)
        speed = verification.milliseconds(lambda sample: acting(sample.obs, sample.noise), expected)
        files = {file.name: file.stat().st_size for file in sorted(partial.iterdir())}
    display.table(
        f"{run.config.task}, policy of step {saved.step}",
        {
            **{name: f"{size / 1000:,.1f} kB" for name, size in files.items()},
            "actions": _agreement_text(agreement),
            "one action": f"{speed:.3g} ms here, median of {verification.CALLS}",
            "in training": f"{_agent_milliseconds(policy, expected, explore):.3g} ms (JAX, compiled)",
        },
    )
    display.note(f"  policy      {folder}")
    return folder


def _description(run: Run, saved: Checkpoint, explore: bool) -> dict[str, Any]:
    agent, chunk = saved.config.agent, saved.config.agent.action_chunk
    about = {"task": run.config.task, "step": saved.step, "seed": saved.config.seed, "explores": explore}
    about |= {"critic": agent.critic_name, "actor": agent.actor_name, "floq": version("floq"), "jax": version("jax")}
    sizes = {"observation_size": saved.sizes[0], "action_size": saved.sizes[1] // chunk, "action_chunk": chunk}
    return {"about": about, **sizes}


def _agreement_text(agreement: verification.Agreement) -> str:
    text = f"the agent's, within {agreement.largest:.1g}, for {agreement.count} observations"
    if not agreement.ties:
        return text
    return f"{text}, but for {agreement.ties} where the critic likes two candidates equally well up to rounding"


def _agent_milliseconds(policy: Policy, expected: list[verification.Sample], explore: bool) -> float:
    """Return the median time of an action of the agent itself, compiled by JAX."""
    act = policy.explore if explore else policy.act
    keys = list(jax.random.split(jax.random.key(0), 2 * verification.CALLS))
    return verification.milliseconds(lambda sample: np.asarray(act(sample.obs, keys.pop())), expected)


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
