"""Open any dataset by its name, path or id."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq import envs
from floq.data import d4rl, minari, ogbench
from floq.data.arrays import HELD_OUT, Trajectories, from_arrays, hold_out, read_folder
from floq.data.files import open_npz
from floq.data.transitions import Splits
from floq.data.validate import check_actions, check_widths
from floq.errors import UserError
from floq.folders import user_path

FLAT_KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")


class Opened(NamedTuple):
    """A dataset, whether its rewards and masks mean something (an OGBench file without a task has none), where it comes
    from in words, and its file if it is an npz."""

    data: Trajectories
    has_rewards: bool
    source: str
    file: Path | None = None


def open_dataset(
    name: str, dataset_dir: str, task: str | None = None, label_timing: str = "pre", fetch: ogbench.Fetch | None = None
) -> Opened:
    """Read a dataset from wherever its name points.

    Args:
        name: an OGBench dataset (`cube-single-play-v0`) or task (`cube-single-play-singletask-task2-v0`: with that
            task's rewards) in `dataset_dir`; the path of an npz in OGBench's layout or with flat arrays as for
            `from_arrays`, of a D4RL file (.hdf5, .h5), of a folder with one npz per episode or of a Minari dataset; or
            a Minari id.
        dataset_dir: where OGBench's files are.
        task: the OGBench single task whose rewards a file of OGBench gets that has none.
        label_timing: see `ogbench.load`.
        fetch: brings an OGBench dataset that is missing; by default that is an error.

    Raises:
        UserError: nothing is there, or it cannot be read.
    """
    path = user_path(name)
    if path.suffix in (".hdf5", ".h5"):
        return Opened(d4rl.read(path), True, str(path))
    if path.suffix == ".npz":
        return _open_npz(path, task, label_timing)
    if os.path.isdir(path) and not os.path.isdir(path / "data"):
        return Opened(read_folder(path), True, str(path))
    if envs.is_ogbench(name) and not os.path.isdir(path):
        if envs.is_singletask(name):
            envs.check_task(name)
            task = name
        file, _ = ogbench.find(envs.dataset_name(name), user_path(dataset_dir), fetch or _complain)
        return _open_npz(file, task, label_timing)
    return Opened(minari.read(name), True, name)


def open_splits(
    name: str,
    dataset_dir: str,
    env_name: str | None = None,
    label_timing: str = "pre",
    fetch: ogbench.Fetch | None = None,
) -> Splits:
    """A dataset as a run trains on it. An npz `NAME.npz` is validated on `NAME-val.npz` if that lies beside it; of any
    other dataset, every twentieth episode is held out.

    Args:
        name, dataset_dir, label_timing, fetch: see `open_dataset`.
        env_name: the environment of the run, if it has one: it must fit the data, and an OGBench single task gives
            rewards to a file that has none.

    Raises:
        UserError: as `open_dataset`; or the data has no rewards, or is not that of the environment.
    """
    sizes = None if env_name is None else envs.sizes(envs.make(env_name))  # first, since a wrong name is found soonest
    task = env_name if env_name is not None and envs.is_singletask(env_name) else None
    opened = open_dataset(name, dataset_dir, task, label_timing, fetch)
    if not opened.has_rewards:
        raise UserError(
            f"{opened.source} has no rewards: name the task that gives them with --env_name, as in "
            "--env_name=cube-single-play-singletask-v0"
        )
    check_actions(opened.data.actions, opened.source)
    if sizes is not None:
        _check_fit(opened.data, sizes, opened.source, str(env_name))
    beside = _validation_file(opened.file)
    if beside is not None:
        task = name if envs.is_singletask(name) else task
        train, validation = opened.data, _open_npz(beside, task, label_timing).data
        held = f"validated on {beside.name}"
    else:
        train, validation = hold_out(opened.data, opened.source)
        held = f"every {HELD_OUT}th episode held out"
    return Splits.of(train, validation, f"{_origin(opened)}; {held}")


def given_splits(data: Trajectories, env_name: str | None = None) -> Splits:
    """Data that came from no file, as a run trains on it: every twentieth episode is held out.

    Raises:
        UserError: it is not that of the environment.
    """
    if env_name is not None:
        _check_fit(data, envs.sizes(envs.make(env_name)), "the given data", env_name)
    return Splits.of(*hold_out(data), provenance=f"given from Python; every {HELD_OUT}th episode held out")


def _check_fit(data: Trajectories, sizes: dict[str, int], source: str, env_name: str) -> None:
    """Raises UserError if an environment's observations or actions have another size than the data's."""
    check_widths({"observations": data.observations, "actions": data.actions}, sizes, source, env_name)


def _open_npz(path: Path, task: str | None, label_timing: str) -> Opened:
    """An npz in OGBench's layout, or one with flat arrays: that has rewards, but no masks."""
    arrays = open_npz(path, (*FLAT_KEYS, *ogbench.KEYS))
    if "rewards" in arrays and "masks" not in arrays:
        missing = [key for key in FLAT_KEYS[:4] if key not in arrays]
        if missing:
            raise UserError(f"{path} has rewards but lacks {', '.join(missing)}: see floq.Dataset.from_arrays")
        flat: dict[str, Any] = {key: arrays[key] for key in FLAT_KEYS if key in arrays}
        return Opened(from_arrays(**flat, source=str(path)), True, str(path), path)
    rows = ogbench.checked(arrays, str(path))
    if "masks" not in rows and task is not None:
        data = ogbench.label(rows, task, envs.make(task), label_timing, str(path))
        return Opened(data, True, f"{path}, rewards of {task}", path)
    own = "rewards" in rows
    ends = rows["terminals"].astype(bool)
    ends[-1:] = True
    zeros = np.zeros(len(ends), np.float32)
    labels = (rows["rewards"], rows["masks"]) if own else (zeros, 1 - zeros)
    return Opened(Trajectories(rows["observations"], rows["actions"], *labels, ends), own, str(path), path)


def _validation_file(train: Path | None) -> Path | None:
    if train is None or train.stem.endswith("-val"):
        return None
    beside = train.with_name(f"{train.stem}-val.npz")
    return beside if os.path.exists(beside) else None


def _origin(opened: Opened) -> str:
    if opened.file is not None and os.path.exists(opened.file.with_suffix(".json")):
        return ogbench.provenance(opened.file.stem, opened.file.parent)
    return opened.source


def _complain(name: str, directory: Path) -> None:
    raise UserError(f"{directory / name}.npz is missing: collect it with `floq data collect {name}`, or fetch it")
