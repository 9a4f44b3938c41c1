"""Open any dataset by its name, path or id."""

import functools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq.data.arrays import Trajectories, from_arrays, hold_out, read_folder
from floq.data.checks import check_actions, check_widths
from floq.data.dataset import Splits
from floq.data.formats import d4rl, minari, ogbench
from floq.data.formats.convert import PARTS_KEY
from floq.data.formats.files import open_npz
from floq.envs import environments
from floq.envs.spaces import check_same_parts
from floq.utils.errors import UserError
from floq.utils.files import looks_like_path, user_path
from floq.utils.obs_spec import ObsSpec

FLAT_KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
IN_MEMORY = "given from Python"  # start of the provenance of data without a file


class OpenedDataset(NamedTuple):
    """A dataset; whether its rewards and masks are valid (not in an OGBench file without a task); a description of its
    source; its file if it is an npz; and the parts of its observations, where they have names."""

    data: Trajectories
    has_rewards: bool
    source: str
    file: Path | None = None
    parts: tuple[str, ...] = ()


class RewardTask:
    """An OGBench single task that gives rewards to files that have none. Its environment is made when first needed."""

    def __init__(self, name: str, label_timing: str = "pre"):
        environments.check_task(name)
        self.name, self._label_timing = name, label_timing

    @functools.cached_property
    def env(self) -> environments.SeededEnv:
        return environments.make(self.name)

    def label(self, rows: dict[str, np.ndarray], source: str) -> Trajectories:
        """Label the rows of an OGBench file with this task's rewards and masks."""
        return ogbench.label(rows, self.name, self.env, self._label_timing, source)


def open_dataset(
    name: str, dataset_dir: str, task: RewardTask | None = None, fetch: ogbench.Fetch | None = None
) -> OpenedDataset:
    """Read a dataset from a file, a folder or a local store, depending on its name.

    Args:
        name: an OGBench dataset (`cube-single-play-v0`) or task (`cube-single-play-singletask-task2-v0`: with that
            task's rewards) in `dataset_dir`; the path of an npz in OGBench's layout or with flat arrays as for
            `from_arrays`, of a D4RL file (.hdf5, .h5), of a folder with one npz per episode or of a Minari dataset; or
            a Minari id.
        dataset_dir: where OGBench's files are.
        task: gives rewards to a file of OGBench that has none; if `name` is a task, that does.
        fetch: fetches a missing OGBench dataset; by default that is an error.

    Raises:
        UserError: the dataset does not exist, or cannot be read.
    """
    path = user_path(name)
    if path.suffix in (".hdf5", ".h5"):
        return OpenedDataset(d4rl.read(path), True, str(path))
    if path.suffix == ".npz":
        return _open_npz(path, task)
    if minari.is_dataset(path):
        return _open_minari(path, str(path))
    if os.path.isdir(path):
        return OpenedDataset(read_folder(path), True, str(path))
    if looks_like_path(name) or os.path.exists(path):
        what = "is no .npz, .hdf5 or .h5 file" if os.path.exists(path) else "is not there"
        raise UserError(f"{path} {what}: give such a file, a folder of them, or a name")
    if environments.is_ogbench(name):
        if environments.is_singletask(name):
            task = task or RewardTask(name)
        file, _ = ogbench.find_files(environments.dataset_name(name), user_path(dataset_dir), fetch or _raise_missing)
        return _open_npz(file, task)
    return _open_minari(minari.local_folder(name), name)


def _open_minari(folder: Path, name: str) -> OpenedDataset:
    data, parts = minari.read(folder)
    return OpenedDataset(data, True, name, parts=parts)


def open_splits(
    name: str,
    dataset_dir: str,
    env_name: str | None = None,
    label_timing: str = "pre",
    fetch: ogbench.Fetch | None = None,
) -> Splits:
    """Open a dataset and split it. An npz `NAME.npz` is validated on `NAME-val.npz` in the same folder; of any
    other dataset a part is held out.

    Args:
        name: see `open_dataset`.
        dataset_dir: see `open_dataset`.
        env_name: the environment of the run, if it has one: it must fit the data, and an OGBench single task gives
            rewards to a file that has none.
        fetch: see `open_dataset`.
        label_timing: see `ogbench.load`.

    Raises:
        UserError: as `open_dataset`; or the data has no rewards, or is not that of the environment.
    """
    tasks = [n for n in (name, env_name) if n is not None and environments.is_singletask(n) and not looks_like_path(n)]
    if len(set(tasks)) > 1:
        raise UserError(
            f"--dataset={name} has the rewards of one task and --env_name={env_name} is another: give "
            f"--dataset={environments.dataset_name(name)}"
        )
    task = RewardTask(tasks[0], label_timing) if tasks else None
    # The environment before the data, since a wrong name is found sooner.
    env = None if env_name is None else task.env if task else environments.make(env_name)
    dims = env and environments.dims(env)
    opened = open_dataset(name, dataset_dir, task, fetch)
    _check(opened, dims, env_name)
    check_same_parts(opened.parts, env.parts if env else (), opened.source, env_name)
    val_file = _validation_file(opened.file)
    if val_file is not None:
        held_out = _open_npz(val_file, task)
        _check(held_out, opened.data.dims, opened.source)
        check_same_parts(held_out.parts, opened.parts, held_out.source, opened.source)
        train, validation, how = opened.data, held_out.data, f"validated on {val_file.name}"
    else:
        train, validation, how = hold_out(opened.data, opened.source)
    return Splits.of(train, validation, f"{_origin(opened, task)}; {how}")._replace(parts=opened.parts)


def given_splits(data: Trajectories, env_name: str | None = None) -> Splits:
    """Split data given from Python: a part is held out.

    Raises:
        UserError: it does not fit the environment.
    """
    dims = None if env_name is None else environments.dims(environments.make(env_name))
    _check(OpenedDataset(data, True, "the given data"), dims, env_name)
    train, validation, how = hold_out(data)
    return Splits.of(train, validation, f"{IN_MEMORY}; {how}")


def _check(opened: OpenedDataset, dims: tuple[ObsSpec, int] | None, whose: str | None) -> None:
    """Raise UserError if data cannot be trained on, or its observations or actions have other sizes than those of
    `whose`."""
    if not opened.has_rewards:
        raise UserError(
            f"{opened.source} has no rewards: name the task that gives them with --env_name, as in "
            "--env_name=cube-single-play-singletask-v0"
        )
    check_actions(opened.data.actions, opened.source)
    arrays = {"observations": opened.data.observations, "actions": opened.data.actions}
    wanted = {"observations": dims[0].dim, "actions": dims[1]} if dims else {}
    check_widths(arrays, wanted, opened.source, str(whose))


def _open_npz(path: Path, task: RewardTask | None) -> OpenedDataset:
    """Open an npz in OGBench's layout, or with a row for each transition."""
    arrays = open_npz(path, (*FLAT_KEYS, *ogbench.KEYS, PARTS_KEY))
    parts = _part_names(arrays.pop(PARTS_KEY, None), path)
    if "rewards" in arrays and not ("masks" in arrays and not {"timeouts", "next_observations"} & arrays.keys()):
        return OpenedDataset(_flat(arrays, str(path)), True, str(path), path, parts)
    rows = ogbench.check_layout(arrays, str(path))
    if "masks" in rows:
        return OpenedDataset(ogbench.trajectories(rows), True, str(path), path, parts)
    if task is not None:
        return OpenedDataset(task.label(rows, str(path)), True, f"{path}, rewards of {task.name}", path)
    zeros = np.zeros(len(rows["terminals"]), np.float32)
    return OpenedDataset(ogbench.trajectories(rows | {"rewards": zeros, "masks": 1 - zeros}), False, str(path), path)


def _part_names(names: np.ndarray | None, path: Path) -> tuple[str, ...]:
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{path}: {PARTS_KEY} is no list of names, as `floq data convert` writes it: take it out")
    return tuple(map(str, names))


def _flat(arrays: dict[str, np.ndarray], source: str) -> Trajectories:
    """Convert arrays with a row for each transition. If there are `masks`, they mark true terminations, and `terminals`
    every end of a trajectory, as in the arrays that OGBench's loader returns."""
    missing = [key for key in FLAT_KEYS[:4] if key not in arrays]
    if missing:
        raise UserError(f"{source} has rewards but lacks {', '.join(missing)}: see floq.Dataset.from_arrays")
    flat: dict[str, Any] = {key: arrays[key] for key in FLAT_KEYS if key in arrays}
    if "masks" in arrays:
        flat |= {"terminals": arrays["masks"] == 0, "timeouts": arrays["terminals"]}
    return from_arrays(**flat, source=source)


def _validation_file(train: Path | None) -> Path | None:
    if train is None or train.stem.endswith("-val"):
        return None
    val_file = train.with_name(f"{train.stem}-val.npz")
    return val_file if os.path.exists(val_file) else None


def _origin(opened: OpenedDataset, task: RewardTask | None) -> str:
    """Return where the data comes from; for a collection, according to its record."""
    record = opened.file and ogbench.provenance(opened.file.stem, opened.file.parent)
    if not record or record.endswith(ogbench.NO_RECORD):
        return opened.source
    return f"{record}, rewards of {task.name}" if task else record


def _raise_missing(name: str, directory: Path) -> None:
    raise UserError(f"{directory / name}.npz is missing: collect it with `floq data collect {name}`, or fetch it")
