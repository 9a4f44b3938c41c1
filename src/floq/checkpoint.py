"""The whole state of an agent on disk: safetensors beside a JSON manifest, written atomically, never a pickle."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from floq.agent import Agent
from floq.config import Config
from floq.errors import UserError

FORMAT = 1
TENSORS, MANIFEST = "state.safetensors", "manifest.json"


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the agent's whole state, the configuration it was trained with, how many numbers an
    observation and an action have, and the clocks of its run (seconds and steps, by name)."""

    agent: Agent
    config: Config
    sizes: tuple[int, int]
    clocks: dict[str, float]


def save(
    folder: Path, agent: Agent, sizes: tuple[int, int], config: Config, clocks: Mapping[str, float] | None = None
) -> Path:
    """Write `folder`/<step>/; the folder appears under that name only when it is complete.

    Args:
        folder: a run's `checkpoints` folder.
        agent: its whole state is stored, so training can go on from it.
        sizes: how many numbers an observation and an action have.
        config: stored beside the state, to rebuild the agent and to refuse a state that does not fit it.
        clocks: numbers that a continued run counts on from.
    """
    step = int(agent.step)
    final, partial = folder / str(step), folder / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(dict(zip(_names(agent), map(np.asarray, _stored_leaves(agent)), strict=True)), partial / TENSORS)
    manifest = {"format": FORMAT, "step": step, "obs_size": sizes[0], "act_size": sizes[1]}
    manifest |= {"config": config.to_json(), "clocks": dict(clocks or {})}
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    for file in partial.iterdir():
        with open(file, "rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    return final


def steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order."""
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
    remedy = (
        f"delete {path} to go back to an older checkpoint" if len(available) > 1 else "there is no other checkpoint"
    )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            raise UserError(f"{path} has checkpoint format {manifest['format']}; this version of floq reads {FORMAT}")
        config, sizes = Config.from_json(manifest["config"]), (manifest["obs_size"], manifest["act_size"])
        clocks = {name: float(value) for name, value in manifest.get("clocks", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / MANIFEST} is damaged ({error!r}): {remedy}") from error

    template = jax.eval_shape(lambda: Agent.init(jax.random.key(0), *sizes, config.agent))
    try:
        with safetensors.safe_open(path / TENSORS, framework="numpy") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path / TENSORS} is damaged ({error}): {remedy}") from error
    return Checkpoint(_fill(template, stored, path), config, sizes, clocks)


def _names(agent: Agent) -> list[str]:
    """The names of the agent's arrays, in the order of its leaves: `params.critic.velocity.entry.bias` and so on."""
    return [
        jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(agent)
    ]


def _stored_leaves(agent: Agent) -> list[Any]:
    """The agent's arrays as they are stored: the random key as its raw words."""
    leaves = zip(_names(agent), jax.tree.leaves(agent), strict=True)
    return [jax.random.key_data(leaf) if name == "key" else leaf for name, leaf in leaves]


def _fill(template: Agent, stored: dict[str, np.ndarray], path: Path) -> Agent:
    names = _names(template)
    expected = dict(zip(names, jax.eval_shape(_stored_leaves, template), strict=True))
    wrong = sorted(expected.keys() ^ stored.keys())
    wrong += [
        n for n in names if n in stored and (expected[n].shape, expected[n].dtype) != (stored[n].shape, stored[n].dtype)
    ]
    if wrong:
        raise UserError(
            f"{path / TENSORS} does not fit its configuration: {wrong[0]} is missing, extra or of another shape"
        )
    arrays = [jnp.asarray(stored[name]) for name in names]
    arrays[names.index("key")] = jax.random.wrap_key_data(arrays[names.index("key")])
    return jax.tree.unflatten(jax.tree.structure(template), arrays)
