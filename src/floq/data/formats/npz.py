"""npz files: one row per state (OGBench's layout), one row per transition, or a folder with one episode a file."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from floq.data.arrays import (
    EPISODE_KEYS,
    TERMINATION_ALIASES,
    OpenedDataset,
    Trajectories,
    check_rows,
    from_arrays,
    from_episodes,
)
from floq.data.formats.files import open_npz
from floq.utils.errors import UserError

ROW_KEYS = ("observations", "actions", "terminals")
STATE_KEYS = ("qpos", "button_states")  # OGBench's tasks compute rewards from these; not every dataset has both
REWARD_KEYS = ("rewards", "masks")  # of files that `floq data convert` writes; the benchmark's own have none
FLAT_KEYS = ("timeouts", "next_observations")  # of files with a row for each transition
PARTS_KEY = "observation_parts"  # the names of what the observations consist of
KEYS = (*ROW_KEYS, *STATE_KEYS, *REWARD_KEYS, *FLAT_KEYS, PARTS_KEY)


def takes(path: Path) -> bool:
    """Return whether the name is that of an npz file, or of a folder."""
    return path.suffix == ".npz" or os.path.isdir(path)


def read(path: Path) -> OpenedDataset:
    """Read an npz file in OGBench's layout or with flat arrays as for `from_arrays`, or a folder of episodes as for
    `from_episodes`, in the order of their names. Raises UserError if it is missing, damaged, incomplete or wrong."""
    if os.path.isdir(path):
        return _read_folder(path)
    arrays, source = open_npz(path, KEYS), str(path)
    parts = arrays.pop(PARTS_KEY, np.array([], str))
    if parts.ndim != 1 or parts.dtype.kind != "U":
        raise UserError(f"{path}: {PARTS_KEY} is no list of names, as `floq data convert` writes it: take it out")
    names = tuple(map(str, parts))
    if "rewards" in arrays and ("masks" not in arrays or not arrays.keys().isdisjoint(FLAT_KEYS)):
        return OpenedDataset(_from_flat(arrays, source), True, source, path, names)
    if missing := [key for key in ROW_KEYS if key not in arrays]:
        raise UserError(f"{source} lacks {', '.join(missing)}: it is not an OGBench dataset")
    check_rows(arrays, source)
    has_rewards = arrays.keys() >= set(REWARD_KEYS)
    ends = arrays["terminals"].astype(bool)
    ends[-1:] = True
    unknown = {"rewards": np.zeros(len(ends), np.float32), "masks": np.ones(len(ends), np.float32)}
    rewards, masks = ((arrays if has_rewards else unknown)[key] for key in REWARD_KEYS)
    data = Trajectories(arrays["observations"], arrays["actions"], rewards, masks, ends)
    state = {key: arrays[key] for key in STATE_KEYS if key in arrays}
    return OpenedDataset(data, has_rewards, source, path, names, state=state)


def _from_flat(arrays: dict[str, np.ndarray], source: str) -> Trajectories:
    """Convert arrays with a row for each transition. If there are `masks`, they mark true terminations, and `terminals`
    every end of a trajectory, as in the arrays that OGBench's loader returns."""
    if missing := [key for key in ROW_KEYS if key not in arrays]:
        raise UserError(f"{source} has rewards but lacks {', '.join(missing)}: see floq.Dataset.from_arrays")
    flat = {key: arrays[key] for key in (*ROW_KEYS, "rewards", *FLAT_KEYS) if key in arrays}
    if "masks" in arrays:
        flat |= {"terminals": arrays["masks"] == 0, "timeouts": arrays["terminals"]}
    return from_arrays(**flat, source=source)


def _read_folder(folder: Path) -> OpenedDataset:
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise UserError(f"{folder} holds no .npz files")
    episodes = from_episodes(_open_all(files), str(folder), [file.name for file in files])
    return OpenedDataset(episodes, True, str(folder))


def _open_all(files: Sequence[Path]) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of one file after another; all of them together must keep the limit for one file."""
    held, remedy = 0, "repair it, or take it out of the folder"
    for file in files:
        arrays = open_npz(file, (*EPISODE_KEYS, *TERMINATION_ALIASES), remedy, held)
        held += sum(array.nbytes for array in arrays.values())
        yield arrays
