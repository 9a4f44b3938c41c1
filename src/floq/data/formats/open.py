"""Open any dataset by its name, path or id, and split it for a run."""

import os
from pathlib import Path

import numpy as np

from floq.data.arrays import OpenedDataset, Trajectories, check_actions, check_widths, hold_out
from floq.data.dataset import Splits
from floq.data.formats import READERS, minari, npz, ogbench
from floq.envs import environments
from floq.envs import ogbench as suite
from floq.envs.environments import EnvFactory, SeededEnv, probe
from floq.envs.spaces import box_to_unit, check_same_parts, is_unit
from floq.utils.errors import UserError
from floq.utils.files import looks_like_path, user_path
from floq.utils.obs_spec import ObsSpec

IN_MEMORY = "given from Python"  # start of the provenance of data without a file


def open_dataset(
    name: str,
    dataset_dir: str,
    task: SeededEnv | None = None,
    label_timing: str = "pre",
    fetch: ogbench.Fetch | None = None,
) -> OpenedDataset:
    """Read a dataset from a file, a folder or a local store, depending on its name.

    Args:
        name: an OGBench dataset (`cube-single-play-v0`) or task (`cube-single-play-singletask-task2-v0`: with that
            task's rewards) in `dataset_dir`; the path of a file or folder that one of `READERS` takes; or a Minari id.
        dataset_dir: where OGBench's files are.
        task: the OGBench task that gives rewards to a file of OGBench, which has none; by default `name`, if it is one.
        label_timing: see `ogbench.load_tasks`.
        fetch: fetches a missing OGBench dataset; by default that is an error.

    Raises:
        UserError: the dataset does not exist, or cannot be read.
    """
    path = user_path(name)
    reader = next((reader for reader in READERS.values() if reader.takes(path)), None)
    if reader is not None:
        return _with_rewards(reader.read(path), task, label_timing)
    if looks_like_path(name) or os.path.exists(path):
        what = f"is of no format that floq reads ({', '.join(READERS)})" if os.path.exists(path) else "is not there"
        raise UserError(f"{path} {what}: give such a file, a folder of them, or a name")
    if not suite.is_dataset(name):
        return minari.read(minari.local_folder(name))._replace(source=name)
    if task is None and suite.is_singletask(name):
        task = _make_task(name)
    file, _ = ogbench.find_files(suite.dataset_name(name), user_path(dataset_dir), fetch or _raise_missing)
    return _with_rewards(npz.read(file), task, label_timing)


def _make_task(name: str) -> SeededEnv:
    suite.check_task(name)
    return environments.make(name)


def _with_rewards(opened: OpenedDataset, task: SeededEnv | None, label_timing: str) -> OpenedDataset:
    if opened.has_rewards or task is None:
        return opened
    data = ogbench.label(opened, task, label_timing)
    return opened._replace(data=data, has_rewards=True, source=f"{opened.source}, rewards of {task.task}")


def open_splits(
    name: str,
    dataset_dir: str,
    env: EnvFactory | str | None = None,
    label_timing: str = "pre",
    fetch: ogbench.Fetch | None = None,
    action_units: str = "unit",
) -> Splits:
    """Open a dataset and split it. An npz `NAME.npz` is validated on `NAME-val.npz` in the same folder; of any
    other dataset a part is held out. Parameters are those of `open_dataset` and `with_unit_actions`; the data must fit
    `env`, and an OGBench single task gives rewards to a file that has none.

    Raises:
        UserError: as `open_dataset`; or the data has no rewards, or is not that of the environment.
    """
    make_env = EnvFactory(env) if isinstance(env, str) else env
    env_name = make_env and make_env.name
    tasks = [n for n in (name, env_name) if n is not None and suite.is_singletask(n) and not looks_like_path(n)]
    if len(set(tasks)) > 1:
        raise UserError(
            f"--dataset={name} has the rewards of one task and --env_name={env_name} is another: give "
            f"--dataset={suite.dataset_name(name)}"
        )
    # The environment before the data, since a wrong name is found sooner.
    task = _make_task(tasks[0]) if tasks else None
    made = make_env and (task or make_env())
    dims = made and probe(made)
    opened, notes = with_unit_actions(open_dataset(name, dataset_dir, task, label_timing, fetch), made, action_units)
    _check(opened, dims, env_name)
    check_same_parts(opened.parts, made.parts if made else (), opened.source, env_name)
    val_file = opened.file and opened.file.with_name(f"{opened.file.stem}-val.npz")
    if val_file and os.path.exists(val_file) and not val_file.stem.endswith("-val-val"):
        held_out = _with_rewards(npz.read(val_file), task, label_timing)
        held_out, _ = with_unit_actions(held_out, made, action_units)
        _check(held_out, opened.data.dims, opened.source)
        check_same_parts(held_out.parts, opened.parts, held_out.source, opened.source)
        train, validation, how = opened.data, held_out.data, f"validated on {val_file.name}"
    else:
        train, validation, how = hold_out(opened.data, opened.source)
    record = opened.file and ogbench.provenance(opened.file.stem, opened.file.parent)
    if not record or record.endswith(ogbench.NO_RECORD):
        record = opened.source
    elif task:
        record += f", rewards of {task.task}"
    splits = Splits.of(train, validation, f"{record}; {how}")
    return splits._replace(parts=opened.parts, notes=notes)


def given_splits(data: Trajectories, make_env: EnvFactory | None = None, action_units: str = "unit") -> Splits:
    """Split data given from Python: a part is held out. Raises UserError if it does not fit the environment."""
    made = make_env and make_env()
    dims = made and probe(made)
    opened, notes = with_unit_actions(OpenedDataset(data, True, "the given data"), made, action_units)
    _check(opened, dims, make_env and make_env.name)
    train, validation, how = hold_out(opened.data)
    return Splits.of(train, validation, f"{IN_MEMORY}; {how}")._replace(notes=notes)


def with_unit_actions(
    opened: OpenedDataset, env: SeededEnv | None, action_units: str
) -> tuple[OpenedDataset, tuple[str, ...]]:
    """Scale the actions of a dataset to [-1, 1], from the bounds of `env` if `action_units` is "env"; with "unit" they
    are scaled already, as are those of a dataset that states its own bounds. Returns lines, too, on how actions are
    read, where the environment's bounds are not -1 and 1. Raises UserError if "env" is given and `env` is None."""
    if action_units == "env" and env is None:
        raise UserError("--action_units=env: give the environment whose units they are, with --env_name")
    if env is None or opened.scaled or is_unit(env.box):
        return opened, ()
    actions, low, high = opened.data.actions, env.box.low, env.box.high
    if actions.ndim != 2 or actions.shape[1:] != low.shape:
        return opened, ()  # which is refused
    pairs = dict.fromkeys(f"[{a:.4g}, {b:.4g}]" for a, b in zip(low, high, strict=True))
    limits = " x ".join(pairs) if len(pairs) < 5 else f"[{low.min():.4g}, {high.max():.4g}]"
    bounds = f"the bounds of {env.task}'s, {limits}"
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
            f"warning no action is outside {limits}, as if they were in the environment's units: if so, "
            "give --action_units=env"
        )
    return opened, tuple(notes)


def _check(opened: OpenedDataset, dims: tuple[ObsSpec, int] | None, whose: str | None) -> None:
    """Raise UserError if data cannot be trained on, or has other sizes than `whose`."""
    if not opened.has_rewards:
        raise UserError(
            f"{opened.source} has no rewards: name the task that gives them with --env_name, as in "
            "--env_name=cube-single-play-singletask-v0"
        )
    check_actions(opened.data.actions, opened.source)
    arrays = {"observations": opened.data.observations, "actions": opened.data.actions}
    wanted = {"observations": dims[0].dim, "actions": dims[1]} if dims else {}
    check_widths(arrays, wanted, opened.source, str(whose))


def _raise_missing(name: str, directory: Path) -> None:
    raise UserError(f"{directory / name}.npz is missing: collect it with `floq data collect {name}`, or fetch it")
