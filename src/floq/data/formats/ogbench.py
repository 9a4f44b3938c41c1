"""OGBench datasets: find or download their files, and label them with the rewards of a task."""

import contextlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from floq.data.arrays import OpenedDataset, Trajectories, check_widths
from floq.data.collection.collect import recipe
from floq.data.dataset import Splits
from floq.data.formats import npz
from floq.envs import environments
from floq.envs import ogbench as suite
from floq.envs.environments import probe
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.files import check_writable, lock_folder, remove_empty
from floq.utils.untrusted import read_json

NO_RECORD = "not collected here"
DOWNLOAD_TIMEOUT_S = 30.0  # seconds without a byte after which a server counts as gone
CHUNK_BYTES = 2**20
SCHEMES = ("https", "http", "file")

Bar: TypeAlias = Callable[[str, int], contextlib.AbstractContextManager[Callable[..., object]]]
"""Progress bar of a file, made with its name and its size in MB; a context that yields `update(done)`."""
Fetch = Callable[[str, Path], object]
"""Fetches a missing dataset, by its name into a directory."""


def download(name: str, directory: Path, mirror: str | None = None, bar: Bar | None = None) -> None:
    """Download `name`.npz and `name`-val.npz into `directory`. They get their names only when both are complete.
    `mirror` is the address of a folder with the files (https, http or file), by default OGBench's own server.

    Raises:
        UserError: the server does not answer, lacks a file or breaks off, or the disk is too small.
    """
    from ogbench.utils import DATASET_URL  # here: other data need no OGBench

    check_writable(directory, "give another --dataset_dir")
    address = (DATASET_URL if mirror is None else mirror).rstrip("/")
    if address.partition(":")[0].lower() not in SCHEMES:
        raise UserError(f"--dataset_mirror={mirror}: give an address that begins with {', '.join(SCHEMES[:2])} or file")
    missing = [folder for folder in (directory, *directory.parents) if not os.path.exists(folder)]
    names = (f"{name}-val.npz", f"{name}.npz")  # the training file last: its presence marks a complete dataset
    parts = directory / f".{name}.download"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with lock_folder(parts, f"another process is downloading {name} into {directory}: wait for it"):
            try:
                for file in names:
                    _fetch(f"{address}/{file}", parts / file, bar)
                for file in names:
                    (parts / file).replace(directory / file)
                (directory / f"{name}.json").unlink(missing_ok=True)  # the record of files that were here before
            finally:
                shutil.rmtree(parts)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{directory / name}.npz is missing and could not be downloaded from {address} ({reason}): {_remedy(name)}"
        ) from error
    finally:
        remove_empty(missing)


def _fetch(url: str, path: Path, bar: Bar | None) -> None:
    with contextlib.ExitStack() as stack:
        response = stack.enter_context(urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_S))
        file = stack.enter_context(open(path, "wb"))
        total, free = int(response.headers.get("Content-Length") or 0), shutil.disk_usage(path.parent).free
        if total > free:
            raise OSError(f"it has {total / 1e9:.1f} GB, the disk {free / 1e9:.1f} GB left")
        update = stack.enter_context(bar(path.name, total // CHUNK_BYTES)) if bar and total else lambda done: None
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            update(file.tell() // CHUNK_BYTES)
        if total and file.tell() != total:
            raise OSError(f"the server broke off after {file.tell():,} of {total:,} bytes")
    files.sync(path)


def _remedy(name: str) -> str:
    with contextlib.suppress(UserError):
        recipe(name)
        return f"make it here with `floq data collect {name}`, or name a --dataset_mirror"
    return "name a --dataset_mirror, or fetch it on a machine with access; floq has no expert that could make it here"


def load_tasks(
    env_names: Sequence[str], directory: Path, label_timing: str = "pre", fetch: Fetch = download
) -> list[Splits]:
    """Read the data of several tasks over the same trajectories, such as task1 to task5 of an environment. Observations
    and actions are read once and shared on the device; only rewards and masks differ.

    Args:
        env_names: OGBench single-task ids.
        directory: where the files are.
        label_timing: a transition's reward and mask come from the state before the action ("pre", as in every OGBench
            version and the published runs) or after it ("post").
        fetch: called with a missing dataset's name and the directory; by default it is downloaded.

    Raises:
        UserError: an id is no such task, or its file is missing and cannot be fetched, or is not a dataset; or the
            tasks do not share a dataset.
    """
    for env_name in env_names:
        suite.check_task(env_name)  # before the data, since a wrong name is the more common mistake
    names = list(dict.fromkeys(suite.dataset_name(env_name) for env_name in env_names))
    if len(names) != 1:
        raise UserError(f"these tasks do not share one dataset: {', '.join(names)}")
    task = environments.make(env_names[0])
    paths = find_files(names[0], directory, fetch)
    opened = [npz.read(path) for path in paths]
    origin = provenance(names[0], directory)
    loaded: list[Splits] = []
    for env_name in env_names:
        task = suite.with_task(task, env_name)
        parts = [label(file, task, label_timing) for file in opened]
        if loaded:
            shared = zip((loaded[0].train, loaded[0].validation), parts, strict=True)
            train, validation = (data.relabelled(part.rewards, part.masks) for data, part in shared)
            loaded.append(Splits(train, validation, origin))
        else:
            loaded.append(Splits.of(*parts, provenance=origin))
    return loaded


def find_files(name: str, directory: Path, fetch: Fetch = download) -> tuple[Path, Path]:
    """Return the files of a dataset such as `cube-single-play-v0`, for training and for validation; fetch missing ones.
    Raises UserError if they cannot be fetched, or only one of the two is there."""
    if not re.fullmatch(r"\w[-.\w]*", name):  # it becomes part of a file name
        raise UserError(f"{name!r} is no name of a dataset, as cube-single-play-v0 is")
    train, validation = directory / f"{name}.npz", directory / f"{name}-val.npz"
    if not os.path.exists(train):
        fetch(name, directory)
    elif not os.path.exists(validation):
        raise UserError(f"{validation} is missing beside {train}: fetch it, or delete the other to have both made anew")
    return train, validation


def provenance(name: str, directory: Path) -> str:
    """Return where a dataset came from, according to the record that `floq data collect` writes in its folder."""
    try:
        record = read_json(directory / f"{name}.json")
        made, published, seed = (int(record[key]) for key in ("episodes", "published_episodes", "seed"))
    except (OSError, ValueError, KeyError, TypeError):
        return f"{name}: {NO_RECORD}"
    share = "" if made == published else f" of the published {published}"
    return f"{name}: {made}{share} episodes, collected here with seed {seed}"


def label(opened: OpenedDataset, task: environments.SeededEnv, label_timing: str) -> Trajectories:
    """Return the trajectories of an OGBench file with the rewards and masks of a task. Raises UserError if the rows are
    not those of the task."""
    from ogbench.relabel_utils import relabel_dataset

    base: Any = task.unwrapped
    obs_spec, action_dim = probe(task)
    wanted = {"observations": obs_spec, "actions": action_dim, "qpos": base.model.nq}
    if hasattr(base, "_num_buttons"):
        wanted["button_states"] = base._num_buttons
    rows = {"observations": opened.data.observations, "actions": opened.data.actions, **opened.state}
    check_widths(rows, wanted, opened.source, task.task)
    relabel_dataset(task.task, task, rows)  # adds `rewards` and `masks` for every row, from that row's own state
    labels = {key: rows[key] for key in ("rewards", "masks")}
    if label_timing == "post":
        labels = {key: np.roll(x, -1) for key, x in labels.items()}  # a trajectory's last row is never read
    return opened.data._replace(**labels)
