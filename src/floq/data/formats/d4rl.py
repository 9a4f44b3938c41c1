"""D4RL files (arXiv 2004.07219), read with h5py; the package d4rl is never imported."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import OBSERVATIONS, OTHER_NAMES, OpenedDataset, concatenate, from_arrays, standard_names
from floq.data.formats.files import (
    data_files,
    gathered,
    is_group,
    nbytes,
    numeric_array,
    open_hdf5,
    subgroup,
)
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.utils.errors import UserError
from floq.utils.untrusted import check_size

SUFFIXES = (".hdf5", ".h5")
OPTIONS = ()
REQUIRED = ("observations", "actions", "rewards", "terminals")
KEYS = (*REQUIRED, "timeouts", "next_observations")
SCORES = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
}
"""Returns of a random and of an expert policy, which stand for the scores 0 and 100 (`infos.py` of D4RL)."""


def takes(path: Path) -> bool:
    """Return whether the name is that of an HDF5 file, or of a folder with some."""
    return bool(data_files(path, SUFFIXES))


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read a D4RL file, or a folder of them in the order of their names. Rewards of antmaze files, 0 and 1 there,
    become -1 and 0, as is usual in published results.

    Raises:
        UserError: h5py is missing, or a file is missing or damaged, lacks an array or holds wrong data.
    """
    parts, files, held = [], data_files(path, SUFFIXES), 0
    for file in files:
        arrays = standard_names(_arrays(file, (*KEYS, *OTHER_NAMES), held), str(file), "terminals")
        if missing := [key for key in REQUIRED if key not in arrays]:
            raise UserError(f"{file} lacks {', '.join(missing)}: it is not a D4RL dataset")
        arrays = {key: x for key, x in arrays.items() if key in KEYS}
        held += nbytes(arrays)
        if "antmaze" in re.sub("[-_]", "", file.name.lower()):  # also Ant_maze_u-maze_noisy_...
            arrays["rewards"] = arrays["rewards"] - 1.0
        parts.append(from_arrays(**arrays, source=str(file), any_actions=options.changes_actions))
    return OpenedDataset(concatenate(parts, [file.name for file in files], str(path)), True, str(path))


def _arrays(path: Path, keys: Sequence[str], held: int) -> dict[str, Any]:
    """Read those arrays of a file that it has, if they fit into memory beside the bytes `held`."""
    with open_hdf5(path) as file:
        there = set(file)  # names only: links are not followed
        found: dict[str, Any] = {}
        for key in keys:
            if key in OBSERVATIONS and is_group(file, key):
                found |= _parts(file, key, path)
            elif key in there:
                found[key] = numeric_array(file, key, path)
        check_size(held + sum(x.nbytes for x in found.values()), path)
        return gathered({key: np.asarray(x) for key, x in found.items()})


def _parts(group: Any, name: str, path: Path, prefix: str = "") -> dict[str, Any]:
    """Return the arrays within a group and its own groups, by the names that lead to them."""
    here, inner = f"{prefix}{name}", subgroup(group, name, path)
    found: dict[str, Any] = {}
    for part in sorted(inner):
        if is_group(inner, part):
            found |= _parts(inner, part, path, f"{here}/")
        else:
            found[f"{here}/{part}"] = numeric_array(inner, part, f"{path}: {here}")
    return found


def score_range(env_name: str) -> tuple[float, float] | None:
    """Return the returns that stand for the scores 0 and 100 in an environment of D4RL or Gymnasium's version of it,
    such as Hopper-v5 or AdroitHandDoor-v1; None if D4RL has none."""
    return SCORES.get(re.sub(r"^adroithand|(sparse)?-v\d+$", "", env_name.rpartition("/")[2].lower()))
