"""Collect a dataset with the benchmark's experts, in OGBench's file format.

The result depends on the seed and the number of episodes, not on the number of workers. Every finished episode is a
file of its own until all are done, so a collection that was stopped, or killed, can be resumed.
No JAX in here: worker processes import this file.
"""

import functools
import hashlib
import json
import os
import platform
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.collection.experts import Rows, Walker
from floq.data.collection.recipes import Recipe, recipe, with_validation
from floq.envs.workers import Workers
from floq.utils.errors import UserError
from floq.utils.files import check_writable, lock_folder
from floq.utils.machine import version, worker_count


def collect(
    name: str,
    directory: Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Collect the dataset `name` into `directory`: NAME.npz, NAME-val.npz, and NAME.json with its settings.

    Args:
        name: an OGBench dataset name, without a task.
        directory: where the files go; made if missing.
        episodes: number of training episodes, by default the benchmark's; a tenth of it is added for validation.
        seed: together with `episodes` it determines the result.
        workers: processes; by default one per core.
        on_progress: called with (episodes done, all episodes).

    Returns:
        The path of NAME.npz, which appears only when all files are complete.

    Raises:
        UserError: there is no recipe, the files exist already, or the directory cannot be written or is too small.
    """
    made = recipe(name)
    num_train = made.episodes if episodes is None else episodes
    if num_train < 1:
        raise UserError(f"episodes={num_train}: collect at least one")
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    total = with_validation(num_train)
    count = worker_count(workers, total)
    train = directory / f"{name}.npz"
    if os.path.exists(train):
        raise UserError(f"{train} exists already: delete it to collect it anew, or give another --dataset_dir")
    how = _provenance(made, seed)
    parts = directory / f".{name}.seed{seed}.partial"
    check_writable(directory, "give another --dataset_dir")
    parts.mkdir(parents=True, exist_ok=True)
    with lock_folder(parts, f"another process is collecting {name} into {directory}: wait for it"):
        note, text = parts / "how.json", json.dumps(how)
        if not (note.exists() and note.read_text() == text):  # made by another version or procedure
            for path in parts.glob("*.npz"):
                path.unlink()
        note.write_text(text)
        _collect_parts(made, parts, seed, total, count, on_progress)
        _join_parts(parts, how, made, num_train, total)
        shutil.rmtree(parts)
    return train


def _collect_parts(
    made: Recipe, parts: Path, seed: int, total: int, workers: int, on_progress: Callable[[int, int], None]
) -> None:
    """Collect every episode that is missing in the folder of parts."""
    missing = [number for number in range(total) if not zipfile.is_zipfile(_part(parts, number))]
    expert = functools.partial(made.expert, made.name, made.rows, seed, **made.settings)
    with Workers(expert, [()] * min(workers, len(missing))) as pool:
        on_progress(done := total - len(missing), total)
        for index, rows in pool.map("episode", missing):
            path = _part(parts, missing[index])
            _save_part(path, rows)
            needed, free = path.stat().st_size * (len(missing) + total), shutil.disk_usage(parts).free
            if index == 0 and free < needed:
                raise UserError(
                    f"{parts.parent} has {free / 1e9:.1f} GB free, the collection needs up to {needed / 1e9:.1f} GB: "
                    "give another --dataset_dir, or fewer --episodes"
                )
            on_progress(done := done + 1, total)


def _join_parts(parts: Path, how: dict[str, Any], made: Recipe, num_train: int, total: int) -> None:
    """Write the dataset's files from the parts, and move them to their final names."""

    def checksum(path: Path) -> str:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    name, directory = made.name, parts.parent
    files = {f"{name}-val.npz": range(num_train, total), f"{name}.npz": range(num_train)}
    for file_name, numbers in files.items():
        _concatenate_parts([_part(parts, number) for number in numbers], parts / file_name)
    record = {
        "dataset": name,
        **how,
        "episodes": num_train,
        "published_episodes": made.episodes,
        "validation_episodes": total - num_train,
        "sha256": {file_name: checksum(parts / file_name) for file_name in files},
    }
    (parts / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    for file_name in (f"{name}.json", *files):  # the training file last: its presence marks a complete dataset
        (parts / file_name).replace(directory / file_name)


def _provenance(made: Recipe, seed: int) -> dict[str, Any]:
    """Return the settings that determine an episode, besides its number."""
    walker = {"walker": dict(Walker.load(made.settings["walker"]).about)} if "walker" in made.settings else {}
    return {
        "collected_by": "floq " + version("floq"),
        "procedure": {"expert": made.expert.__name__, "rows": made.rows, **made.settings},
        **walker,
        "seed": seed,
        "versions": {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")},
        "python": platform.python_version(),
    }


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.npz"


def _save_part(path: Path, rows: Rows) -> None:
    partial, arrays = path.with_suffix(".tmp"), dict[str, Any](rows)
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; the same command goes on where it stopped") from error


def _concatenate_parts(parts: Sequence[Path], path: Path) -> None:
    """Write the rows of all parts as one compressed npz, with no more than one of its arrays in memory."""

    def read(part: Path, key: str) -> np.ndarray:
        with np.load(part, allow_pickle=False) as rows:
            return rows[key]

    with np.load(parts[0], allow_pickle=False) as first:
        keys = first.files
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key in keys:
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.concatenate([read(part, key) for part in parts]))
