"""Minari datasets, by id from the local store or by path."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.data.files import check_size
from floq.errors import UserError

METADATA, EPISODES = "data/metadata.json", "data/main_data.hdf5"


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a Minari dataset."""
    return (folder / METADATA).is_file()


def stored(name: str) -> Path:
    """The folder of a dataset in the local store, such as `mujoco/hopper/medium-v0`.

    Raises:
        UserError: Minari is missing, or there is no such dataset.
    """
    try:
        from minari.storage import get_dataset_path
    except ImportError as error:
        raise UserError(
            f"{name} is not a file, a folder or an OGBench dataset; to read it as a Minari dataset, pip install "
            "'floq[minari]'"
        ) from error
    folder = get_dataset_path(name)
    if not is_dataset(folder):
        raise UserError(
            f"{name}: no such Minari dataset in the local store, nor a file or folder; fetch it with "
            f"`minari download {name}`"
        )
    return folder


def read(folder: Path) -> Trajectories:
    """The trajectories of the Minari dataset in `folder`. Observations that are dictionaries or tuples are laid end to
    end in the order of their space, and actions are mapped from its limits to [-1, 1], as `floq.envs.make` does.

    Raises:
        UserError: Minari is missing, or the dataset is damaged or holds wrong data.
    """
    try:
        import minari
    except ImportError as error:
        raise UserError(f"{folder}: reading Minari datasets needs Minari: pip install 'floq[minari]'") from error
    try:
        _check_spaces(folder)
        _check_size(folder)
        dataset = minari.MinariDataset(folder / "data")
        return from_episodes(_episodes(dataset, *_limits(dataset.spec.action_space, folder)), str(folder))
    except UserError:
        raise
    except Exception as error:  # damaged HDF5 and JSON raise nearly anything, Minari's assertions among it
        raise UserError(f"{folder} is damaged, or no Minari dataset ({error!r}): fetch it again") from error


def _check_spaces(folder: Path) -> None:
    """Raises UserError if a dataset does not say what its spaces are. Minari would then make the environment that the
    metadata name, and so call whatever function a stranger wrote there."""
    metadata = json.loads((folder / METADATA).read_text())
    if not all(isinstance(metadata.get(key), str) for key in ("observation_space", "action_space")):
        raise UserError(f"{folder}: its metadata lack the spaces of observations and actions, it is not read")


def _check_size(folder: Path) -> None:
    file = folder / EPISODES
    if not file.exists():  # Minari's other format, Arrow, is read by memory map
        return
    import h5py

    sizes: list[int] = []
    with h5py.File(file, "r") as stored:
        stored.visititems(lambda _, x: sizes.append(x.size * x.dtype.itemsize) if isinstance(x, h5py.Dataset) else None)
    check_size(sum(sizes), folder)


def _limits(space: Any, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The limits of the actions; -1 and 1 where the space does not bound them, so that they are left as they are."""
    from gymnasium.spaces import Box

    if not (isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)):
        raise UserError(f"{folder}: floq needs a vector of continuous actions, this dataset has {space}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    bounded = np.isfinite(low) & np.isfinite(high) & (low < high)
    return np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)


def _episodes(dataset: Any, low: np.ndarray, high: np.ndarray) -> Iterator[Mapping[str, Any]]:
    as_they_are = (low == -1).all() and (high == 1).all()
    for episode in dataset.iterate_episodes():
        actions = np.asarray(episode.actions)
        yield {
            "observations": _flat(dataset.spec.observation_space, episode.observations),
            "actions": actions if as_they_are else 2 * (actions - low) / (high - low) - 1,
            "rewards": episode.rewards,
            "terminations": episode.terminations,
        }


def _flat(space: Any, observations: Any) -> np.ndarray:
    """Observations as (rows, size), in the order in which Gymnasium flattens their space."""
    from gymnasium import spaces

    if isinstance(space, spaces.Dict):
        return np.concatenate([_flat(part, observations[key]) for key, part in space.spaces.items()], axis=1)
    if isinstance(space, spaces.Tuple):
        parts = zip(space.spaces, observations, strict=True)
        return np.concatenate([_flat(part, values) for part, values in parts], axis=1)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[np.asarray(observations).astype(int) - int(space.start)]
    array = np.asarray(observations)
    return array.reshape(len(array), -1)
