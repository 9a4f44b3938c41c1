"""Encoders: from an observation with images to a vector, which other networks read in place of it.

Source: IMPALA (arXiv 1802.01561, figure 3), in the sizes of FQL (arXiv 2502.02538): stacks of a convolution, a pooling
that halves the image, and residual blocks of two convolutions; then one hidden layer. Vectors are appended as they are.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.networks.mlp import Linear
from floq.utils.obs_spec import ObsSpec

Image: TypeAlias = Float[Array, "h w c"]
Features: TypeAlias = Float[Array, "out_h out_w out_c"]


Obs: TypeAlias = Float[Array, " obs"] | dict[str, Float[Array, "..."]]
"""What networks that may have an encoder read: a vector, or parts by name, images with values from 0 to 1."""


class Size(NamedTuple):
    """Size of an encoder: channels of each stack, residual blocks in each, and features of an image."""

    channels: tuple[int, ...]
    blocks: int
    features: int


EncoderName: TypeAlias = Literal["impala", "impala_small", "impala_debug", "impala_large"]
ENCODERS: dict[str, Size] = {
    "impala": Size((16, 32, 32), 2, 512),
    "impala_small": Size((16, 32, 32), 1, 512),
    "impala_debug": Size((4, 4), 1, 512),
    "impala_large": Size((64, 128, 128), 2, 1024),
}
"""By FQL's names."""
DEFAULT: EncoderName = "impala_small"


class Conv(eqx.Module):
    """Convolution of 3 x 3 pixels that keeps the size; biases are initialised to zero."""

    weight: Float[Array, "3 3 c_in c_out"]
    bias: Float[Array, " c_out"]

    @classmethod
    def init(cls, key: PRNGKeyArray, c_in: int, c_out: int) -> "Conv":
        """Initialise the layer, uniform as published (Glorot). Consumes `key`."""
        return cls(jax.nn.initializers.xavier_uniform()(key, (3, 3, c_in, c_out)), jnp.zeros(c_out))

    def __call__(self, x: Image) -> Features:
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x[None], self.weight, (1, 1), "SAME", dimension_numbers=layout)
        return y[0] + self.bias[None, None]


class Stack(eqx.Module):
    """Convolution, max pooling of 3 x 3 with stride 2, residual blocks."""

    entry: Conv
    blocks: tuple[tuple[Conv, Conv], ...]

    @classmethod
    def init(cls, key: PRNGKeyArray, c_in: int, c_out: int, num_blocks: int) -> "Stack":
        """Initialise all layers. Consumes `key`."""
        first, *keys = jax.random.split(key, 1 + 2 * num_blocks)
        convs = [Conv.init(k, c_out, c_out) for k in keys]
        return cls(Conv.init(first, c_in, c_out), tuple(zip(convs[::2], convs[1::2], strict=True)))

    def __call__(self, x: Image) -> Features:
        x = max_pool(self.entry(x))
        for first, second in self.blocks:
            x = x + second(jax.nn.relu(first(jax.nn.relu(x))))
        return x


def max_pool(x: Image) -> Features:
    """Return the largest of each 3 x 3 pixels, with stride 2, (h, w, c) to (ceil(h / 2), ceil(w / 2), c): first along
    columns, then along rows, which CPUs compute and differentiate faster than a window."""
    for axis in (0, 1):
        size = x.shape[axis]
        kept, padding = -(-size // 2), [(0, 0)] * 3
        padding[axis] = (size % 2, 2 * kept + 2 - size - size % 2)
        x = jnp.pad(x, padding, constant_values=-jnp.inf)
        pairs = x.reshape(*x.shape[:axis], kept + 1, 2, *x.shape[axis + 1 :])
        even, odd = (jax.lax.index_in_dim(pairs, number, axis + 1, keepdims=False) for number in (0, 1))
        first, second = (jax.lax.slice_in_dim(even, begin, begin + kept, axis=axis) for begin in (0, 1))
        x = jnp.maximum(jnp.maximum(first, second), jax.lax.slice_in_dim(odd, 0, kept, axis=axis))
    return x


class ImageEncoder(eqx.Module):
    """Encoder of one image with values in [0, 1]."""

    stacks: tuple[Stack, ...]
    head: Linear

    @classmethod
    def init(cls, key: PRNGKeyArray, shape: tuple[int, ...], size: Size) -> "ImageEncoder":
        """Initialise the network for images of this shape. Consumes `key`."""
        head_key, *keys = jax.random.split(key, 1 + len(size.channels))
        (height, width, _), ins = shape, (shape[-1], *size.channels)
        for _ in size.channels:
            height, width = -(-height // 2), -(-width // 2)
        stacks = tuple(Stack.init(k, a, b, size.blocks) for k, a, b in zip(keys, ins[:-1], ins[1:], strict=True))
        return cls(stacks, Linear.init(head_key, height * width * size.channels[-1], size.features))

    def __call__(self, x: Image) -> Float[Array, " features"]:
        for stack in self.stacks:
            x = stack(x)
        return jax.nn.gelu(self.head(jax.nn.relu(x).reshape(-1)))


class Encoder(eqx.Module):
    """Encoder of an observation: one network for each image, whose features are concatenated, and the vectors after
    them, all in the order of their names."""

    images: dict[str, ImageEncoder]

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec) -> tuple["Encoder | None", int]:
        """Initialise the encoder that `obs_spec` names. Consumes `key`.

        Returns:
            The encoder, and the dimension of the vector that it makes; None and `obs_spec.dim` for a vector, which
            needs no encoder.
        """
        if obs_spec.is_vector:
            return None, obs_spec.dim
        size, shapes = ENCODERS[obs_spec.encoder or DEFAULT], obs_spec.shapes
        keys = dict(zip(obs_spec.images, jax.random.split(key, len(obs_spec.images)), strict=True))
        images = {name: ImageEncoder.init(k, shapes[name], size) for name, k in keys.items()}
        others = sum(shape[0] for name, shape in shapes.items() if name not in images)
        return cls(images), size.features * len(images) + others

    def __call__(self, parts: Any) -> Float[Array, " features"]:
        """Encode the parts of an observation, by name, with pixels from 0 to 1."""
        features = [self.images[name](parts[name]) for name in sorted(self.images)]
        return jnp.concatenate([*features, *(parts[name] for name in sorted(parts) if name not in self.images)])


def encode(encoder: Encoder | None, obs: Obs) -> Float[Array, " features"]:
    """Return what networks read of an observation: itself if it is a vector."""
    if encoder is not None:
        return encoder(obs)
    assert not isinstance(obs, dict)
    return obs
