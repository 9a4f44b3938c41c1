"""Minari datasets, by id from the local store or by path."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import Trajectories, from_episodes
from floq.errors import UserError


def read(name: str) -> Trajectories:
    """The trajectories of a Minari dataset such as `mujoco/hopper/medium-v0`, or of a folder that holds one. Dictionary
    observations are laid end to end in the order of their keys, as Gymnasium's `FlattenObservation` does.

    Raises:
        UserError: Minari is missing, there is no such dataset, or it holds wrong data.
    """
    try:
        import minari
    except ImportError as error:
        raise UserError(f"{name}: reading Minari datasets needs Minari: pip install 'floq[minari]'") from error
    try:
        if (Path(name) / "data").is_dir():
            dataset = minari.MinariDataset(Path(name) / "data")
        else:
            dataset = minari.load_dataset(name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{name}: no such Minari dataset in the local store ({error}); fetch it with `minari download {name}`"
        ) from error
    return from_episodes(_episodes(dataset), name)


def _episodes(dataset: Any) -> Iterator[Mapping[str, Any]]:
    for episode in dataset.iterate_episodes():
        yield {
            "observations": _flat(episode.observations),
            "actions": episode.actions,
            "rewards": episode.rewards,
            "terminations": episode.terminations,
        }


def _flat(observations: Any) -> np.ndarray:
    """Observations as (rows, size)."""
    if isinstance(observations, Mapping):
        parts = [_flat(observations[key]) for key in sorted(observations)]
        return np.concatenate(parts, axis=1)
    array = np.asarray(observations)
    return array.reshape(len(array), -1)
