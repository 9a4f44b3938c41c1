"""Collect a dataset with OGBench's own scripted experts, in OGBench's file format.

The result depends on the seed and the number of episodes, not on how many workers share the work. No JAX in here:
worker processes import this file.
"""

import functools
import hashlib
import json
import platform
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.experts import Rows
from floq.data.recipes import recipe
from floq.errors import UserError
from floq.workers import Workers, worker_count


def collect(
    name: str,
    directory: Path,
    *,
    episodes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Collect the dataset `name` into `directory`: NAME.npz, NAME-val.npz, and NAME.json which says how it was made.

    Args:
        name: an OGBench dataset name, without a task.
        directory: where the files go; made if missing.
        episodes: fewer or more training episodes than the benchmark's; a tenth on top is for validation.
        seed: together with `episodes` it determines the result.
        workers: processes; by default one per core.
        on_progress: called with (episodes done, all episodes).

    Returns:
        The path of NAME.npz, which appears only when all files are complete.

    Raises:
        UserError: there is no recipe, the files exist already, or the directory cannot be written.
    """
    steps = recipe(name)
    num_train = steps.episodes if episodes is None else episodes
    if num_train < 1:
        raise UserError(f"episodes={num_train}: collect at least one")
    if seed < 0:
        raise UserError(f"seed={seed}: must be at least 0")
    total = num_train + max(1, num_train // 10)
    count = worker_count(workers, total)
    train = directory / f"{name}.npz"
    if train.exists():
        raise UserError(f"{train} exists already: delete it to collect it anew, or give another --dataset_dir")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        partial = tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}.")
    except OSError as error:
        raise UserError(f"cannot write to the dataset folder {directory}: {error.strerror}") from error

    expert = functools.partial(steps.expert, steps.name, steps.rows, seed, **steps.settings)
    with partial as folder, Workers(expert, [()] * count) as pool:
        parts: dict[int, Rows] = {}
        for number, rows in pool.map("episode", range(total)):
            parts[number] = rows
            on_progress(len(parts), total)
        episodes_in_order = [parts[number] for number in range(total)]
        files = {f"{name}-val.npz": episodes_in_order[num_train:], f"{name}.npz": episodes_in_order[:num_train]}
        for file_name, group in files.items():
            arrays: dict[str, Any] = {key: np.concatenate([rows[key] for rows in group]) for key in group[0]}
            np.savez_compressed(Path(folder) / file_name, **arrays)
        record = {
            "dataset": name,
            "collected_by": "floq " + version("floq"),
            "procedure": {"expert": steps.expert.__name__, "rows": steps.rows, **steps.settings},
            "seed": seed,
            "episodes": num_train,
            "published_episodes": steps.episodes,
            "validation_episodes": total - num_train,
            "versions": {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")},
            "python": platform.python_version(),
            "sha256": {n: hashlib.sha256((Path(folder) / n).read_bytes()).hexdigest() for n in files},
        }
        (Path(folder) / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        for file_name in (f"{name}.json", *files):  # the training file last: its presence means that all is complete
            (Path(folder) / file_name).replace(directory / file_name)
    return train
