"""Checkpoints of a run: the whole state of an agent as safetensors beside a JSON manifest, written atomically, never a
pickle. Each is a folder `checkpoints/<step>/` of the run's folder."""

import contextlib
import errno
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Gt, Le, Len
from safetensors.numpy import save as serialised

from floq.agent.agent import Agent
from floq.agent.policy import Policy
from floq.data.replay import ReplaySnapshot
from floq.runs.config import Config
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.files import replace_folder, sync
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import NonNegative, convert, from_table
from floq.utils.untrusted import TensorMismatch, TensorSpec, read_json, read_tensors

FORMAT = 3  # as since version 0.1
MANIFEST = "manifest.json"
TENSORS, PENDING, REPLAY = "state.safetensors", "pending-{}.safetensors", "replay.safetensors"
DIGESTS = "sha256"  # of each file, in the manifest; of the manifest itself, without that entry
REPLAYS_KEPT = 2  # of the newest checkpoints: each holds all experience of the run
REPLAY_KINDS = {"observations": (3, "float32"), "actions": (3, "float32"), "ends": (2, "bool")}
PARTS_KIND = (3, "uint8")  # of observations that have images
REPLAY_KINDS |= dict.fromkeys(("rewards", "masks"), (2, "float32"))
STEP = "0|[1-9][0-9]{0,14}"
MAX_WIDTH = 2**20  # dimension of an observation, or of a chunk of actions
MAX_PARTS, MAX_FRAMES = 2**8, 2**6  # of an observation
ObsPart: TypeAlias = Annotated[list[Annotated[int, Gt(0), Le(MAX_WIDTH)]], Len(1, 3)]
MAX_PENDING = 2**10  # pending evaluations of a stopped run

T = TypeVar("T")


class DamagedCheckpoint(UserError):
    """A checkpoint cannot be read: its files are not those that were written."""


class Checkpoint(NamedTuple):
    """Contents of a checkpoint: the agent's whole state, its configuration, the clocks of its run (seconds and steps,
    by name), by step the policies whose evaluation was not finished, and the run's step: gradient steps offline, plus
    environment steps. The replay of an online run is read by `load_replay`."""

    agent: Agent
    config: Config
    clocks: dict[str, float]
    pending: dict[int, Policy]
    step: int = 0


# --- Saving and loading ---


def save(
    folder: Path,
    agent: Agent,
    config: Config,
    clocks: Mapping[str, float] | None = None,
    pending: Mapping[int, Policy] | None = None,
    *,
    step: int | None = None,
    replay: ReplaySnapshot | None = None,
) -> Path:
    """Write `folder`/<step>/, which appears under that name only when it is complete; see `Checkpoint`.

    Args:
        folder: a run's `checkpoints` folder.
        agent: its whole state is stored.
        config: rebuilds the agent, and refuses a state that does not fit it.
        clocks: counters that a resumed run continues from.
        pending: by step, policies that a resumed run still has to evaluate.
        step: of the run; by default the agent's, which counts its updates.
        replay: the online experience of the run. Only the two newest checkpoints keep theirs.
    """
    step = int(agent.step) if step is None else step
    stored = {TENSORS: _stored(agent)} | {PENDING.format(at): _stored(p) for at, p in (pending or {}).items()}
    if replay is not None:
        stored[REPLAY] = {name: np.ascontiguousarray(x) for name, x in replay._asdict().items()}
    partial = folder / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    folder.mkdir(exist_ok=True)  # without parents: a run folder that was deleted is not made again
    partial.mkdir()
    try:
        digests = {}
        for name, arrays in stored.items():
            content = serialised({name: np.asarray(x) for name, x in arrays.items()})
            files.write(partial / name, content)
            digests[name] = hashlib.sha256(content).hexdigest()
        manifest = {"format": FORMAT, "step": step, "act_size": agent.action_dim} | _described(agent.obs_spec)
        manifest |= {"config": config.to_json(), "clocks": dict(clocks or {}), "pending": sorted(pending or {})}
        manifest[DIGESTS] = digests | {MANIFEST: _digest(manifest | {DIGESTS: digests})}
        files.write(partial / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
        # It replaces an earlier checkpoint of the same step, which differs in its pending evaluations.
        replace_folder(final := folder / str(step), partial, folder / f".{step}.old")
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)  # frees space if the disk is full
        raise
    for older in steps(folder)[:-REPLAYS_KEPT] if replay is not None else ():
        (folder / str(older) / REPLAY).unlink(missing_ok=True)
    return final


def load(folder: Path, step: int | None = None) -> Checkpoint:
    """Read the checkpoint of `step`, by default the newest one.

    Raises:
        DamagedCheckpoint: its files are not those that were written.
        UserError: there is none, it cannot be read, or its tensors are not those of its configuration.
    """
    available = steps(folder)
    if not available:
        raise UserError(f"{folder} holds no complete checkpoint: is this a run folder that floq train has written?")
    if step is not None and step not in available:
        raise UserError(f"{folder} has no checkpoint of step {step}: choose one of {', '.join(map(str, available))}")
    step = available[-1] if step is None else step
    path, remedy = path_of(folder, step), _remedy(step, available)
    manifest = _manifest(path, remedy)
    try:
        saved = Manifest.of(manifest)
        given = jax.random.key(0), saved.obs_spec, saved.act_size, saved.config.agent
        template = jax.eval_shape(lambda: Agent.init(*given, precision=saved.config.precision_here))
    except (UserError, ValueError, OverflowError, TypeError, MemoryError) as error:
        raise DamagedCheckpoint(f"{path / MANIFEST} is damaged ({error}): {remedy}") from error
    digests = manifest[DIGESTS]
    agent = _read(template, path / TENSORS, digests, remedy)
    pending = {at: _read(template.policy, path / PENDING.format(at), digests, remedy) for at in saved.pending}
    return Checkpoint(agent, saved.config, saved.clocks, pending, step)


def load_replay(folder: Path, step: int) -> ReplaySnapshot | None:
    """Read the online experience of the run at its checkpoint of `step`, None if it has no replay.

    Raises:
        DamagedCheckpoint: it is not what was written.
        UserError: it cannot be read.
    """
    path = path_of(folder, step) / REPLAY
    if not path.exists():
        return None
    remedy = _remedy(step, steps(folder))
    stored = _tensors(path, _manifest(path.parent, remedy)[DIGESTS], remedy)
    kinds = {name: (x.ndim, str(x.dtype)) for name, x in stored.items()}
    if kinds.get("observations") == PARTS_KIND:
        kinds["observations"] = REPLAY_KINDS["observations"]
    if kinds != REPLAY_KINDS or len({x.shape[:2] for x in stored.values()}) > 1:
        raise DamagedCheckpoint(f"{path} is damaged (a part is missing, or of another shape or type): {remedy}")
    return ReplaySnapshot(**stored)


def _remedy(step: int, available: list[int]) -> str:
    """Return advice for the case that the checkpoint of this step is damaged."""
    older = [at for at in available if at < step]
    if not older:
        return "there is no older checkpoint"
    return f"floq train --resume goes back to that of step {older[-1]}, floq eval takes --step={older[-1]}"


@contextlib.contextmanager
def _explain_damage(path: Path, remedy: str) -> Iterator[None]:
    """Turn errors of reading a file into DamagedCheckpoint if the file is at fault, otherwise into UserError."""
    try:
        yield
    except TensorMismatch as error:
        raise UserError(f"{path} does not fit its configuration: {error}") from error
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != errno.EIO:
            raise UserError(f"{path} cannot be read ({error.strerror}): fix this, and try again") from error
        raise DamagedCheckpoint(f"{path} is damaged ({error.strerror}): {remedy}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error}): {remedy}") from error


# --- Folder ---


def steps(folder: Path) -> list[int]:
    """Return the steps that have a complete checkpoint, in order. Changes nothing."""
    return sorted(_complete(folder))


def path_of(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of `step`, whether or not it exists."""
    return _complete(folder).get(step, folder / str(step))


def repair(folder: Path) -> list[Path]:
    """Restore what an interrupted replacement left aside, and delete half-written checkpoints. The caller must hold the
    lock of the run's folder.

    Returns:
        The quarantined folders: they have the name of a checkpoint but no manifest.
    """
    for old in folder.glob(".*.old"):
        final = folder / old.name.strip(".").removesuffix(".old")
        if (old / MANIFEST).exists() and not final.exists():
            old.rename(final)
        else:
            shutil.rmtree(old, ignore_errors=True)
    for partial in folder.glob(".*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    named = [path for path in folder.glob("*") if re.fullmatch(STEP, path.name)]
    return [quarantine(folder, int(path.name)) for path in named if not (path / MANIFEST).exists()]


def quarantine(folder: Path, step: int) -> Path:
    """Rename a damaged checkpoint, so that it is no longer read but can still be examined."""
    names = itertools.chain([f"{step}.damaged"], (f"{step}.damaged-{number}" for number in itertools.count(2)))
    target = next(folder / name for name in names if not (folder / name).exists())
    path_of(folder, step).rename(target)
    return target


def quarantined_steps(folder: Path) -> list[int]:
    """Return the steps of checkpoints that were found damaged."""
    found = (re.fullmatch(rf"({STEP})\.damaged(-\d+)?", path.name) for path in folder.glob("*"))
    return sorted(int(match[1]) for match in found if match)


def remove_after(folder: Path, step: int) -> None:
    """Delete the checkpoints of later steps, as when the run continues from `step` and its logs are cut back to it."""
    for later in steps(folder):
        if later > step:
            _remove(folder, later)
    sync(folder)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for step in steps(folder)[:-keep]:
        _remove(folder, step)


def _remove(folder: Path, step: int) -> None:
    """Delete a checkpoint; if the process is killed meanwhile, what is left does not look like a checkpoint."""
    partial = folder / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    path_of(folder, step).rename(partial)
    shutil.rmtree(partial, ignore_errors=True)


def _complete(folder: Path) -> dict[int, Path]:
    """Return the complete checkpoints by step. One that was being replaced counts while its successor is missing."""
    found = {}
    for pattern in (rf"\.({STEP})\.old", f"({STEP})"):
        for path in folder.glob("*"):
            if (match := re.fullmatch(pattern, path.name)) and (path / MANIFEST).exists():
                found[int(match[1])] = path
    return found


# --- Manifest ---


@dataclass(frozen=True)
class Manifest:
    """Checked values of a manifest, from which the agent is rebuilt and the run continues; see `Checkpoint`."""

    config: Config
    act_size: Annotated[int, Gt(0), Le(MAX_WIDTH)]
    obs_size: Annotated[int, Gt(0), Le(MAX_WIDTH)] | None = None
    obs_parts: Annotated[dict[str, ObsPart], Len(1, MAX_PARTS)] | None = None
    frames: Annotated[int, Gt(0), Le(MAX_FRAMES)] = 1
    clocks: dict[str, float] = field(default_factory=dict)
    pending: Annotated[tuple[NonNegative, ...], Len(0, MAX_PENDING)] = ()

    @property
    def obs_spec(self) -> ObsSpec:
        """What an observation is. Raises UserError if that is missing, or said twice."""
        if (self.obs_size is None) == (self.obs_parts is None):
            raise UserError("it needs one of obs_size and obs_parts")
        parts = {name: tuple(shape) for name, shape in (self.obs_parts or {}).items()}
        return ObsSpec.of(self.obs_size or parts).stacked(self.frames)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Manifest":
        """Check the values of a JSON file. Raises UserError if floq cannot have written one of them."""
        rest = dict(values)
        config = Config.from_json(convert("config", rest.pop("config", {}), dict[str, Any]))
        return from_table(cls, rest, "manifest", ("format", "step", DIGESTS), config=config)


def _described(obs_spec: ObsSpec) -> dict[str, Any]:
    """Return what an observation is, as `Manifest` has it."""
    one = obs_spec.stacked(1)
    size = {"obs_size": one.dim} if one.is_vector else {"obs_parts": one.to_json()}
    return size | ({"frames": obs_spec.frames} if obs_spec.frames > 1 else {})


def _digest(manifest: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a manifest, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _manifest(path: Path, remedy: str) -> dict[str, Any]:
    """Read the manifest of a checkpoint and check its format and its digest."""
    with _explain_damage(path / MANIFEST, remedy):
        manifest = read_json(path / MANIFEST)
        if (version := manifest["format"]) != FORMAT:
            raise UserError(f"{path} has checkpoint format {version!r}; this version of floq reads {FORMAT}")
        digests = dict(manifest[DIGESTS])
        written = digests.pop(MANIFEST)
        if _digest(manifest | {DIGESTS: digests}) != written:
            raise ValueError("its checksum differs")
        return manifest


# --- Arrays ---


def _tensors(
    path: Path, digests: Mapping[str, str], remedy: str, expected: Mapping[str, TensorSpec] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a file after checking its digest against the manifest's."""
    with _explain_damage(path, remedy):
        if path.is_file():  # reading a pipe might never end
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digests.get(path.name):
                    raise ValueError("its checksum differs")
        return read_tensors(path, expected)[0]


def _read(template: T, path: Path, digests: Mapping[str, str], remedy: str) -> T:
    """Read a tree with the template's structure and shapes."""
    expected = {name: (x.shape, str(x.dtype)) for name, x in jax.eval_shape(_stored, template).items()}
    leaves: dict[str, Any] = {n: jnp.asarray(x) for n, x in _tensors(path, digests, remedy, expected).items()}
    if "key" in leaves:
        leaves["key"] = jax.random.wrap_key_data(leaves["key"])
    return jax.tree_util.tree_map_with_path(lambda place, _: leaves[_name(place)], template)


def _stored(tree: Any) -> dict[str, Any]:
    """Return a tree's arrays by name, as they are stored: the random key as its raw words."""
    named = {_name(place): leaf for place, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: jax.random.key_data(x) if name == "key" else x for name, x in named.items()}


def _name(place: Any) -> str:
    """Return the name of an array by its place in a tree, such as `params.critic.velocity.entry.bias`."""
    return jax.tree_util.keystr(place, simple=True, separator=".")
