"""Minari datasets, by id from the local store or by path. Minari parses their spaces; the arrays that floq needs are
read here, and nothing that the metadata name is imported."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, flatdim

from floq.data.arrays import OpenedDataset, from_episodes
from floq.data.formats.files import (
    check_episodes,
    decode_images,
    jpeg_array,
    numeric_array,
    open_hdf5,
    subgroup,
)
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.envs import spaces
from floq.utils.errors import UserError, in_one_line
from floq.utils.untrusted import parse_json, read_json

METADATA, EPISODES = "data/metadata.json", "data/main_data.hdf5"
KEYS = ("actions", "rewards", "terminations")
REFETCH = "fetch it again"
SUFFIXES = OPTIONS = ()
SIZES = {"Box": "shape", "Discrete": "n", "MultiBinary": "n", "MultiDiscrete": "nvec"}  # spaces, and what sizes them
MAX_SPACE_SIZE = 2**18  # numbers in a part of an observation, such as an image, or in an action


def takes(path: Path) -> bool:
    """Return whether a folder holds a Minari dataset."""
    return (path / METADATA).is_file()


def local_folder(name: str) -> Path:
    """Return the folder of a dataset in the local store, such as `mujoco/hopper/medium-v0`. Raises UserError if there
    is none, or no Minari."""
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(
            f"{name} is not a file, a folder or an OGBench dataset; to read it as a Minari dataset, pip install "
            "'floq[minari]'"
        ) from error
    folder = get_dataset_path(name)
    if not takes(folder):
        raise UserError(
            f"{name}: no such Minari dataset in the local store, nor a file or folder; fetch it with "
            f"`minari download {name}`"
        )
    return folder


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read the Minari dataset in a folder. The parts of its observations are laid end to end, or kept apart if there
    are images, stored as JPEG or not; and actions are mapped from their limits to [-1, 1]; as
    `floq.envs.environments.make` does.

    Raises:
        UserError: Minari is missing, or the dataset is damaged, asks for too much or holds wrong data.
    """
    count, obs_space, act_space, score_range = _metadata(path)
    low, high = _action_limits(act_space, path)
    with open_hdf5(path / EPISODES) as file:
        groups = [subgroup(file, f"episode_{number}", path) for number in range(min(count, len(file)))]
        episodes = [_find_arrays(group, obs_space, act_space, path) for group in groups]
        check_episodes([_unpacked_bytes(arrays, obs_space, path) for arrays in episodes], path)
        read = (_read_episode(arrays, obs_space, (low, high), path) for arrays in episodes)
        data = from_episodes(read, str(path), any_actions=options.changes_actions)
    parts = spaces.part_names(obs_space, path)
    return OpenedDataset(data, True, str(path), parts=parts, scaled=True, score_range=score_range)


def _metadata(folder: Path) -> tuple[int, Any, Any, tuple[float, float] | None]:
    """Return the number of episodes, the spaces of observations and actions, and the returns that stand for the scores
    0 and 100, if the dataset says so. A space must not be missing: Minari would make the environment that the metadata
    name, and so call any function that an untrusted file names."""
    try:
        from minari.serialization import deserialize_space
    except ImportError as error:
        raise UserError(f"{folder}: reading Minari datasets needs Minari: pip install 'floq[minari]'") from error
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
        raise UserError(f"{folder}: its spaces are damaged ({in_one_line(error)}): {REFETCH}") from error
    scores: list[Any] = [metadata.get(f"ref_{end}_score") for end in ("min", "max")]
    known = all(type(score) in (int, float) for score in scores) and scores[0] < scores[1]
    return count, spaces.ordered(obs_space), act_space, (float(scores[0]), float(scores[1])) if known else None


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


def _find_arrays(group: Any, obs_space: Any, act_space: Any, folder: Path) -> dict[Any, Any]:
    """Find and check the arrays of an episode, without reading them: parts of observations by paths, others by name."""
    arrays: dict[Any, Any] = {}
    for path, space in spaces.leaves(obs_space, folder):
        # A part is named as its space.
        *within, name = ["observations", *(f"_index_{x}" if isinstance(x, int) else x for x in path)]
        where = f"{folder}: {spaces.describe(path)}"
        parent = functools.reduce(lambda found, inner: subgroup(found, inner, folder), within, group)
        if spaces.is_image(space) and (jpegs := jpeg_array(parent, name, where)) is not None:
            arrays[path] = jpegs
            continue
        arrays[path] = found = numeric_array(parent, name, where)
        spaces.check_array(space, found.shape, found.dtype, where)
    arrays |= {key: numeric_array(group, key, folder) for key in KEYS}
    spaces.check_array(act_space, arrays["actions"].shape, arrays["actions"].dtype, f"{folder}: actions")
    return arrays


def _unpacked_bytes(arrays: Mapping[Any, Any], obs_space: Any, folder: Path) -> list[tuple[int, bool]]:
    """Return the bytes that each array of an episode takes once it is read and choices are one-hot, and whether it has
    pixels."""
    leaves = list(spaces.leaves(obs_space, folder))
    images = {path for path, space in leaves if spaces.is_image(space)}
    size = lambda space: math.prod(space.shape) if spaces.is_image(space) else 4 * flatdim(space)  # noqa: E731
    hot = {path: len(arrays[path]) * size(space) for path, space in leaves}
    return [(max(array.nbytes, hot.get(key, 0)), key in images) for key, array in arrays.items()]


def _read_episode(
    arrays: Mapping[Any, Any], obs_space: Any, limits: tuple[np.ndarray, np.ndarray], folder: Path
) -> dict[str, np.ndarray]:
    """Read the arrays of an episode, with actions mapped from their limits to [-1, 1]."""
    read = {key: array[()] for key, array in arrays.items() if array.dtype != object}
    for path, space in spaces.leaves(obs_space, folder):
        if path not in read:  # one after another: a file may name the same bytes many times
            contents = (np.asarray(arrays[path][row], np.uint8).tobytes() for row in range(len(arrays[path])))
            where = f"{folder}: {spaces.describe(path)}"
            read[path] = decode_images(contents, len(arrays[path]), where, space.shape)
    if not (limits[0] == -1).all() or not (limits[1] == 1).all():
        read["actions"] = spaces.box_to_unit(read["actions"], *limits)
    return {key: read[key] for key in KEYS} | {"observations": spaces.flatten(obs_space, read, folder)}


def _action_limits(space: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the limits of the actions; -1 and 1 where the space does not bound them, which leaves them unchanged."""
    if not (isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
        raise UserError(f"{folder}: floq needs a vector of continuous actions, this dataset has {space}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
