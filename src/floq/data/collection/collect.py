"""Collect a dataset with the benchmark's experts, in OGBench's file format.

Every finished episode is a file of its own until all are done, so a collection that was stopped, or killed, can be
resumed. No JAX in here: worker processes import this file.
"""

import functools
import hashlib
import json
import os
import platform
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.collection.experts import ManipulationExpert, MazeExpert, Rows, Walker
from floq.envs.ogbench import dataset_name, shows_images
from floq.envs.workers import Workers
from floq.utils.errors import UserError, nearest
from floq.utils.files import check_writable, lock_folder
from floq.utils.machine import use_renderer, version, worker_count

PART = "{:06d}.npz"  # an episode's file

# --- Recipes (OGBench, arXiv 2410.20092, appendix) ---

MAZES = {"medium": (1000, 1001), "large": (1000, 1001), "giant": (500, 2001), "teleport": (1000, 1001)}
STITCH = (5000, 201)
MANIPULATION = {
    **dict.fromkeys(("cube-single", "cube-double", "scene", "puzzle-3x3", "puzzle-4x4"), (1000, 1001)),
    **dict.fromkeys(("cube-triple", "puzzle-4x5"), (3000, 1001)),
    **dict.fromkeys(("cube-quadruple", "puzzle-4x6"), (5000, 1001)),
}
"""Number of training episodes, and rows per episode."""

STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
"""Interval from which a cube episode draws its probability of stacking; scenes and puzzles have 0.5."""


@dataclass(frozen=True)
class Recipe:
    """Settings with which the benchmark makes the dataset `name`."""

    name: str
    episodes: int
    rows: int
    expert: Callable[..., Any]
    settings: dict[str, Any]


def with_validation(episodes: int) -> int:
    """Return the total number of episodes for this many training episodes: a tenth is added for validation."""
    return episodes + max(1, episodes // 10)


def recipe(name: str) -> Recipe:
    """Return the recipe of a dataset such as `cube-single-play-v0`. Raises UserError if no expert makes it."""
    known = {made.name: made for made in _recipes()}
    if name in known:
        return known[name]
    if re.match(r"(antsoccer|humanoid)", name):
        raise UserError(f"cannot collect {name}: floq brings no expert for that; of those that learn, the ant alone")
    if "singletask" in name:
        shared = dataset_name(name)
        raise UserError(f"cannot collect {name}: all tasks share one dataset, write floq data collect {shared}")
    raise UserError(
        f"cannot collect {name!r}{nearest(name, known)}; experts make {{pointmaze,antmaze}}-MAZE-{{navigate,stitch}}"
        f"-v0 with MAZE one of {', '.join(MAZES)}, and ENV-{{play,noisy}}-v0 with ENV one of {', '.join(MANIPULATION)}"
        "; and visual-NAME of the latter and of antmaze"
    )


def _recipes():
    for maze, counts in MAZES.items():
        for kind, goal_cells in (("navigate", None), ("stitch", 4)):
            episodes, rows = STITCH if kind == "stitch" else counts
            point = {"action_noise": 0.5, "goal_cells": goal_cells}
            ant = {"action_noise": 0.2, "goal_cells": goal_cells, "walker": "ant"}
            yield Recipe(f"pointmaze-{maze}-{kind}-v0", episodes, rows, MazeExpert, point)
            yield Recipe(f"antmaze-{maze}-{kind}-v0", episodes, rows, MazeExpert, ant)
            yield Recipe(f"visual-antmaze-{maze}-{kind}-v0", episodes, rows, MazeExpert, ant)
    visual = {f"visual-{name}": counts for name, counts in MANIPULATION.items()}
    for env, (episodes, rows) in (MANIPULATION | visual).items():
        play = {
            "oracle": "plan",
            "oracle_settings": {"noise": 0.1, "noise_smoothing": 0.5},
            "action_noise": 0.0,
            "random_action": 0.0,
            "stacking": STACKING.get(env.removeprefix("visual-"), (0.5, 0.5)),
        }
        noisy = play | {
            "oracle": "markov",
            "oracle_settings": {"min_norm": 0.4},
            "action_noise": 0.1,
            "random_action": 0.2 if "puzzle" in env else 0.1,
        }
        for kind, settings in (("play", play), ("noisy", noisy)):
            yield Recipe(f"{env}-{kind}-v0", episodes, rows, ManipulationExpert, settings)


# --- Collection ---


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

    The training `episodes`, by default as many as the benchmark's, to which a tenth is added for validation, and the
    `seed` determine the result. `on_progress` is called with (episodes done, all episodes). Returns the path of
    NAME.npz, which appears only when all files are complete.

    Raises:
        UserError: there is no recipe, the files exist already, or the directory cannot be written or is too small.
    """
    made = recipe(name)
    if shows_images(name):
        use_renderer(name)  # here, and not in each worker
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
    walker = {"walker": dict(Walker.load(made.settings["walker"]).about)} if "walker" in made.settings else {}
    how = {  # the settings that determine an episode, besides its number
        "collected_by": "floq " + version("floq"),
        "procedure": {"expert": made.expert.__name__, "rows": made.rows, **made.settings},
        **walker,
        "seed": seed,
        "versions": {package: version(package) for package in ("ogbench", "mujoco", "gymnasium", "numpy")},
        "python": platform.python_version(),
    }
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
    missing = [number for number in range(total) if not zipfile.is_zipfile(parts / PART.format(number))]
    expert = functools.partial(made.expert, made.name, made.rows, seed, **made.settings)
    with Workers(expert, [()] * min(workers, len(missing))) as pool:
        on_progress(done := total - len(missing), total)
        for index, rows in pool.map("episode", missing):
            path = parts / PART.format(missing[index])
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
        own = [parts / PART.format(number) for number in numbers]
        _concatenate_parts(own, parts / file_name, compressed=not shows_images(name))
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


def _save_part(path: Path, rows: Rows) -> None:
    partial, arrays = path.with_suffix(".tmp"), dict[str, Any](rows)
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; the same command goes on where it stopped") from error


def _concatenate_parts(parts: Sequence[Path], path: Path, compressed: bool) -> None:
    """Write the rows of all parts, which have equally many, as one npz, with one part in memory at a time."""

    def read(part: Path, key: str) -> np.ndarray:
        with np.load(part, allow_pickle=False) as rows:
            return rows[key]

    with np.load(parts[0], allow_pickle=False) as first:
        headers = {key: np.lib.format.header_data_from_array_1_0(np.ascontiguousarray(x)) for key, x in first.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        for key, header in headers.items():
            rows, *row = header["shape"]
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header | {"shape": (rows * len(parts), *row)})
                for part in parts:
                    file.write(read(part, key).tobytes())
