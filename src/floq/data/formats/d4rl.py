"""D4RL files (arXiv 2004.07219), read with h5py; the package d4rl is never imported."""

import re
from pathlib import Path

import numpy as np

from floq.data.arrays import OpenedDataset, from_arrays
from floq.data.formats.files import numeric_array, open_hdf5, unpacked_bytes
from floq.utils.errors import UserError
from floq.utils.untrusted import check_size

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def takes(path: Path) -> bool:
    """Return whether the name is that of an HDF5 file."""
    return path.suffix in (".hdf5", ".h5")


def read(path: Path) -> OpenedDataset:
    """Read a D4RL file. Rewards of antmaze files, 0 and 1 there, become -1 and 0, as is usual in published results.

    Raises:
        UserError: h5py is missing, or the file is missing or damaged, lacks an array or holds wrong data.
    """
    with open_hdf5(path) as file:
        there = set(file)  # names only: links are not followed
        if missing := [key for key in REQUIRED if key not in there]:
            raise UserError(f"{path} lacks {', '.join(missing)}: it is not a D4RL dataset")
        found = {key: numeric_array(file, key, path) for key in (*REQUIRED, *OPTIONAL) if key in there}
        check_size(sum(map(unpacked_bytes, found.values())), path)
        arrays = {key: np.asarray(x) for key, x in found.items()}
    for key in ("rewards", "terminals", "timeouts"):
        if key in arrays and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    if "antmaze" in re.sub("[-_]", "", path.name.lower()):  # also Ant_maze_u-maze_noisy_...
        arrays["rewards"] = arrays["rewards"] - 1.0
    return OpenedDataset(from_arrays(**arrays, source=str(path)), True, str(path))
