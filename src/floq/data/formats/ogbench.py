"""OGBench datasets: download their files, read them, and label them with the rewards of a task."""

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

from floq.data.arrays import Trajectories
from floq.data.checks import check_rows, check_widths
from floq.data.collection.recipes import recipe
from floq.data.dataset import Splits
from floq.data.formats.files import open_npz
from floq.envs import environments
from floq.envs.probe import probe
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.files import check_writable, lock_folder, remove_empty
from floq.utils.untrusted import read_json

# --- Constants and types ---

ROW_KEYS = ("observations", "actions", "terminals")
STATE_KEYS = ("qpos", "button_states")  # rewards are computed from these; not every dataset has both
REWARD_KEYS = ("rewards", "masks")  # of files that `floq data convert` writes; the benchmark's own have none
KEYS = (*ROW_KEYS, *STATE_KEYS, *REWARD_KEYS)

NO_RECORD = "not collected here"
DOWNLOAD_TIMEOUT_S = 30.0  # seconds without a byte after which a server counts as gone
CHUNK_BYTES = 2**20
SCHEMES = ("https", "http", "file")

Bar: TypeAlias = Callable[[str, int], contextlib.AbstractContextManager[Callable[..., object]]]
"""Progress bar of one file: called with its name and its size in MB; a context that yields `update(done)`."""

Fetch = Callable[[str, Path], object]
"""Function that fetches a missing dataset: called with its name and the directory."""


# --- Download ---


def download(name: str, directory: Path, mirror: str | None = None, bar: Bar | None = None) -> None:
    """Download `name`.npz and `name`-val.npz into `directory`. They get their names only when both are complete.

    Args:
        name: a dataset such as `cube-single-play-v0`.
        directory: where they go; created if missing.
        mirror: the address of a folder with the files (https, http or file); by default OGBench's own server.
        bar: shows the progress of each file.

    Raises:
        UserError: the server does not answer, lacks a file or breaks off, or the disk is too small.
    """
    from ogbench.utils import DATASET_URL  # here: other data need no OGBench

    check_writable(directory, "give another --dataset_dir")
    address = (DATASET_URL if mirror is None else mirror).rstrip("/")
    if urllib.parse.urlsplit(address).scheme not in SCHEMES:
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


# --- Tasks ---


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
        environments.check_task(env_name)  # before the data, since a wrong name is the more common mistake
    names = list(dict.fromkeys(environments.dataset_name(env_name) for env_name in env_names))
    if len(names) != 1:
        raise UserError(f"these tasks do not share one dataset: {', '.join(names)}")
    task = environments.make(env_names[0])
    paths = find_files(names[0], directory, fetch)
    rows = [read_rows(path) for path in paths]
    origin = provenance(names[0], directory)
    loaded: list[Splits] = []
    for env_name in env_names:
        task = environments.with_task(task, env_name)
        parts = [label(r, env_name, task, label_timing, str(f)) for r, f in zip(rows, paths, strict=True)]
        if loaded:
            shared = zip((loaded[0].train, loaded[0].validation), parts, strict=True)
            train, validation = (data.relabelled(part.rewards, part.masks) for data, part in shared)
            loaded.append(Splits(train, validation, origin))
        else:
            loaded.append(Splits.of(*parts, provenance=origin))
    return loaded


# --- Files ---


def find_files(name: str, directory: Path, fetch: Fetch = download) -> tuple[Path, Path]:
    """Return the files of a dataset such as `cube-single-play-v0`, for training and for validation; fetch missing ones.

    Raises:
        UserError: they cannot be fetched, or only one of the two is there.
    """
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


# --- Rows ---


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of an OGBench npz, one row per state.

    Raises:
        UserError: the file is damaged, holds pickled objects, lacks an array, or one has a wrong shape or a NaN.
    """
    return check_layout(open_npz(path, KEYS), str(path))


def check_layout(rows: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Check and return the arrays of an OGBench file.

    Raises:
        UserError: as `read_rows`.
    """
    missing = [key for key in ROW_KEYS if key not in rows]
    if missing:
        raise UserError(f"{source} lacks {', '.join(missing)}: it is not an OGBench dataset")
    check_rows(rows, source)
    return rows


def label(
    rows: dict[str, np.ndarray], env_name: str, task: environments.SeededEnv, label_timing: str, source: str
) -> Trajectories:
    """Label the rows of an OGBench file with the rewards and masks of a task.

    Raises:
        UserError: the rows are not those of the task.
    """
    from ogbench.relabel_utils import relabel_dataset

    check_widths(rows, widths(task), source, env_name)
    labelled = dict(rows)
    relabel_dataset(env_name, task, labelled)  # adds `rewards` and `masks` for every row, from that row's own state
    if label_timing == "post":
        labelled |= {key: np.roll(labelled[key], -1) for key in REWARD_KEYS}  # a trajectory's last row is never read
    return trajectories(labelled)


def trajectories(rows: dict[str, np.ndarray]) -> Trajectories:
    """Convert rows with rewards and masks. The last row always ends a trajectory."""
    ends = rows["terminals"].astype(bool)
    ends[-1:] = True
    return Trajectories(rows["observations"], rows["actions"], rows["rewards"], rows["masks"], ends)


def widths(task: environments.SeededEnv) -> dict[str, int]:
    """Return the numbers per row that an OGBench task expects, by key."""
    base: Any = task.unwrapped
    obs_spec, action_dim = probe(task)
    sizes = {"observations": obs_spec.dim, "actions": action_dim, "qpos": base.model.nq}
    return sizes | ({"button_states": base._num_buttons} if hasattr(base, "_num_buttons") else {})
