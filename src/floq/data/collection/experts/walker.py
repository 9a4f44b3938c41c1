"""Policies, shipped with floq, that walk in a given direction. No JAX in here: worker processes import it.

They are actors of runs on OGBench's directed task (`floq train --env_name=online-ant-xy-v0`): squashed Gaussians, of
which the mode is taken. `benchmarks/walker.py` evaluates one, and writes the file.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from floq.utils.errors import UserError
from floq.utils.untrusted import read_tensors


class Walker(NamedTuple):
    """Network with GELU between its layers; an action is tanh of the first half of the outputs. Each layer is a matrix
    and a bias."""

    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    about: Mapping[str, str]  # how it was made

    @classmethod
    def load(cls, name: str) -> "Walker":
        """Load a walker from a file that `save` has written, or the one shipped under this name. Raises UserError if it
        is no such file."""
        path = Path(name) if name.endswith(".safetensors") else Path(__file__).with_name(f"{name}.safetensors")
        try:
            stored, about = read_tensors(path)
            if any(x.dtype != np.float32 for x in stored.values()):
                raise ValueError("its numbers are no 32-bit floats")
            layers = [(stored[f"weight{i}"], stored[f"bias{i}"]) for i in range(max(1, len(stored) // 2))]
            widths = [weight.shape for weight, _ in layers]
            fit = all(out == into for (_, out), (into, _) in itertools.pairwise(widths))
            if not fit or any(bias.shape != weight.shape[1:] for weight, bias in layers) or widths[-1][1] % 2:
                raise ValueError("its layers do not fit each other")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} is no walker ({error}): benchmarks/walker.py writes one") from error
        return cls(layers, about)

    def save(self, path: Path) -> None:
        """Write the network to a file, with `about` in the file's header."""
        arrays = {}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight{i}": np.ascontiguousarray(weight), f"bias{i}": np.ascontiguousarray(bias)}
        save_file(arrays, path, dict(self.about))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """Return an action in [-1, 1]; the observation ends in the direction to walk in, (x, y) of length 1."""
        x = obs.astype(np.float32)
        *hidden, (weight, bias) = self.layers
        for matrix, shift in hidden:
            x = _gelu(x @ matrix + shift)
        mean, _ = np.split(x @ weight + bias, 2)
        return np.tanh(mean)


def _gelu(x: np.ndarray) -> np.ndarray:
    """Compute GELU in its tanh form, as in training."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x**3)))
