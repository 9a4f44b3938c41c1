"""robomimic's HDF5 files (arXiv 2108.03298), and those of benchmarks that share their layout: a group for each
demonstration, `data/demo_N/{obs,next_obs,actions,rewards,dones}`. Read with h5py; robomimic is never imported."""

import contextlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import OpenedDataset, bounds, concatenate, from_episodes
from floq.data.formats.files import (
    check_episodes,
    data_files,
    numeric_array,
    open_hdf5,
    subgroup,
    text_array,
)
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.utils.errors import UserError, nearest

SUFFIXES = (".hdf5", ".h5")
OPTIONS = ("obs_keys",)
KEYS = {"actions": "actions", "rewards": "rewards", "dones": "terminations"}  # and what floq calls them


def takes(path: Path) -> bool:
    """Return whether a file, or the first of a folder, holds demonstrations."""
    with contextlib.suppress(UserError):  # damage is for a reader to explain
        for file in data_files(path, SUFFIXES)[:1]:
            with open_hdf5(file) as opened:
                return "data" in opened
    return False


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read a robomimic file, or a folder of them in the order of their names. `dones` are true terminations, as they
    are for robomimic's own algorithms. Demonstrations of the mask `valid`, where there is one, are held out, and only
    those of the mask `train` are beside them.

    Raises:
        UserError: h5py is missing, or a file is missing or damaged, lacks an array or holds wrong data.
    """
    files, parts, held_out, size = data_files(path, SUFFIXES), [], [], 0
    obs_keys: tuple[str, ...] = options.obs_keys
    for file in files:
        with open_hdf5(file) as opened:
            names, valid = _demonstrations(opened, file)
            data = subgroup(opened, "data", file)
            obs_keys = obs_keys or _state_keys(subgroup(data, names[0], file), file)
            found = [_find_arrays(subgroup(data, name, file), obs_keys, file) for name in names]
            size = check_episodes([[(x.nbytes, x.ndim == 4) for x in one.values()] for one in found], file, size)
            episodes = (_read_episode(arrays, obs_keys) for arrays in found)
            part = from_episodes(episodes, str(file), names, options.changes_actions)
        first, last = bounds(part)
        parts.append(part)
        held_out.append(np.repeat([name in valid for name in names], last - first + 1))
    rows = np.concatenate(held_out)
    joined = concatenate(parts, [file.name for file in files], str(path))
    return OpenedDataset(
        joined,
        True,
        str(path),
        parts=obs_keys if joined.dims[0].is_vector else (),
        held_out=rows if rows.any() else None,
    )


def _demonstrations(file: Any, path: Path) -> tuple[list[str], set[str]]:
    """Return the names of the demonstrations that are used, in the order of their numbers, and those held out."""
    data = subgroup(file, "data", path)
    names = sorted((name for name in data if re.fullmatch(r"demo_\d+", name)), key=lambda name: int(name[5:]))
    masks = {}
    if "mask" in file:
        group = subgroup(file, "mask", path)
        for which in {"train", "valid"} & set(group):
            masks[which] = set(text_array(group, which, path))
    if masks.keys() == {"train", "valid"}:
        names = [name for name in names if name in masks["train"] | masks["valid"]]
        if not masks["train"] - masks["valid"]:
            raise UserError(f"{path}: its mask `valid` holds all that `train` does: nothing is left to train on")
    if not names:
        raise UserError(f"{path} has no demonstration, data/demo_0 and so on: it is no robomimic dataset")
    return names, masks.get("valid", set()) if "train" in masks else set()


def _state_keys(demonstration: Any, path: Path) -> tuple[str, ...]:
    """Return the observations of a demonstration, which must all be vectors or images."""
    group = subgroup(demonstration, "obs", path, "make it with robomimic's dataset_states_to_obs")
    keys = tuple(sorted(group))
    known = [key for key in keys if _is_known(numeric_array(group, key, path))]
    if others := [key for key in keys if key not in known]:
        raise UserError(
            f"{path}: obs/{others[0]} has the shape {group[others[0]].shape}, floq reads vectors, and images of uint8 "
            f"and shape (H, W, C): name those to use, as in --obs_keys {' '.join(known)}"
        )
    return keys


def _find_arrays(demonstration: Any, obs_keys: Sequence[str], path: Path) -> dict[str, Any]:
    """Find and check the arrays of a demonstration, without reading them."""
    where = f"{path}: {demonstration.name}"
    obs = subgroup(demonstration, "obs", path, "make it with robomimic's dataset_states_to_obs")
    if missing := [key for key in obs_keys if key not in obs]:
        raise UserError(f"{where}/obs lacks {missing[0]}{nearest(missing[0], obs)}: it has {', '.join(sorted(obs))}")
    if missing := [key for key in KEYS if key not in demonstration]:
        raise UserError(f"{where} lacks {', '.join(missing)}: make it with robomimic's dataset_states_to_obs")
    found = {f"obs/{key}": numeric_array(obs, key, f"{where}/obs") for key in obs_keys}
    if "next_obs" in demonstration and set(obs_keys) <= set(after := subgroup(demonstration, "next_obs", path)):
        found |= {f"next_obs/{key}": numeric_array(after, key, f"{where}/next_obs") for key in obs_keys}
    found |= {key: numeric_array(demonstration, key, where) for key in KEYS}
    length = len(found["actions"]) if found["actions"].ndim else 0
    for key, x in found.items():
        if "obs/" in key and (not _is_known(x) or len(x) != length):
            raise UserError(
                f"{where}/{key} has the shape {x.shape} for {length} actions: floq reads vectors, and images of uint8"
            )
    return found


def _is_known(array: Any) -> bool:
    """Return whether an array holds vectors, or images of uint8 with their channels last."""
    return array.ndim in (1, 2) or (array.ndim == 4 and array.dtype == np.uint8)


def _read_episode(arrays: dict[str, Any], obs_keys: Sequence[str]) -> dict[str, Any]:
    """Read a demonstration: its observations laid end to end, or by name if there are images, and what came after the
    last action if it is known."""
    parts = {key: arrays[f"obs/{key}"][()] for key in obs_keys}
    if f"next_obs/{obs_keys[0]}" in arrays and len(parts[obs_keys[0]]):
        parts = {key: np.concatenate([x, arrays[f"next_obs/{key}"][-1:]]) for key, x in parts.items()}
    rows = lambda x: x.reshape(len(x), -1)  # noqa: E731
    if any(x.ndim == 4 for x in parts.values()):
        obs: Any = parts
    else:
        obs = np.concatenate([rows(parts[key]) for key in obs_keys], axis=1)
    return {name: arrays[key][()] for key, name in KEYS.items()} | {"observations": obs}
