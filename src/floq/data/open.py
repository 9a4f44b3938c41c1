"""Open any dataset by its name, path or id, without an environment to train in."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from floq import envs
from floq.data import d4rl, minari, ogbench
from floq.data.arrays import Trajectories, read_folder
from floq.errors import UserError
from floq.folders import user_path


class Opened(NamedTuple):
    """A dataset and whether its rewards and masks mean something; an OGBench file without a task has none."""

    data: Trajectories
    has_rewards: bool
    source: str


def open_dataset(name: str, dataset_dir: str) -> Opened:
    """Read a dataset from wherever its name points.

    Args:
        name: an OGBench dataset (`cube-single-play-v0`) or task (`cube-single-play-singletask-task2-v0`: with that
            task's rewards) in `dataset_dir`; the path of an OGBench npz, of a D4RL file (.hdf5, .h5), of a folder with
            one npz per episode or of a Minari dataset; or a Minari id.
        dataset_dir: where OGBench's files are.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    path = user_path(name)
    if path.suffix in (".hdf5", ".h5"):
        return Opened(d4rl.read(path), True, str(path))
    if path.suffix == ".npz":
        return Opened(_unlabelled(path), False, str(path))
    if os.path.isdir(path) and not os.path.isdir(path / "data"):
        return Opened(read_folder(path), True, str(path))
    if envs.is_ogbench(name) and not os.path.isdir(path):
        file = user_path(dataset_dir) / f"{envs.dataset_name(name)}.npz"
        if not os.path.exists(file):
            raise UserError(
                f"{file} is missing: collect it with `floq data collect {envs.dataset_name(name)}`, or fetch it"
            )
        if not envs.is_singletask(name):
            return Opened(_unlabelled(file), False, str(file))
        envs.check_task(name)
        return Opened(ogbench.read_task(file, name, envs.make(name)), True, f"{file}, rewards of {name}")
    return Opened(minari.read(name), True, name)


def _unlabelled(path: Path) -> Trajectories:
    rows = ogbench.read_rows(path)
    ends = rows["terminals"].astype(bool)
    ends[-1:] = True
    return Trajectories(rows["observations"], rows["actions"], np.zeros(len(ends)), np.ones(len(ends)), ends)
