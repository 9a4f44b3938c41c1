"""A policy that walks in a given direction, as it is shipped with floq. No JAX in here: worker processes import it.

It is the actor of a run on OGBench's directed task (`floq train --env_name=online-ant-xy-v0`), a squashed Gaussian, of
which the mode is taken; `benchmarks/walker.py` measures one, and writes the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file


class Walker(NamedTuple):
    """tanh of a network's first half of outputs; GELU between its layers. Each layer is a matrix and a bias."""

    layers: Sequence[tuple[np.ndarray, np.ndarray]]
    about: Mapping[str, str]  # how it was made

    @classmethod
    def load(cls, name: str) -> "Walker":
        """The one in a file that `save` has written, or that floq brings along under this name."""
        path = name if name.endswith(".safetensors") else str(Path(__file__).with_name(f"{name}.safetensors"))
        with safetensors.safe_open(path, framework="numpy") as file:
            numbers = range(len(file.keys()) // 2)
            layers = [(file.get_tensor(f"weight{i}"), file.get_tensor(f"bias{i}")) for i in numbers]
            return cls(layers, file.metadata() or {})

    def save(self, path: Path) -> None:
        """Write it to a file, with how it was made in the file's header."""
        arrays = {}
        for i, (weight, bias) in enumerate(self.layers):
            arrays |= {f"weight{i}": np.ascontiguousarray(weight), f"bias{i}": np.ascontiguousarray(bias)}
        save_file(arrays, path, dict(self.about))

    def act(self, obs: np.ndarray) -> np.ndarray:
        """An action in [-1, 1] for an observation that ends in the direction to walk in, (x, y) of length 1."""
        x = obs.astype(np.float32)
        *hidden, (weight, bias) = self.layers
        for matrix, shift in hidden:
            x = _gelu(x @ matrix + shift)
        mean, _ = np.split(x @ weight + bias, 2)
        return np.tanh(mean)


def _gelu(x: np.ndarray) -> np.ndarray:
    """In its tanh form, as in training."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi).astype(np.float32) * (x + 0.044715 * x**3)))
