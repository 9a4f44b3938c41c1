"""What an observation is. Whoever makes networks or arrays for observations asks here, and assumes nothing else.

Data, replay and worker processes move observations as rows of one array, and know nothing of cameras. A vector is its
own row, of float32. Named parts are laid end to end in the order of their names, as NumPy lays out a record: the row is
its bytes, so that pictures stay uint8 and a file of rows can be mapped into memory.
"""

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from floq.utils.errors import UserError

Shape: TypeAlias = tuple[int, ...]
GRID = 8
IMAGE = "image"  # the name of an image that is all of an observation


@dataclass(frozen=True)
class ObsSpec:
    """Specification of one observation: a vector of numbers (float32), an image (H, W, C) of uint8, or named parts of
    these. `parts` has names and shapes, in the order of the names; a vector alone has no name.

    With `frames` above 1 an observation is that many of these in sequence, the newest last: vectors are concatenated,
    and images along their channels. `encoder` names the network that reads images.
    """

    parts: tuple[tuple[str, Shape], ...]
    frames: int = 1
    encoder: str | None = None

    @classmethod
    def of(cls, given: "ObsSpec | int | Mapping[str, Shape]") -> "ObsSpec":
        """Return the specification that is given, that of a vector whose dimension is given, or that of named parts
        whose shapes are. Raises TypeError for anything else, UserError if a part is neither vector nor image."""
        if isinstance(given, ObsSpec):
            return given
        if not isinstance(given, Mapping):
            return cls((("", (operator.index(given),)),))
        for name, shape in given.items():
            if len(shape) not in (1, 3):
                raise UserError(f"observations/{name} has shape {shape}: a part is a vector, or an image (H, W, C)")
        return cls(tuple(sorted((name, tuple(map(int, shape))) for name, shape in given.items())))

    @classmethod
    def of_rows(cls, observations: np.ndarray) -> "ObsSpec":
        """Return what the rows of an array are: records with a field for each part, or vectors (rows, dim)."""
        if observations.dtype.fields is None:
            return cls.of(observations.shape[1])
        return cls.of({name: field[0].shape for name, field in observations.dtype.fields.items()})

    def stacked(self, frames: int) -> "ObsSpec":
        """Return the specification of `frames` such observations in sequence."""
        return replace(self, frames=frames)

    def encoded_by(self, encoder: str | None) -> "ObsSpec":
        """Return the same, with images read by this encoder."""
        return replace(self, encoder=encoder)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the parts that are images."""
        return tuple(name for name, shape in self.parts if len(shape) == 3)

    def vectors(self, parts: Any) -> Any:
        """Return those of the parts, a mapping or records, that are vectors; a vector alone as it is."""
        if self.is_vector:
            return parts
        return {name: parts[name] for name, shape in self.parts if len(shape) == 1}

    @property
    def is_vector(self) -> bool:
        """Whether an observation is a vector alone."""
        return self.parts[0][0] == ""

    @property
    def dim(self) -> int:
        """Dimension of a vector. Raises UserError if an observation is none: then a network needs an encoder."""
        if not self.is_vector:
            raise UserError(f"these networks read a vector, and an observation is {self}: give them an encoder")
        return self.parts[0][1][0] * self.frames

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the parts of an observation, all frames together."""
        return {name: (*shape[:-1], shape[-1] * self.frames) for name, shape in self.parts}

    @cached_property
    def record(self) -> np.dtype:
        """The type of one frame as a record with a field for each part."""
        return np.dtype([(name, np.uint8 if len(shape) == 3 else np.float32, shape) for name, shape in self.parts])

    @property
    def frame_shape(self) -> Shape:
        """Shape of the row of one frame."""
        return self.parts[0][1] if self.is_vector else (self.record.itemsize,)

    @property
    def shape(self) -> Shape:
        """Shape of one observation's row."""
        return (self.frame_shape[0] * self.frames,)

    @property
    def dtype(self) -> np.dtype:
        """Type of a row's numbers: float32 for a vector, otherwise the bytes of records."""
        return np.dtype(np.float32 if self.is_vector else np.uint8)

    def zeros(self, *batch: int) -> np.ndarray:
        """Make rows that are all zero, one or a batch of this shape."""
        return np.zeros((*batch, *self.shape), self.dtype)

    def to_rows(self, observations: np.ndarray) -> np.ndarray:
        """Return the rows of records or vectors; arrays of rows are returned as they are."""
        if observations.dtype.fields is None:
            return observations
        rows = np.ascontiguousarray(observations).view(np.uint8)
        return rows.reshape(*observations.shape, self.record.itemsize)

    def to_records(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows (..., size) of single frames as records, or as vectors where observations are these."""
        return rows if self.is_vector else np.ascontiguousarray(rows).view(self.record)[..., 0]

    def newest(self, rows: Any) -> Any:
        """Return the rows of the newest frames."""
        return rows[..., -self.frame_shape[0] :]

    def read(self, observation: Any) -> Any:
        """Return a vector as it is, and otherwise the parts by name, images still of uint8, from a row (..., size), a
        mapping of parts, or an image that is all. Works on arrays of NumPy and of JAX, and within jit.

        Raises UserError if a part is missing or unknown, or of another shape.
        """
        if self.is_vector:
            return observation
        if not isinstance(observation, Mapping):
            if observation.shape[-1:] == self.shape and observation.dtype == np.uint8:
                return self._unpack(observation)
            observation = {IMAGE: observation}
        if given := set(observation) ^ {name for name, _ in self.parts}:
            raise UserError(f"an observation is {self}: {', '.join(sorted(given))} is missing, or too much")
        for name, shape in self.shapes.items():
            if observation[name].shape[-len(shape) :] != shape:
                raise UserError(f"observations/{name} has shape {observation[name].shape}, this agent takes {shape}")
        return dict(observation)

    @property
    def num_numbers(self) -> int:
        """How many numbers an observation has, pixels among them."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def of_numbers(self, numbers: Any) -> Any:
        """Return the vector, or the parts by name, of an observation whose numbers are given end to end (n,), pixels
        from 0 to 255."""
        if self.is_vector:
            return numbers
        parts, begin = {}, 0
        for name, shape in self.shapes.items():
            parts[name] = numbers[begin : begin + math.prod(shape)].reshape(shape)
            begin += math.prod(shape)
        return parts

    def coarse(self, rows: np.ndarray) -> np.ndarray:
        """Return observations (n, size) as a few numbers each, to compare them by: vectors as they are, and of images
        the means over a grid of up to `GRID` x `GRID` blocks, from 0 to 1."""
        if self.is_vector:
            return rows
        parts, found = self.read(rows), []
        for name, part in parts.items():
            if name in self.images:
                edges = [np.unique(np.linspace(0, size, GRID + 1).astype(int)) for size in part.shape[1:3]]
                blocks = (part[:, a:b, c:d] for a, b in pairwise(edges[0]) for c, d in pairwise(edges[1]))
                found += [block.mean(axis=(1, 2)) / 255 for block in blocks]
            else:
                found.append(part)
        return np.concatenate(found, axis=1, dtype=np.float32)

    def pack(self, parts: Mapping[str, Any]) -> np.ndarray:
        """Return the row of one frame from its parts."""
        record = np.zeros((), self.record)
        for name, _ in self.parts:
            record[name] = parts[name]
        return self.to_rows(record)

    def _unpack(self, rows: Any) -> dict[str, Any]:
        batch = rows.shape[:-1]
        frames = rows.reshape(*batch, self.frames, -1)
        parts, begin = {}, 0
        for name, shape in self.parts:
            kind = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
            end = begin + math.prod(shape) * kind.itemsize
            part = frames[..., begin:end] if kind == np.uint8 else _floats(frames[..., begin:end])
            part = part.reshape(*batch, self.frames, *shape)
            if self.frames == 1:
                part = part.reshape(*batch, *shape)
            else:  # the frames beside each other, along the last axis
                axis = len(batch)
                order = (*range(axis), *range(axis + 1, part.ndim - 1), axis, part.ndim - 1)
                part = part.transpose(order).reshape(*batch, *shape[:-1], shape[-1] * self.frames)
            parts[name], begin = part, end
        return parts

    def to_json(self) -> dict[str, list[int]]:
        """Return the parts of one frame for a JSON file."""
        return {name: list(shape) for name, shape in self.parts}

    def __str__(self) -> str:
        if self.is_vector:
            return f"{self.dim} numbers"
        return ", ".join(f"{name} ({'x'.join(map(str, shape))})" for name, shape in self.shapes.items())


def channels_first(shape: Shape) -> bool:
    """Return whether this can only be the shape (C, H, W) of an image."""
    return shape[0] in (1, 3, 4) and shape[2] > 4


def _floats(rows: Any) -> Any:
    """Return the numbers whose bytes these are, (..., 4 n) to (..., n)."""
    if isinstance(rows, np.ndarray):
        return np.ascontiguousarray(rows).view(np.float32)
    import jax  # worker processes, which do without it, import this file

    return jax.lax.bitcast_convert_type(rows.reshape(*rows.shape[:-1], -1, 4), np.float32)
