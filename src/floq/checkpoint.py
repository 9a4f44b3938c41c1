"""The whole state of an agent on disk: safetensors beside a JSON manifest, written atomically, never a pickle."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from floq.agent import Agent
from floq.config import Config
from floq.data.replay import Recorded
from floq.errors import UserError
from floq.policy import Policy

FORMAT = 2
TENSORS, PENDING, MANIFEST = "state.safetensors", "pending-{}.safetensors", "manifest.json"
REPLAY = "replay.safetensors"
REPLAYS_KEPT = 2  # of the newest checkpoints: each holds all that the run has seen

T = TypeVar("T")


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the agent's whole state, the configuration it was trained with, how many numbers an
    observation and an action have, the clocks of its run (seconds and steps, by name), by step the policies whose
    evaluation was not finished, and the run's step: gradient steps offline, plus environment steps. Its replay, if it
    is online, is read by `load_replay`."""

    agent: Agent
    config: Config
    sizes: tuple[int, int]
    clocks: dict[str, float]
    pending: dict[int, Policy]
    step: int = 0


def save(
    folder: Path,
    agent: Agent,
    sizes: tuple[int, int],
    config: Config,
    clocks: Mapping[str, float] | None = None,
    pending: Mapping[int, Policy] | None = None,
    *,
    step: int | None = None,
    replay: Recorded | None = None,
) -> Path:
    """Write `folder`/<step>/; the folder appears under that name only when it is complete.

    Args:
        folder: a run's `checkpoints` folder.
        agent: its whole state is stored, so training can go on from it.
        sizes: how many numbers an observation and an action have.
        config: stored beside the state, to rebuild the agent and to refuse a state that does not fit it.
        clocks: numbers that a continued run counts on from.
        pending: by step, policies that a continued run still has to evaluate.
        step: of the run; by default the agent's, which counts its updates.
        replay: what the run has seen online. Checkpoints but for the newest two lose theirs.
    """
    step = int(agent.step) if step is None else step
    final, partial = folder / str(step), folder / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(agent, partial / TENSORS)
    for at, policy in (pending or {}).items():
        _write(policy, partial / PENDING.format(at))
    if replay is not None:
        save_file({name: np.ascontiguousarray(x) for name, x in replay._asdict().items()}, partial / REPLAY)
    manifest = {"format": FORMAT, "step": step, "obs_size": sizes[0], "act_size": sizes[1]}
    manifest |= {"config": config.to_json(), "clocks": dict(clocks or {}), "pending": sorted(pending or {})}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in partial.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    aside = folder / f".{step}.old"
    if final.exists():  # saved before, with other evaluations pending
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    partial.rename(final)
    shutil.rmtree(aside, ignore_errors=True)
    for older in steps(folder)[:-REPLAYS_KEPT] if replay is not None else ():
        (folder / str(older) / REPLAY).unlink(missing_ok=True)
    return final


def steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order. Brings back one that a kill left aside."""
    for aside in folder.glob(".*.old"):
        name = folder / aside.name.strip(".").removesuffix(".old")
        if not name.exists() and (aside / MANIFEST).exists():
            aside.rename(name)
    return sorted(int(p.name) for p in folder.glob("*") if re.fullmatch(r"\d+", p.name) and (p / MANIFEST).exists())


def load(folder: Path, step: int | None = None) -> Checkpoint:
    """Read the checkpoint of `step`, by default the newest one.

    Raises:
        UserError: there is none, it is damaged, or its tensors are not those of its configuration.
    """
    available = steps(folder)
    if not available:
        raise UserError(f"{folder} holds no complete checkpoint: is this a run folder that floq train has written?")
    if step is not None and step not in available:
        raise UserError(f"{folder} has no checkpoint of step {step}: choose one of {', '.join(map(str, available))}")
    path = folder / str(available[-1] if step is None else step)
    remedy = _remedy(path, available)
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} has checkpoint format {manifest['format']}; this version of floq reads {FORMAT}")
        config, sizes = Config.from_json(manifest["config"]), (manifest["obs_size"], manifest["act_size"])
        clocks = {name: float(value) for name, value in manifest.get("clocks", {}).items()}
        waiting = [int(at) for at in manifest.get("pending", [])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged ({error!r}): {remedy}") from error

    template = jax.eval_shape(lambda: Agent.init(jax.random.key(0), *sizes, config.agent, precision=config.precision))
    agent = _read(template, path / TENSORS, remedy)
    pending = {at: _read(template.policy, path / PENDING.format(at), remedy) for at in waiting}
    return Checkpoint(agent, config, sizes, clocks, pending, int(path.name))


def load_replay(folder: Path, step: int) -> Recorded | None:
    """What the run had seen online at its checkpoint of that step, None if it has no replay.

    Raises:
        UserError: it is damaged.
    """
    path = folder / str(step) / REPLAY
    if not path.exists():
        return None
    remedy = _remedy(path.parent, steps(folder))
    stored = _tensors(path, remedy)
    if stored.keys() != set(Recorded._fields) or len({x.shape[:2] for x in stored.values()}) > 1:
        raise UserError(f"{path} is damaged (it lacks a part): {remedy}")
    return Recorded(**stored)


def _remedy(path: Path, available: list[int]) -> str:
    return f"delete {path} to go back to an older checkpoint" if len(available) > 1 else "there is no other checkpoint"


def _tensors(path: Path, remedy: str) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error


def _write(tree: Any, path: Path) -> None:
    save_file(dict(zip(_names(tree), map(np.asarray, _stored_leaves(tree)), strict=True)), path)


def _read(template: T, path: Path, remedy: str) -> T:
    """The tree of the template's shape whose arrays are in the file."""
    stored = _tensors(path, remedy)
    names = _names(template)
    expected = dict(zip(names, jax.eval_shape(_stored_leaves, template), strict=True))
    wrong = sorted(expected.keys() ^ stored.keys())
    wrong += [
        n for n in names if n in stored and (expected[n].shape, expected[n].dtype) != (stored[n].shape, stored[n].dtype)
    ]
    if wrong:
        raise UserError(f"{path} does not fit its configuration: {wrong[0]} is missing, extra or of another shape")
    arrays = [jnp.asarray(stored[name]) for name in names]
    if "key" in names:
        arrays[names.index("key")] = jax.random.wrap_key_data(arrays[names.index("key")])
    return jax.tree.unflatten(jax.tree.structure(template), arrays)


def _names(tree: Any) -> list[str]:
    """The names of a tree's arrays, in the order of its leaves: `params.critic.velocity.entry.bias` and so on."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _stored_leaves(tree: Any) -> list[Any]:
    """A tree's arrays as they are stored: the random key as its raw words."""
    leaves = zip(_names(tree), jax.tree.leaves(tree), strict=True)
    return [jax.random.key_data(leaf) if name == "key" else leaf for name, leaf in leaves]
