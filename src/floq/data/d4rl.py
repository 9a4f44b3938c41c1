"""Old D4RL files (arXiv 2004.07219), read with h5py; the package d4rl is never imported."""

from pathlib import Path

import numpy as np

from floq.data.arrays import Trajectories, from_arrays
from floq.errors import UserError

REQUIRED = ("observations", "actions", "rewards", "terminals")
OPTIONAL = ("timeouts", "next_observations")


def read(path: Path) -> Trajectories:
    """The trajectories of a D4RL HDF5 file.

    Rewards of antmaze files, 0 and 1 there, become -1 and 0, as everybody who reports results on them has it.

    Raises:
        UserError: h5py is missing, or the file is damaged, lacks an array or holds wrong data.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: reading HDF5 files needs h5py: pip install 'floq[d4rl]'") from error
    try:
        with h5py.File(path, "r") as file:
            missing = [key for key in REQUIRED if key not in file]
            if missing:
                raise UserError(f"{path} lacks {', '.join(missing)}: it is not a D4RL dataset")
            arrays = {key: np.asarray(file[key]) for key in (*REQUIRED, *OPTIONAL) if key in file}
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error}): fetch it again") from error
    for key in ("rewards", "terminals", "timeouts"):
        if key in arrays and arrays[key].ndim == 2 and arrays[key].shape[1] == 1:
            arrays[key] = arrays[key][:, 0]
    if "antmaze" in path.name:
        arrays["rewards"] = arrays["rewards"] - 1.0
    return from_arrays(**arrays, source=str(path))
