"""What an observation is. Whoever makes networks or arrays for observations asks here, and assumes nothing else."""

import operator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ObsSpec:
    """Specification of one observation: a vector of `dim` numbers (float32)."""

    dim: int

    @classmethod
    def of(cls, given: "ObsSpec | int") -> "ObsSpec":
        """Return the specification that is given, or that of a vector whose dimension is given; else TypeError."""
        return given if isinstance(given, ObsSpec) else cls(operator.index(given))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation."""
        return (self.dim,)

    def zeros(self, *batch: int) -> np.ndarray:
        """Make observations that are all zero, one or a batch of this shape."""
        return np.zeros((*batch, *self.shape), np.float32)
