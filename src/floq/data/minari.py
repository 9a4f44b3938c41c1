"""Minari datasets, by id from the local store or by path."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.data.files import check_size
from floq.errors import UserError


def read(name: str) -> Trajectories:
    """The trajectories of a Minari dataset such as `mujoco/hopper/medium-v0`, or of a folder that holds one. Dictionary
    observations are laid end to end in the order of their keys, as Gymnasium's `FlattenObservation` does. Actions are
    mapped from the limits of the dataset's action space to [-1, 1], as `floq.envs.make` does for an environment.

    Raises:
        UserError: Minari is missing, there is no such dataset, or it holds wrong data.
    """
    try:
        import minari
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(f"{name}: reading Minari datasets needs Minari: pip install 'floq[minari]'") from error
    folder = next((f for f in (Path(name), get_dataset_path(name)) if (f / "data").is_dir()), None)
    if folder is None:
        raise UserError(
            f"{name}: no such Minari dataset in the local store, nor a file or folder; fetch it with "
            f"`minari download {name}`"
        )
    try:
        _check_spaces(folder)
        _check_size(folder, name)
        dataset = minari.MinariDataset(folder / "data")
        box: Any = dataset.spec.action_space
        low, high = (np.asarray(getattr(box, end, np.nan), np.float64) for end in ("low", "high"))
        return from_episodes(_episodes(dataset, low, high), name)
    except UserError:
        raise
    except Exception as error:  # damaged HDF5 and JSON raise nearly anything, Minari's assertions among it
        raise UserError(f"{name} cannot be read ({error!r}): delete {folder} and fetch it again") from error


def _check_spaces(folder: Path) -> None:
    """Raises UserError if a dataset does not say what its spaces are. Minari would then make the environment that the
    metadata name, and so call whatever function a stranger wrote there."""
    metadata = json.loads((folder / "data" / "metadata.json").read_text())
    if not all(isinstance(metadata.get(key), str) for key in ("observation_space", "action_space")):
        raise UserError(f"{folder}: its metadata lack the spaces of observations and actions, it is not read")


def _check_size(folder: Path, name: str) -> None:
    file = folder / "data" / "main_data.hdf5"
    if not file.exists():  # Minari's other format, Arrow, is read by memory map
        return
    import h5py

    sizes: list[int] = []
    with h5py.File(file, "r") as stored:
        stored.visititems(lambda _, x: sizes.append(x.size * x.dtype.itemsize) if isinstance(x, h5py.Dataset) else None)
    check_size(sum(sizes), name)


def _episodes(dataset: Any, low: np.ndarray, high: np.ndarray) -> Iterator[Mapping[str, Any]]:
    bounded = bool(np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all())
    rescale = bounded and bool((low != -1).any() or (high != 1).any())
    for episode in dataset.iterate_episodes():
        actions = np.asarray(episode.actions)
        yield {
            "observations": _flat(episode.observations),
            "actions": 2 * (actions - low) / (high - low) - 1 if rescale and actions.dtype.kind == "f" else actions,
            "rewards": episode.rewards,
            "terminations": episode.terminations,
        }


def _flat(observations: Any) -> np.ndarray:
    """Observations as (rows, size)."""
    if isinstance(observations, Mapping):
        return np.concatenate([_flat(observations[key]) for key in sorted(observations)], axis=1)
    if isinstance(observations, tuple):
        return np.concatenate([_flat(part) for part in observations], axis=1)
    array = np.asarray(observations)
    return array.reshape(len(array), -1)
