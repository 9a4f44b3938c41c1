"""Open any dataset by its name, path or id, and split it for a run."""

import os
from pathlib import Path

import numpy as np
from gymnasium.spaces import Box

from floq.data.arrays import OpenedDataset, Trajectories, check_actions, check_transitions, check_widths, hold_out, take
from floq.data.dataset import Splits
from floq.data.formats import READERS, minari, npz, ogbench
from floq.data.options import AS_THEY_ARE, DataOptions
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
    fetch: ogbench.Fetch | None = None,
    options: DataOptions = AS_THEY_ARE,
) -> OpenedDataset:
    """Read a dataset from a file, a folder or a local store, depending on its name. Actions are not changed yet, see
    `with_unit_actions`.

    Args:
        name: an OGBench dataset (`cube-single-play-v0`) or task (`cube-single-play-singletask-task2-v0`: with that
            task's rewards) in `dataset_dir`; the path of a file or folder that one of `READERS` takes; or a Minari id.
        dataset_dir: where OGBench's files are.
        task: the OGBench task that gives rewards to a file of OGBench, which has none; by default `name`, if it is one.
        fetch: fetches a missing OGBench dataset; by default that is an error.
        options: how it is read.

    Raises:
        UserError: the dataset does not exist, cannot be read, or is not of the format that an option is for.
    """
    path = user_path(name)
    kind, reader = next(((kind, reader) for kind, reader in READERS.items() if reader.takes(path)), ("", None))
    for option in dict.fromkeys(option for other in READERS.values() for option in other.OPTIONS):
        if getattr(options, option) and option not in getattr(reader, "OPTIONS", ()):
            wanted = next(kind for kind, other in READERS.items() if option in other.OPTIONS)
            raise UserError(f"--{option}: it is for a {wanted} dataset, {name} is {kind or 'none'}: leave it out")
    if reader is not None:
        return _with_rewards(reader.read(path, options), task, options)
    if looks_like_path(name) or os.path.exists(path):
        if not os.path.exists(path):
            raise UserError(f"{path} is not there: give a file, a folder or a name")
        kinds = ", ".join(f"{kind} ({' '.join(x.SUFFIXES)})" for kind, x in READERS.items() if x.SUFFIXES)
        folders = ", ".join(kind for kind, x in READERS.items() if not x.SUFFIXES)
        raise UserError(
            f"{path} is of no format that floq reads: {kinds}, one file or a folder of them; folders of {folders}. See "
            "docs/tutorials/your_data.md"
        )
    if not suite.is_dataset(name):
        return minari.read(minari.local_folder(name), options)._replace(source=name)
    if task is None and suite.is_singletask(name):
        task = _make_task(name)
    file, _ = ogbench.find_files(suite.dataset_name(name), user_path(dataset_dir), fetch or _raise_missing)
    return _with_rewards(npz.read(file, options), task, options)


def _make_task(name: str) -> SeededEnv:
    suite.check_task(name)
    return environments.make(name)


def _with_rewards(opened: OpenedDataset, task: SeededEnv | None, options: DataOptions) -> OpenedDataset:
    check_transitions(opened.data, opened.source)
    if opened.has_rewards or task is None:
        return opened
    data = ogbench.label(opened, task, options.label_timing)
    return opened._replace(data=data, has_rewards=True, source=f"{opened.source}, rewards of {task.task}")


def open_splits(
    name: str,
    dataset_dir: str,
    env: EnvFactory | str | None = None,
    fetch: ogbench.Fetch | None = None,
    options: DataOptions = AS_THEY_ARE,
) -> Splits:
    """Open a dataset and split it. An npz `NAME.npz` is validated on `NAME-val.npz` in the same folder, a robomimic
    file with masks on those that they say; of any other dataset a part is held out. Parameters are those of
    `open_dataset`; the data must fit `env`, and an OGBench single task gives rewards to a file that has none.

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
    opened = with_unit_actions(open_dataset(name, dataset_dir, task, fetch, options), made, options)
    _check(opened, dims, env_name)
    check_same_parts(opened.parts, made.parts if made else (), opened.source, env_name)
    val_file = opened.file and opened.file.with_name(f"{opened.file.stem}-val.npz")
    if val_file and os.path.exists(val_file) and not val_file.stem.endswith("-val-val"):
        held_out = with_unit_actions(_with_rewards(npz.read(val_file, options), task, options), made, options)
        _check(held_out, opened.data.dims, opened.source)
        check_same_parts(held_out.parts, opened.parts, held_out.source, opened.source)
        train, validation, how = opened.data, held_out.data, f"validated on {val_file.name}"
    elif opened.held_out is not None:
        train, validation = (
            Trajectories(*(take(x, rows) for x in opened.data)) for rows in (~opened.held_out, opened.held_out)
        )
        how = "validated on its mask valid"
    else:
        train, validation, how = hold_out(opened.data, opened.source)
    record = opened.file and ogbench.provenance(opened.file.stem, opened.file.parent)
    if not record or record.endswith(ogbench.NO_RECORD):
        record = opened.source
    elif task:
        record += f", rewards of {task.task}"
    splits = Splits.of(train, validation, f"{record}; {how}")
    return splits._replace(parts=opened.parts, notes=opened.notes, score_range=opened.score_range)


def given_splits(data: Trajectories, make_env: EnvFactory | None = None, options: DataOptions = AS_THEY_ARE) -> Splits:
    """Split data given from Python: a part is held out. Raises UserError if it does not fit the environment."""
    made = make_env and make_env()
    dims = made and probe(made)
    opened = with_unit_actions(OpenedDataset(data, True, "the given data"), made, options)
    _check(opened, dims, make_env and make_env.name)
    train, validation, how = hold_out(opened.data)
    return Splits.of(train, validation, f"{IN_MEMORY}; {how}")._replace(notes=opened.notes)


def with_unit_actions(opened: OpenedDataset, env: SeededEnv | None, options: DataOptions) -> OpenedDataset:
    """Scale the actions of a dataset to [-1, 1], from the bounds of `env` or others, and clip them, as the options say;
    those of a dataset that states its own bounds are scaled already. Notes say how actions are read. Raises UserError
    if actions lie outside the bounds that are given, or the options cannot be followed."""
    if options.action_units == "env" and env is None:
        raise UserError("--action_units=env: give the environment whose units they are, with --env_name")
    if options.rescale_actions and opened.scaled:
        raise UserError(f"--rescale_actions: {opened.source} states the bounds of its actions, leave it out")
    actions, bounds, whose, notes = opened.data.actions, None, "", list(opened.notes)
    if options.rescale_actions:
        bounds = np.array(options.rescale_actions)
        whose = f"[{bounds[0]:g}, {bounds[1]:g}], as --rescale_actions says"
        notes.append(f"actions are scaled from {whose}")
    elif env is not None and not opened.scaled and not is_unit(env.box) and actions.shape[1:] == env.box.shape:
        whose = f"the bounds of {env.task}'s, {_limits(env.box)}"
        if options.action_units == "env":
            bounds = np.stack([env.box.low, env.box.high])
            notes.append(f"actions are read in the environment's units, within {whose}")
        else:
            notes.append(
                f"actions are read as [-1, 1], which stands for {whose}; --action_units=env reads them in its own units"
            )
            narrow = (env.box.low > -1) | (env.box.high < 1)
            if narrow.any() and ((env.box.low - 1e-6 <= actions) & (actions <= env.box.high + 1e-6)).all():
                notes.append(
                    f"warning no action is outside {_limits(env.box)}, as if they were in the environment's units: if "
                    "so, give --action_units=env"
                )
    scaled = actions if bounds is None else box_to_unit(actions, *bounds)
    outside = (np.abs(scaled) > 1 + 1e-6).any(axis=1)
    if options.clip_actions and outside.any():
        most = np.abs(scaled).max()
        notes.append(f"actions are clipped to [-1, 1] in {outside.mean():.2%} of the rows, the largest was {most:.7g}")
        scaled = np.clip(scaled, -1, 1)
    elif bounds is not None and outside.any():
        row = outside.argmax()
        raise UserError(
            f"{opened.source}: actions lie outside {whose}, in {outside.sum()} of {len(actions)} rows, the first is "
            f"row {row} ({actions[row]}): clip them (--clip_actions), or say otherwise how they are scaled"
        )
    return opened._replace(data=opened.data._replace(actions=scaled), notes=tuple(notes))


def _limits(box: Box) -> str:
    """Describe the bounds of an action space."""
    pairs = dict.fromkeys(f"[{a:.4g}, {b:.4g}]" for a, b in zip(box.low, box.high, strict=True))
    return " x ".join(pairs) if len(pairs) < 5 else f"[{box.low.min():.4g}, {box.high.max():.4g}]"


def _check(opened: OpenedDataset, dims: tuple[ObsSpec, int] | None, whose: str | None) -> None:
    """Raise UserError if data cannot be trained on, or has other sizes than `whose`."""
    if not opened.has_rewards:
        raise UserError(
            f"{opened.source} has no rewards: name the task that gives them with --env_name, as in "
            "--env_name=cube-single-play-singletask-v0"
        )
    check_actions(opened.data.actions, opened.source)
    arrays = {"observations": opened.data.observations, "actions": opened.data.actions}
    wanted = {"observations": dims[0], "actions": dims[1]} if dims else {}
    check_widths(arrays, wanted, opened.source, str(whose))


def _raise_missing(name: str, directory: Path) -> None:
    raise UserError(f"{directory / name}.npz is missing: collect it with `floq data collect {name}`, or fetch it")
