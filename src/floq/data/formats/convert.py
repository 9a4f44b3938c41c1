"""Write trajectories as another format: an npz in OGBench's layout, or a Minari dataset."""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Dict

from floq.data.arrays import Trajectories, as_float32, bounds
from floq.data.formats.npz import PARTS_KEY
from floq.utils.errors import UserError
from floq.utils.files import check_writable, looks_like_path, remove_empty, user_path
from floq.utils.machine import version
from floq.utils.obs_spec import IMAGE, ObsSpec

MINARI_ID = r"([-\w]+/)*[-\w]+-v\d+"
MINARI_STORE = "MINARI_DATASETS_PATH"  # variable of the folder in which Minari keeps its datasets


def convert(data: Trajectories, has_rewards: bool, target: str, source: str, parts: Sequence[str] = ()) -> Path:
    """Write trajectories, what `open_dataset` returns, to `target`, whole or not at all. Returns the file or folder.

    A target is FILE.npz, which keeps the names of `parts`; a Minari id such as `lab/robot-v0`, for the local store; or
    the path of a new Minari folder, which begins with `/`, `.` or `~` and ends in a version, as in `./robot-v0`; its
    description names the `source`.

    Raises:
        UserError: the data has no rewards, the target exists already or is not of these forms, or Minari is missing.
    """
    check_target(target)
    if not has_rewards:
        raise UserError(f"{source} has no rewards to convert: name a task, as in cube-single-play-singletask-v0")
    data = as_float32(data, source)
    return to_npz(data, user_path(target), parts) if target.endswith(".npz") else to_minari(data, target, source)


def check_target(target: str) -> None:
    """Raise UserError if `convert` could not write to `target`."""
    is_path, is_npz = looks_like_path(target), target.endswith(".npz")
    if not is_npz and not re.fullmatch(MINARI_ID, Path(target).name if is_path else target):
        raise UserError(
            f"{target}: write FILE.npz for OGBench's layout, or for Minari an id or a ./FOLDER that ends in a version, "
            "as in lab/robot-v0"
        )
    if is_path or is_npz:
        _check_free(user_path(target))


def to_npz(data: Trajectories, path: Path, parts: Sequence[str] = ()) -> Path:
    """Write an npz in OGBench's layout: one row per state, `terminals` marks each trajectory's last row. Rewards and
    masks are added, which the benchmark's files do not have and its loader ignores; floq reads them."""
    names = ("observations", "actions", "rewards", "masks", "terminals")
    arrays: dict[str, Any] = {key: x for key, x in zip(names, data, strict=True) if key != "observations"}
    arrays = {key: x.astype(np.float32, copy=False) for key, x in arrays.items()} | _observations(data)
    if parts and data.dims[0].is_vector:
        arrays[PARTS_KEY] = np.array(parts)
    with _written_whole(path) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            (np.savez_compressed if data.dims[0].is_vector else np.savez)(file, **arrays)  # images are mapped
        partial.replace(path)
    return path


def to_minari(data: Trajectories, target: str, source: str) -> Path:
    """Write a Minari dataset, one episode for each trajectory. `terminations` is true wherever the mask is 0: in
    OGBench's tasks at each step that solves the task, the last or not."""
    try:
        import minari
        from minari.namespace import create_namespace, list_local_namespaces
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(f"{target}: writing Minari datasets needs Minari: pip install 'floq[minari]'") from error

    is_id = re.fullmatch(MINARI_ID, target) is not None
    path = (get_dataset_path(target) if is_id else user_path(target)).absolute()  # Minari fails on relative ones
    name, store = target if is_id else path.name, os.environ.get(MINARI_STORE)
    with _written_whole(path) as partial, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata that is not given
        os.environ[MINARI_STORE] = str(partial)
        try:
            minari.create_dataset_from_buffers(
                name,
                _episodes(data),  # pyright: ignore[reportArgumentType]
                observation_space=_space(data.dims[0]),
                action_space=Box(-1, 1, data.actions.shape[1:], np.float32),
                description=f"{source}, converted by floq {version('floq')}",
            )
        finally:
            del os.environ[MINARI_STORE]
            os.environ |= {} if store is None else {MINARI_STORE: store}
        (partial / name).replace(path)
    namespace = name.rpartition("/")[0]
    if is_id and namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)
    return path


def _observations(data: Trajectories) -> dict[str, np.ndarray]:
    """Return the observations as arrays of an npz file: one if they are vectors or an image alone, otherwise one for
    each part, called `observations/NAME`."""
    found = _natural(data.observations)
    if isinstance(found, dict):
        return {f"observations/{name}": x for name, x in found.items()}
    return {"observations": found if found.dtype == np.uint8 else found.astype(np.float32, copy=False)}


def _natural(observations: np.ndarray) -> Any:
    """Return records as arrays by name, an image alone as an array (rows, H, W, C), vectors as they are."""
    if observations.dtype.fields is None:
        return observations
    parts = {name: observations[name] for name in observations.dtype.fields}
    return parts[IMAGE] if parts.keys() == {IMAGE} else parts


def _space(spec: ObsSpec) -> Any:
    """Return the space of observations."""
    if spec.is_vector:
        return Box(-np.inf, np.inf, spec.shape, np.float32)
    part = lambda shape: Box(0, 255, shape, np.uint8) if len(shape) == 3 else Box(-np.inf, np.inf, shape, np.float32)  # noqa: E731
    parts: dict[str, Any] = {name: part(shape) for name, shape in spec.parts}
    return parts[IMAGE] if parts.keys() == {IMAGE} else Dict(parts)


def _episodes(data: Trajectories) -> Iterator[Any]:
    from minari.data_collector import EpisodeBuffer

    for begin, end in zip(*bounds(data), strict=True):
        if begin == end:
            continue
        terminations = data.masks[begin:end] == 0
        arrays: dict[str, Any] = {
            "observations": _natural(data.observations[begin : end + 1]),
            "actions": data.actions[begin:end],
            "rewards": data.rewards[begin:end],
            "terminations": terminations,
            "truncations": (np.arange(begin, end) == end - 1) & ~terminations,
        }
        yield EpisodeBuffer(**arrays)


@contextlib.contextmanager
def _written_whole(path: Path) -> Iterator[Path]:
    """Yield the path at which to write what is then renamed to `path`; afterwards nothing else is left, nor on failure.
    Raises UserError if `path` exists already or cannot be written."""
    _check_free(path)
    partial = path.with_name(f".{path.name}.partial")
    missing = [folder for folder in path.parents if not os.path.exists(folder)]
    try:
        yield partial
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)
        remove_empty(missing)


def _check_free(path: Path) -> None:
    if os.path.exists(path):
        raise UserError(f"{path} exists already: delete it, or write to another name")
    check_writable(path.parent, "write to another folder")
