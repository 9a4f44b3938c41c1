"""npz files: one row per state (OGBench's layout), one row per transition, or a folder with one episode a file."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import (
    OBSERVATIONS,
    OTHER_NAMES,
    OpenedDataset,
    Trajectories,
    check_rows,
    concatenate,
    from_arrays,
    from_episodes,
    standard_names,
    to_array,
)
from floq.data.formats.files import data_files, nbytes, open_npz
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.utils.errors import UserError

ROW_KEYS = ("observations", "actions", "terminals")
STATE_KEYS = ("qpos", "button_states")  # OGBench's tasks compute rewards from these; not every dataset has both
REWARD_KEYS = ("rewards", "masks")  # of files that `floq data convert` writes; the benchmark's own have none
FLAT_KEYS = ("timeouts", "next_observations")  # of files with a row for each transition
PARTS_KEY = "observation_parts"  # the names of what the observations consist of
KEYS = (*ROW_KEYS, *REWARD_KEYS, *FLAT_KEYS, *OTHER_NAMES)
SUFFIXES = (".npz",)
OPTIONS = ()


def takes(path: Path) -> bool:
    """Return whether the name is that of an npz file, or of a folder with some."""
    return bool(data_files(path, SUFFIXES))


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read an npz file in OGBench's layout or with flat arrays as for `from_arrays`, or a folder of episodes as for
    `from_episodes`, or of flat arrays, in the order of their names. Raises UserError if it is missing, damaged,
    incomplete or wrong."""
    any_actions = options.changes_actions
    if path.is_dir():
        return _read_folder(path, any_actions)
    arrays, source = open_npz(path, (*KEYS, *STATE_KEYS, PARTS_KEY), with_parts=OBSERVATIONS), str(path)
    parts = arrays.pop(PARTS_KEY, np.array([], str))
    if parts.ndim != 1 or parts.dtype.kind != "U":
        raise UserError(f"{path}: {PARTS_KEY} is no list of names, as `floq data convert` writes it: take it out")
    names = tuple(map(str, parts))
    arrays = {key: to_array(x, key, source) for key, x in standard_names(arrays, source, "terminals").items()}
    if "rewards" in arrays and ("masks" not in arrays or not arrays.keys().isdisjoint(FLAT_KEYS)):
        return OpenedDataset(_from_flat(arrays, source, any_actions), True, source, path, names)
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


def _from_flat(arrays: Mapping[str, Any], source: str, any_actions: bool) -> Trajectories:
    """Convert arrays with a row for each transition. If there are `masks`, they mark true terminations, and `terminals`
    every end of a trajectory, as in the arrays that OGBench's loader returns."""
    if missing := [key for key in ROW_KEYS if key not in arrays]:
        raise UserError(f"{source} has rewards but lacks {', '.join(missing)}: see floq.Dataset.from_arrays")
    flat = {key: arrays[key] for key in (*ROW_KEYS, "rewards", *FLAT_KEYS) if key in arrays}
    if "masks" in arrays:
        flat |= {"terminals": arrays["masks"] == 0, "timeouts": arrays["terminals"]}
    return from_arrays(**flat, source=source, any_actions=any_actions)


def _read_folder(folder: Path, any_actions: bool) -> OpenedDataset:
    """Read the files of a folder, all of which together, pixels left out, must keep the limit for one file. One with a
    row for each transition that says where episodes are cut may hold several; any other is one episode."""
    files = data_files(folder, SUFFIXES)

    def parts() -> Iterator[Trajectories]:
        held = 0
        for file in files:
            arrays = open_npz(file, KEYS, "repair it, or take it out of the folder", held, OBSERVATIONS)
            held += nbytes(arrays)
            source = f"{folder}, {file.name}"
            if _cuts_inside(standard_names(arrays, source)):
                yield _from_flat(standard_names(arrays, source, "terminals"), source, any_actions)
            else:
                yield from_episodes([arrays], str(folder), [file.name], any_actions)

    return OpenedDataset(concatenate(parts(), [file.name for file in files], str(folder)), True, str(folder))


def _cuts_inside(arrays: Mapping[str, Any]) -> bool:
    """Return whether arrays with a row for each transition say that an episode is cut off before the last row."""
    cut, obs = arrays.get("timeouts", np.zeros(1)), arrays.get("observations", np.zeros(0))
    if isinstance(obs, Mapping):
        obs = next(iter(obs.values()))
    return cut.shape[:1] == obs.shape[:1] and bool(cut[:-1].any())
