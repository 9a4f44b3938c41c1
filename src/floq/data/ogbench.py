"""OGBench datasets: find or fetch the file, read it, label it with the rewards of a task."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ogbench
from ogbench.relabel_utils import relabel_dataset
from ogbench.utils import DATASET_URL

from floq import envs
from floq.data.arrays import Trajectories
from floq.data.files import open_npz
from floq.data.recipes import recipe
from floq.data.transitions import Dataset
from floq.data.validate import check_rows, check_widths
from floq.errors import UserError
from floq.folders import check_writable, remove_empty

ROW_KEYS = ("observations", "actions", "terminals")
LABEL_KEYS = ("qpos", "qvel", "button_states")  # what rewards are computed from; not every dataset has all
DOWNLOAD_TIMEOUT = 30.0  # seconds of silence


class Splits(NamedTuple):
    """A task's training and validation data, and one line on where it came from."""

    train: Dataset
    validation: Dataset
    provenance: str


def load(
    env_name: str,
    directory: Path,
    label_timing: str = "pre",
    fetch: Callable[[str, Path], object] | None = None,
) -> Splits:
    """The data of a single task such as `pointmaze-medium-navigate-singletask-v0`.

    Args:
        env_name: an OGBench single-task id.
        directory: where the files are.
        label_timing: a transition's reward and mask come from the state before the action ("pre", as in every OGBench
            version and the published runs) or after it ("post").
        fetch: brings a missing dataset, called with its name and the directory; by default it is downloaded.

    Raises:
        UserError: the id is no such task, or its file is missing and cannot be fetched, or is not a dataset.
    """
    envs.check_task(env_name)  # before the data, since a wrong name is the commoner mistake
    task = envs.make(env_name)
    name = envs.dataset_name(env_name)
    train, validation = directory / f"{name}.npz", directory / f"{name}-val.npz"
    if not os.path.exists(train):
        (fetch or download)(name, directory)
    elif not os.path.exists(validation):
        raise UserError(f"{validation} is missing beside {train}: fetch it, or delete the other to have both made anew")
    return Splits(
        _labelled(train, env_name, task, label_timing),
        _labelled(validation, env_name, task, label_timing),
        provenance(name, directory),
    )


def provenance(name: str, directory: Path) -> str:
    """Where a dataset came from, as far as the record says that `floq data collect` leaves beside it."""
    try:
        record = json.loads((directory / f"{name}.json").read_text())
        made, published, seed = record["episodes"], record["published_episodes"], record["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name}: not collected here"
    share = "" if made == published else f" of the published {published}"
    return f"{name}: {made}{share} episodes, collected here with seed {seed}"


def _labelled(path: Path, env_name: str, task: envs.SeededEnv, label_timing: str) -> Dataset:
    return Dataset.from_rows(*read_task(path, env_name, task, label_timing))


def read_task(path: Path, env_name: str, task: envs.SeededEnv, label_timing: str = "pre") -> Trajectories:
    """An OGBench npz with the rewards and masks of a task.

    Raises:
        UserError: as `read_rows`, or the file is not that of the task.
    """
    rows = read_rows(path)
    check_widths(rows, _widths(task), str(path), env_name)
    relabel_dataset(env_name, task, rows)  # writes `rewards` and `masks` for every row, from that row's own state
    if label_timing == "post":
        rows |= {key: np.roll(rows[key], -1) for key in ("rewards", "masks")}  # a trajectory's last row is never read
    return Trajectories(*(rows[key] for key in ("observations", "actions", "rewards", "masks", "terminals")))


def _widths(task: envs.SeededEnv) -> dict[str, int]:
    """How many numbers per row a task expects, by key."""
    base: Any = task.unwrapped
    widths = {"observations": len(task.reset()[0]), "actions": task.action_space.sample().size, "qpos": base.model.nq}
    return widths | ({"button_states": base._num_buttons} if hasattr(base, "_num_buttons") else {})


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an OGBench npz, one row per state.

    Raises:
        UserError: the file is damaged, holds pickled objects, lacks an array, or one has a wrong shape or a NaN.
    """
    rows = open_npz(path, (*ROW_KEYS, *LABEL_KEYS))
    missing = [key for key in ROW_KEYS if key not in rows]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: it is not an OGBench dataset")
    check_rows(rows, str(path))
    return rows


def download(name: str, directory: Path) -> None:
    """Fetch a dataset and its validation part from OGBench's server.

    Raises:
        UserError: the server does not answer, or lacks it.
    """
    check_writable(directory, "give another --dataset_dir")
    before = socket.getdefaulttimeout()
    missing = [folder for folder in (directory, *directory.parents) if not os.path.exists(folder)]
    complete = False
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        ogbench.download_datasets([name], str(directory))
        (directory / f"{name}.json").unlink(missing_ok=True)  # it spoke of a file that was here before
        complete = True
    except OSError as error:
        reason = getattr(error, "reason", error)
        try:
            recipe(name)
            remedy = f"make it here with `floq data collect {name}`"
        except UserError:
            remedy = "fetch it on a machine with access; no scripted expert can make it here"
        raise UserError(
            f"{directory / name}.npz is missing and could not be downloaded from {DATASET_URL} ({reason}): {remedy}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
        if not complete:  # OGBench's download leaves parts behind, or one file of the two
            for part in (f"{name}.npz", f"{name}.npz.tmp", f"{name}-val.npz.tmp"):
                (directory / part).unlink(missing_ok=True)
            remove_empty(missing)
