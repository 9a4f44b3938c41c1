"""LeRobot folders (versions 2 and 3) whose images lie in the parquet files, read with pyarrow; no package of LeRobot is
imported. Videos are not decoded."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import OpenedDataset, from_episodes
from floq.data.formats.files import decode_images
from floq.data.formats.tables import column, load
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.utils.errors import UserError, nearest
from floq.utils.untrusted import check_size, read_json

SUFFIXES = ()
OPTIONS = ("obs_keys",)
INFO, PREFIX = Path("meta") / "info.json", "observation."
REWARD, SUCCESS, EPISODE, ACTION = "next.reward", "next.success", "episode_index", "action"
KINDS = ("float32", "float64", "int32", "int64", "bool")


def takes(path: Path) -> bool:
    """Return whether a folder says in its meta/info.json that LeRobot wrote it."""
    return (path / INFO).is_file() and (path / "data").is_dir()


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read a LeRobot folder: all of `observation.`, or those in `obs_keys`, the rewards in `next.reward`, and true
    terminations in `next.success`; an episode that ends without it is cut off, and its last transition, whose next
    state was not recorded, left out.

    Raises:
        UserError: pyarrow is missing, a file is missing or damaged, there are no rewards, or an observation is a video.
    """
    features = _features(path)
    if ACTION not in features or REWARD not in features:
        lacking = REWARD if ACTION in features else ACTION
        raise UserError(f"{path} has no {lacking}: floq learns from rewards, add them as a column of that name")
    keys = options.obs_keys or tuple(sorted(name for name in features if name.startswith(PREFIX)))
    readable = [name for name in sorted(features) if name.startswith(PREFIX) and _is_readable(features[name])]
    for key in keys:
        if key not in features:
            raise UserError(f"{path} has no {key}{nearest(key, features)}: it has {', '.join(sorted(features))}")
        if not _is_readable(features[key]):
            raise UserError(
                f"{path}: {key} is of type {features[key].get('dtype')!r}, floq reads numbers, and images in the "
                f"parquet files: name those to use, as in --obs_keys {' '.join(readable)}"
            )
    if not keys:
        raise UserError(f"{path} has no {PREFIX}*: there is nothing to observe")
    files = sorted((path / "data").rglob("*.parquet"))
    names = [*keys, ACTION, REWARD, EPISODE, *([SUCCESS] if SUCCESS in features else [])]
    labels: list[str] = []
    episodes = _episodes(path, files, names, keys, features, labels)
    data = from_episodes(episodes, str(path), labels, options.changes_actions)
    note = () if SUCCESS in features else (f"no {SUCCESS}: all episodes are read as cut off, none as terminated",)
    return OpenedDataset(data, True, str(path), notes=note)


def _features(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Return the descriptions of the columns, by name."""
    try:
        features = read_json(path / INFO)["features"]
        for name, feature in features.items():
            if not all(type(size) is int and size > 0 for size in [*feature["shape"], 1]):
                raise ValueError(f"{name} has the shape {feature['shape']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path / INFO} cannot be read ({error}): fetch it again") from error
    return features


def _is_readable(feature: Mapping[str, Any]) -> bool:
    return feature.get("dtype") in KINDS or feature.get("dtype") == "image"


def _episodes(
    path: Path,
    files: Sequence[Path],
    names: Sequence[str],
    keys: Sequence[str],
    features: Mapping[str, Mapping[str, Any]],
    labels: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield the episodes of all files, and add their names to `labels`. An episode lies in one file."""
    held = 0
    for file in files:
        table = load(file, names, held)
        if missing := [name for name in names if name not in table.column_names]:
            raise UserError(f"{file} lacks the column {missing[0]}, which {INFO} names")
        images = [key for key in keys if features[key]["dtype"] == "image"]
        check_size(held + table.nbytes, path)
        numbers = np.asarray(column(table, EPISODE, str(file)), int)
        for first, last in _runs(numbers):
            rows, where = table.slice(first, last - first), f"{file.name}, episode {numbers[first]}"
            obs: dict[str, Any] = {}
            for key in keys:
                name = key.removeprefix(PREFIX)
                obs[name] = _images(rows, key, where) if key in images else _vectors(rows, key, where)
                held += obs[name].nbytes * (key not in images)
            check_size(held + table.nbytes, path)
            done = np.ravel(column(rows, SUCCESS, where)).astype(bool) if SUCCESS in names else False
            labels.append(where)
            yield {
                "observations": obs if len(obs) > 1 or images else next(iter(obs.values())),
                "actions": _vectors(rows, ACTION, where),
                "rewards": np.ravel(column(rows, REWARD, where)),
                "terminations": done,
            }


def _runs(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Return the first row of each run of equal numbers, and the first after it."""
    borders = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    return [(int(a), int(b)) for a, b in itertools.pairwise(borders) if a < b]


def _vectors(rows: Any, key: str, where: str) -> np.ndarray:
    return column(rows, key, where).reshape(len(rows), -1)


def _images(rows: Any, key: str, where: str) -> np.ndarray:
    """Return a column of images (rows, H, W, C), each the bytes of a PNG or JPEG file."""
    cells = rows.column(key).to_pylist()
    contents: list[Any] = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    if not all(isinstance(content, bytes) for content in contents):
        raise UserError(f"{where}: {key} keeps its images outside of the parquet files: write them into these")
    return decode_images(contents, len(contents), f"{where}: {key}")
