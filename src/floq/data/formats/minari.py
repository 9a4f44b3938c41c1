"""Minari datasets, by id from the local store or by path. Minari parses their spaces; the arrays that floq needs are
read here, and nothing that the metadata name is imported."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.data.formats.hdf5 import numeric_array, open_hdf5, unpacked_bytes
from floq.utils.errors import UserError
from floq.utils.untrusted import check_size, parse_json, read_json

METADATA, EPISODES = "data/metadata.json", "data/main_data.hdf5"
REFETCH = "fetch it again"
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


def read(folder: Path) -> Trajectories:
    """Read the trajectories of the Minari dataset in `folder`. Observations that are dictionaries or tuples are
    concatenated in the order of their space, and actions are mapped from its limits to [-1, 1], as
    `floq.envs.environments.make` does.

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
            return from_episodes((episode.read(low, high) for episode in arrays), str(folder))
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
        for space in described:
            _check_space(space)
        obs_space, act_space = map(deserialize_space, described)
    except Exception as error:  # wrong spaces raise nearly anything, Gymnasium's assertions among it
        raise UserError(f"{folder}: its spaces are damaged ({' '.join(str(error).split())}): {REFETCH}") from error
    return count, obs_space, act_space


def _check_space(space: Any) -> None:
    """Raise ValueError if Gymnasium would make large arrays of a short description, or a space is not numeric."""
    if not isinstance(space, dict):
        raise ValueError("a space is no JSON object")
    match space.get("type"):
        case "Dict":
            inner = space.get("subspaces", {}).values()
        case "Tuple":
            inner = space.get("subspaces", [])
        case "Box":
            sizes, inner = space.get("shape", []), []
            if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) > MAX_SPACE_SIZE:
                raise ValueError(f"a Box of shape {sizes}")
        case "Discrete":
            inner = []
            if type(space.get("n")) is not int or not 0 < space["n"] <= MAX_SPACE_SIZE:
                raise ValueError(f"a Discrete space of {space.get('n')}")
        case other:
            raise ValueError(f"{other!r} is no space that floq reads")
    for one in inner:
        _check_space(one)


class _Episode:
    """The arrays of one episode, found and checked but not read; `size` is the bytes they unpack to."""

    def __init__(self, group: Any, obs_space: Any, act_space: Any, folder: Path):
        self._obs_space, self._folder = obs_space, folder
        self._observations = self._find(group, "observations", obs_space)
        self._others = {key: numeric_array(group, key, folder) for key in ("actions", "rewards", "terminations")}
        self.size += sum(map(unpacked_bytes, self._others.values()))

    size = 0

    def _find(self, group: Any, key: str, space: Any) -> Any:
        """Return the arrays of a space: one, or a dictionary or tuple of those of its parts."""
        from gymnasium import spaces

        if isinstance(space, spaces.Dict):
            within = _subgroup(group, key, self._folder)
            return {name: self._find(within, name, part) for name, part in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            within = _subgroup(group, key, self._folder)
            return tuple(self._find(within, f"_index_{i}", part) for i, part in enumerate(space.spaces))
        found = numeric_array(group, key, self._folder)
        self.size += 4 * int(space.n) * found.size if isinstance(space, spaces.Discrete) else unpacked_bytes(found)
        return found

    def read(self, low: np.ndarray, high: np.ndarray) -> Mapping[str, Any]:
        """Read the arrays, with actions mapped from [low, high] to [-1, 1]."""
        actions, rewards, terminations = (array[()] for array in self._others.values())
        if not (low == -1).all() or not (high == 1).all():
            if actions.ndim != 2 or actions.shape[1:] != low.shape:
                raise UserError(f"{self._folder}: actions have the shape {actions.shape}, their space {low.shape}")
            actions = 2 * (actions - low) / (high - low) - 1
        observations = _flat(self._obs_space, _read(self._observations), self._folder)
        return {
            "observations": observations,
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


def _read(arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: _read(part) for name, part in arrays.items()}
    return tuple(map(_read, arrays)) if isinstance(arrays, tuple) else np.asarray(arrays)


def _action_limits(space: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of the actions; -1 and 1 where the space does not bound them, which leaves them unchanged."""
    from gymnasium.spaces import Box

    if not (isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
        raise UserError(f"{folder}: floq needs a vector of continuous actions, this dataset has {space}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)


def _flat(space: Any, observations: Any, source: object = "the dataset") -> np.ndarray:
    """Return observations as (rows, size), in the order in which Gymnasium flattens their space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return _concatenate([_flat(part, observations[key], source) for key, part in space.spaces.items()], source)
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observations, strict=True)
        return _concatenate([_flat(part, values, source) for part, values in parts], source)
    array = np.asarray(observations)
    if array.ndim == 0:
        raise UserError(f"{source}: observations are a single number")
    if isinstance(space, spaces.Discrete):
        places = array.astype(int).ravel() - int(space.start)
        if array.ndim != 1 or ((places < 0) | (places >= space.n)).any():
            raise UserError(f"{source}: observations are not within their space, {space}")
        return (places[:, None] == np.arange(int(space.n))).astype(np.float32)
    return array.reshape(len(array), math.prod(array.shape[1:]))


def _concatenate(parts: list[np.ndarray], source: object) -> np.ndarray:
    if len({len(part) for part in parts}) != 1:
        raise UserError(f"{source}: the parts of an observation are not equally long")
    return np.concatenate(parts, axis=1)
