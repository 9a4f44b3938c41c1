"""Minari datasets, by id from the local store or by path. Minari parses their spaces; the arrays that floq needs are
read here, and nothing that the metadata name is imported."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import flatdim

from floq.data.arrays import Trajectories, from_episodes
from floq.data.formats.hdf5 import numeric_array, open_hdf5, unpacked_bytes
from floq.envs import spaces
from floq.utils.errors import UserError
from floq.utils.untrusted import check_size, parse_json, read_json

METADATA, EPISODES = "data/metadata.json", "data/main_data.hdf5"
REFETCH = "fetch it again"
SIZES = {"Box": "shape", "Discrete": "n", "MultiBinary": "n", "MultiDiscrete": "nvec"}  # spaces, and what sizes them
MAX_SPACE_SIZE = 2**16  # numbers in an observation or an action; the largest of a benchmark with states has some 500


def is_dataset(folder: Path) -> bool:
    """Return whether a folder holds a Minari dataset."""
    return (folder / METADATA).is_file()


def local_folder(name: str) -> Path:
    """Return the folder of a dataset in the local store, such as `mujoco/hopper/medium-v0`.

    Raises:
        UserError: Minari is missing, or there is no such dataset.
    """
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(
            f"{name} is not a file, a folder or an OGBench dataset; to read it as a Minari dataset, pip install "
            "'floq[minari]'"
        ) from error
    folder = get_dataset_path(name)
    if not is_dataset(folder):
        raise UserError(
            f"{name}: no such Minari dataset in the local store, nor a file or folder; fetch it with "
            f"`minari download {name}`"
        )
    return folder


def read(folder: Path) -> tuple[Trajectories, tuple[str, ...]]:
    """Read the trajectories of the Minari dataset in `folder`, and the names of its observations' parts. Parts are laid
    end to end, and actions are mapped from their limits to [-1, 1], as `floq.envs.environments.make` does.

    Raises:
        UserError: Minari is missing, or the dataset is damaged, asks for too much or holds wrong data.
    """
    try:
        count, obs_space, act_space = _metadata(folder)
        low, high = _action_limits(act_space, folder)
        with open_hdf5(folder / EPISODES) as file:
            groups = [_subgroup(file, f"episode_{number}", folder) for number in range(min(count, len(file)))]
            arrays = [_Episode(group, obs_space, act_space, folder) for group in groups]
            check_size(sum(episode.size for episode in arrays), folder)
            data = from_episodes((episode.read(low, high) for episode in arrays), str(folder))
            return data, spaces.part_names(obs_space, folder)
    except ImportError as error:
        raise UserError(f"{folder}: reading Minari datasets needs Minari: pip install 'floq[minari]'") from error


def _metadata(folder: Path) -> tuple[int, Any, Any]:
    """Return the number of episodes, and the spaces of observations and actions. A space must not be missing: Minari
    would make the environment that the metadata name, and so call any function that an untrusted file names."""
    from minari.serialization import deserialize_space

    try:
        metadata = read_json(folder / METADATA)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / METADATA} cannot be read ({error}): {REFETCH}") from error
    written = [metadata.get(key) for key in ("observation_space", "action_space")]
    if not all(isinstance(space, str) for space in written):
        raise UserError(f"{folder}: its metadata lack the spaces of observations and actions, it is not read")
    if (form := metadata.get("data_format", "hdf5")) != "hdf5":
        raise UserError(f"{folder} is stored as {form!r}, floq reads Minari's hdf5: convert it, or download that")
    if type(count := metadata.get("total_episodes")) is not int or count < 1:
        raise UserError(f"{folder} says that it has {count!r} episodes: {REFETCH}")
    try:
        described = [parse_json(str(space), infinite=True) for space in written]
        for name, space in zip(("observations", "actions"), described, strict=True):
            _check_space(space, f"{folder}: {name}")
        obs_space, act_space = map(deserialize_space, described)
    except UserError:
        raise
    except Exception as error:  # wrong spaces raise nearly anything, Gymnasium's assertions among it
        raise UserError(f"{folder}: its spaces are damaged ({' '.join(str(error).split())}): {REFETCH}") from error
    return count, spaces.ordered(obs_space), act_space


def _check_space(space: Any, where: str) -> None:
    """Raise ValueError if Gymnasium would make large arrays of a short description, UserError if it is not numeric."""
    if not isinstance(space, dict):
        raise ValueError("a space is no JSON object")
    kind, parts = space.get("type"), space.get("subspaces", {})
    if kind in ("Dict", "Tuple"):
        for name, part in parts.items() if kind == "Dict" else enumerate(parts):
            _check_space(part, f"{where}/{name}")
        return
    if kind not in SIZES:
        raise UserError(f"{where} is of the space {kind!r}: {spaces.READ}")
    sizes: list[Any] = found if isinstance(found := space.get(SIZES[kind]), list) else [found]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"a {kind} of {sizes}")
    if (sum(sizes) if kind == "MultiDiscrete" else math.prod(sizes)) > MAX_SPACE_SIZE:
        raise UserError(f"{where} are a {kind} of sizes {sizes}, floq reads up to {MAX_SPACE_SIZE:,} numbers")


class _Episode:
    """The arrays of one episode, found and checked but not read; `size` is the bytes they unpack to."""

    def __init__(self, group: Any, obs_space: Any, act_space: Any, folder: Path):
        self._obs_space, self._folder, self.size = obs_space, folder, 0
        self._parts = {}
        for path, part in spaces.leaves(obs_space, folder):
            self._parts[path] = found = self._find(group, path, part)
            self.size += max(unpacked_bytes(found), 4 * len(found) * flatdim(part))  # choices become one-hot
        self._others = {key: numeric_array(group, key, folder) for key in ("actions", "rewards", "terminations")}
        actions = self._others["actions"]
        spaces.check_array(act_space, actions.shape, actions.dtype, f"{folder}: actions")
        self.size += sum(map(unpacked_bytes, self._others.values()))

    def _find(self, group: Any, path: spaces.PartPath, space: Any) -> Any:
        """Return the array of a part, which is named as its space."""
        *folders, name = ["observations", *(f"_index_{x}" if isinstance(x, int) else x for x in path)]
        for folder in folders:
            group = _subgroup(group, folder, self._folder)
        where = f"{self._folder}: {spaces.describe(path)}"
        found = numeric_array(group, name, where, spaces.picture_remedy(space))
        spaces.check_array(space, found.shape, found.dtype, where)
        return found

    def read(self, low: np.ndarray, high: np.ndarray) -> Mapping[str, Any]:
        """Read the arrays, with actions mapped from [low, high] to [-1, 1]."""
        actions, rewards, terminations = (array[()] for array in self._others.values())
        if not (low == -1).all() or not (high == 1).all():
            actions = spaces.box_to_unit(actions, low, high)
        return {
            "observations": spaces.flatten(self._obs_space, {p: x[()] for p, x in self._parts.items()}, self._folder),
            "actions": actions,
            "rewards": rewards,
            "terminations": terminations,
        }


def _subgroup(group: Any, name: str, folder: Path) -> Any:
    """Return the group of this name within another."""
    import h5py

    hard = isinstance(group.get(name, getlink=True), h5py.HardLink)
    if not hard or not isinstance(found := group[name], h5py.Group):
        raise UserError(f"{folder}: {group.name.rstrip('/')}/{name} is missing, or no group: {REFETCH}")
    return found


def _action_limits(space: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of the actions; -1 and 1 where the space does not bound them, which leaves them unchanged."""
    from gymnasium.spaces import Box

    if not (isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
        raise UserError(f"{folder}: floq needs a vector of continuous actions, this dataset has {space}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
