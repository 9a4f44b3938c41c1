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
from floq.envs.environments import EnvFactory, SeededEnv
from floq.envs.probe import probe
from floq.envs.spaces import box_to_unit, check_same_parts, is_unit
from floq.utils.errors import UserError
from floq.utils.files import looks_like_path, user_path
from floq.utils.obs_spec import ObsSpec

FLAT_KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
IN_MEMORY = "given from Python"  # start of the provenance of data without a file


class OpenedDataset(NamedTuple):
    """A dataset; whether its rewards and masks are valid (not in an OGBench file without a task); a description of its
    source; its file if it is an npz; the parts of its observations, where they have names; and whether its actions were
    scaled to [-1, 1] from bounds that it states."""

    data: Trajectories
    has_rewards: bool
    source: str
    file: Path | None = None
    parts: tuple[str, ...] = ()
    scaled: bool = False


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
    return OpenedDataset(data, True, name, parts=parts, scaled=True)


def open_splits(
    name: str,
    dataset_dir: str,
    env: EnvFactory | str | None = None,
    label_timing: str = "pre",
    fetch: ogbench.Fetch | None = None,
    action_units: str = "unit",
) -> Splits:
    """Open a dataset and split it. An npz `NAME.npz` is validated on `NAME-val.npz` in the same folder; of any
    other dataset a part is held out.

    Args:
        name: see `open_dataset`.
        dataset_dir: see `open_dataset`.
        env: the environment of the run, if it has one: it must fit the data, and an OGBench single task gives rewards
            to a file that has none.
        label_timing: see `ogbench.load`.
        fetch: see `open_dataset`.
        action_units: see `with_unit_actions`.

    Raises:
        UserError: as `open_dataset`; or the data has no rewards, or is not that of the environment.
    """
    make_env = EnvFactory(env) if isinstance(env, str) else env
    env_name = make_env and make_env.name
    tasks = [n for n in (name, env_name) if n is not None and environments.is_singletask(n) and not looks_like_path(n)]
    if len(set(tasks)) > 1:
        raise UserError(
            f"--dataset={name} has the rewards of one task and --env_name={env_name} is another: give "
            f"--dataset={environments.dataset_name(name)}"
        )
    task = RewardTask(tasks[0], label_timing) if tasks else None
    # The environment before the data, since a wrong name is found sooner.
    made = make_env and (task.env if task else make_env())
    dims = made and probe(made)
    opened, notes = with_unit_actions(open_dataset(name, dataset_dir, task, fetch), made, action_units)
    _check(opened, dims, env_name)
    check_same_parts(opened.parts, made.parts if made else (), opened.source, env_name)
    val_file = _validation_file(opened.file)
    if val_file is not None:
        held_out, _ = with_unit_actions(_open_npz(val_file, task), made, action_units)
        _check(held_out, opened.data.dims, opened.source)
        check_same_parts(held_out.parts, opened.parts, held_out.source, opened.source)
        train, validation, how = opened.data, held_out.data, f"validated on {val_file.name}"
    else:
        train, validation, how = hold_out(opened.data, opened.source)
    splits = Splits.of(train, validation, f"{_origin(opened, task)}; {how}")
    return splits._replace(parts=opened.parts, notes=notes)


def given_splits(data: Trajectories, make_env: EnvFactory | None = None, action_units: str = "unit") -> Splits:
    """Split data given from Python: a part is held out.

    Raises:
        UserError: it does not fit the environment.
    """
    made = make_env and make_env()
    dims = made and probe(made)
    opened, notes = with_unit_actions(OpenedDataset(data, True, "the given data"), made, action_units)
    _check(opened, dims, make_env and make_env.name)
    train, validation, how = hold_out(opened.data)
    return Splits.of(train, validation, f"{IN_MEMORY}; {how}")._replace(notes=notes)


def with_unit_actions(
    opened: OpenedDataset, env: SeededEnv | None, action_units: str
) -> tuple[OpenedDataset, tuple[str, ...]]:
    """Scale the actions of a dataset to [-1, 1].

    Args:
        opened: the dataset.
        env: whose actions they are, if that is known.
        action_units: "unit" if -1 and 1 stand for the bounds of the environment's actions already, "env" if they are
            those that the environment takes; a dataset that states its own bounds has been scaled by these.

    Returns:
        The scaled dataset, and lines on how actions are read, where the environment's bounds are not -1 and 1.

    Raises:
        UserError: the unit is the environment's, and there is none.
    """
    if action_units == "env" and env is None:
        raise UserError("--action_units=env: give the environment whose units they are, with --env_name")
    if env is None or opened.scaled or is_unit(env.box):
        return opened, ()
    actions, (low, high) = opened.data.actions, (env.box.low, env.box.high)
    if actions.ndim != 2 or actions.shape[1:] != low.shape:
        return opened, ()  # which is refused
    bounds = f"the bounds of {env.task}'s, {_bounds(low, high)}"
    if action_units == "env":
        scaled = box_to_unit(actions, low, high)
        if (outside := (np.abs(scaled) > 1 + 1e-6).any(axis=1)).any():
            raise UserError(
                f"{opened.source}: actions lie outside {bounds}, in {outside.sum()} of {len(actions)} rows, the first "
                f"is row {outside.argmax()} ({actions[outside.argmax()]}): clip them, or leave --action_units out"
            )
        opened = opened._replace(data=opened.data._replace(actions=scaled))
        return opened, (f"actions are read in the environment's units, within {bounds}",)
    notes = [f"actions are read as [-1, 1], which stands for {bounds}; --action_units=env reads them in its own units"]
    narrow = (low > -1) | (high < 1)
    if narrow.any() and ((low - 1e-6 <= actions) & (actions <= high + 1e-6)).all():
        notes.append(
            f"warning no action is outside {_bounds(low, high)}, as if they were in the environment's units: if so, "
            "give --action_units=env"
        )
    return opened, tuple(notes)


def _bounds(low: np.ndarray, high: np.ndarray) -> str:
    """Write bounds, once if they are equal for all actions."""
    pairs = dict.fromkeys(f"[{a:.4g}, {b:.4g}]" for a, b in zip(low, high, strict=True))
    return " x ".join(pairs) if len(pairs) < 5 else f"[{low.min():.4g}, {high.max():.4g}]"


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
