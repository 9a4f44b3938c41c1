"""Small networks whose leaves are all arrays, so that plain `jax.vmap`, `grad` and `scan` work on them.

Every network is `body(entry(x))`: an entry layer that computes the first pre-activation, and a body with the other
layers. The velocity field has a split entry layer, because the contribution of (s, a) is constant during an
integration.

Products are those of `precision.py`, in the precision of the context. With float64 weights all is float64.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.networks.cpu import row_mean
from floq.networks.precision import in_bf16, product

NORM_EPS = 1e-6  # Flax's default, which the published code relies on; Equinox's is 1e-5
INITIALIZER = jax.nn.initializers.glorot_uniform()  # the published one
Module = TypeVar("Module", bound=eqx.Module)


class Linear(eqx.Module):
    """Linear layer x W + b in the type of W; biases are initialised to zero."""

    weight: Float[Array, "size_in size_out"]
    bias: Float[Array, " size_out"]

    @classmethod
    def init(cls, key: PRNGKeyArray, size_in: int, size_out: int) -> "Linear":
        """Initialise the layer. Consumes `key`."""
        return cls(INITIALIZER(key, (size_in, size_out)), jnp.zeros(size_out))

    def __call__(self, x: Float[Array, " size_in"], is_head: bool = False) -> Float[Array, " size_out"]:
        return product(x, self.weight, is_head) + self.bias


class SplitLinear(eqx.Module):
    """One linear layer over the concatenation [x, y], kept as W_x x + W_y y + b so that W_x x can be hoisted."""

    weight_x: Float[Array, "size_x size_out"]
    weight_y: Float[Array, "size_y size_out"]
    bias: Float[Array, " size_out"]

    @classmethod
    def init(cls, key: PRNGKeyArray, size_x: int, size_y: int, size_out: int) -> "SplitLinear":
        """Initialise the layer as one matrix over [x, y]. Consumes `key`."""
        weight = INITIALIZER(key, (size_x + size_y, size_out))  # the fan is that of the whole layer
        return cls(weight[:size_x], weight[size_x:], jnp.zeros(size_out))

    def fixed(self, x: Float[Array, " size_x"]) -> Float[Array, " size_out"]:
        """Compute W_x x + b, the part that is independent of y."""
        return product(x, self.weight_x) + self.bias

    def varying(self, y: Float[Array, " size_y"]) -> Float[Array, " size_out"]:
        """Compute W_y y, the part that depends on y."""
        return product(y, self.weight_y)


class LayerNorm(eqx.Module):
    """Layer normalisation in one pass over x: the variance is E[x^2] - E[x]^2, as in Flax."""

    scale: Float[Array, " size"]
    shift: Float[Array, " size"]

    @classmethod
    def init(cls, size: int) -> "LayerNorm":
        """Return the identity scale and shift."""
        return cls(jnp.ones(size), jnp.zeros(size))

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        mean, rstd = _moments(x)
        return (x - mean) * rstd * self.scale + self.shift


def _moments(x: Float[Array, " size"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the mean of x and one over its standard deviation."""
    mean = row_mean(x)
    variance = jnp.maximum(row_mean(jnp.square(x)) - jnp.square(mean), 0.0)
    return mean, jax.lax.rsqrt(variance + NORM_EPS)


class Activation(eqx.Module):
    """GELU in its tanh form, as in Flax, then LayerNorm if there is one; LayerNorm first if `norm_last` is False."""

    norm: LayerNorm | None
    norm_last: bool = eqx.field(static=True)

    @classmethod
    def init(cls, size: int, layer_norm: bool, norm_last: bool = True) -> "Activation":
        """Initialise the LayerNorm, if any."""
        return cls(LayerNorm.init(size) if layer_norm else None, norm_last)

    def __call__(self, x: Float[Array, " size"]) -> Float[Array, " size"]:
        if self.norm is None:
            return jax.nn.gelu(x)
        return self.norm(jax.nn.gelu(x)) if self.norm_last else jax.nn.gelu(self.norm(x))


class PlainBody(eqx.Module):
    """Activation, then (linear, activation) for each further hidden layer, then a linear head."""

    activations: tuple[Activation, ...]
    linears: tuple[Linear, ...]

    @classmethod
    def init(cls, key: PRNGKeyArray, hidden_dims: Sequence[int], size_out: int, layer_norm: bool) -> "PlainBody":
        """Initialise all layers. Consumes `key`."""
        sizes = [*hidden_dims, size_out]
        keys = jax.random.split(key, len(hidden_dims))
        return cls(
            tuple(Activation.init(size, layer_norm) for size in hidden_dims),
            tuple(Linear.init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)),
        )

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " size_out"]:
        return self.linears[-1](self.features(x), is_head=True)

    def features(self, x: Float[Array, " width"]) -> Float[Array, " features"]:
        """Return the input of the head."""
        for activation, linear in zip(self.activations[:-1], self.linears[:-1], strict=True):
            x = linear(activation(x))
        return self.activations[-1](x)


class FoldedBody(eqx.Module):
    """A `PlainBody` with LayerNorm that needs fewer passes over the activations.

    With W' = diag(g) W less the mean of each of its columns, ((y - mean) / std * g + c) W + b = y W' / std + (b + c W):
    only the std of a row remains of a LayerNorm, and the product does not depend on it.
    """

    linears: tuple[Linear, ...]

    @classmethod
    def of(cls, body: PlainBody) -> "FoldedBody":
        """Fold the LayerNorms of `body` into its linear layers; raise ValueError if it has none."""
        if any(activation.norm is None or not activation.norm_last for activation in body.activations):
            raise ValueError("there is no LayerNorm to fold")
        norms = [activation.norm for activation in body.activations]
        return cls(
            tuple(fold_layer_norm(norm, linear) for norm, linear in zip(norms, body.linears, strict=True) if norm)
        )

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " size_out"]:
        for number, linear in enumerate(self.linears):
            y = jax.nn.gelu(x)
            x = product(y, linear.weight, is_head=number == len(self.linears) - 1) * _moments(y)[1] + linear.bias
        return x


def fold_layer_norm(norm: LayerNorm, linear: Linear) -> Linear:
    """Fold a LayerNorm into the layer after it, whose input is then only divided by the std of a row."""
    scaled = norm.scale[:, None] * linear.weight
    weight = scaled - jnp.mean(scaled, axis=0, keepdims=True)
    return Linear(weight, linear.bias + jnp.matmul(norm.shift, linear.weight, precision="highest"))


def folded_if(body: "PlainBody | ResidualBody", wanted: bool) -> "PlainBody | ResidualBody | FoldedBody":
    """Return the body with its LayerNorms folded, if that is wanted or the context is bf16, and it has any to fold."""
    if isinstance(body, PlainBody) and body.activations[0].norm and (wanted or in_bf16()):
        return FoldedBody.of(body)
    return body


class ResidualBody(eqx.Module):
    """Activation, then `num_blocks` times x + block(x), each block `depth` layers of (linear, activation); then a
    linear head. Together with the entry layer it is the published residual network, which begins with linear, GELU,
    LayerNorm."""

    entry_activation: Activation
    blocks: tuple[tuple[tuple[Linear, Activation], ...], ...]
    head: Linear

    @classmethod
    def init(
        cls,
        key: PRNGKeyArray,
        width: int,
        depth: int,
        num_blocks: int,
        layer_norm: bool,
        norm_last: bool,
    ) -> "ResidualBody":
        """Initialise all layers, with a head of one number. Consumes `key`."""
        head_key, *keys = jax.random.split(key, 1 + num_blocks * depth)
        activation = lambda: Activation.init(width, layer_norm, norm_last)  # noqa: E731
        layers = [(Linear.init(k, width, width), activation()) for k in keys]
        blocks = tuple(tuple(layers[i * depth : (i + 1) * depth]) for i in range(num_blocks))
        return cls(activation(), blocks, Linear.init(head_key, width, 1))

    def __call__(self, x: Float[Array, " width"]) -> Float[Array, " size_out"]:
        return self.head(self.features(x), is_head=True)

    def features(self, x: Float[Array, " width"]) -> Float[Array, " width"]:
        """Return the input of the head."""
        x = self.entry_activation(x)
        for block in self.blocks:
            y = x
            for linear, activation in block:
                y = activation(linear(y))
            x = x + y
        return x


class MLP(eqx.Module):
    """Multilayer perceptron: an entry layer and a body."""

    entry: Linear
    body: PlainBody | ResidualBody

    @classmethod
    def init(
        cls, key: PRNGKeyArray, size_in: int, hidden_dims: Sequence[int], size_out: int, layer_norm: bool
    ) -> "MLP":
        """Initialise a network with a `PlainBody`. Consumes `key`."""
        entry_key, body_key = jax.random.split(key)
        body = PlainBody.init(body_key, hidden_dims, size_out, layer_norm)
        return cls(Linear.init(entry_key, size_in, hidden_dims[0]), body)

    def __call__(self, x: Float[Array, " size_in"]) -> Float[Array, " size_out"]:
        return folded_if(self.body, False)(self.entry(x))

    def features(self, x: Float[Array, " size_in"]) -> Float[Array, " features"]:
        """Return the input of the last layer."""
        return self.body.features(self.entry(x))


def ensemble(init: Callable[[PRNGKeyArray], Module], key: PRNGKeyArray, num: int) -> Module:
    """Initialise `num` independent networks, stacked on a leading axis of every leaf. Consumes `key`."""
    return jax.vmap(init)(jax.random.split(key, num))


def effective_rank(features: Float[Array, "batch features"]) -> Float[Array, ""]:
    """Return the participation ratio of features: (sum of s^2)^2 / sum of s^4 for their singular values s.

    Computed from traces of the Gram matrix: LAPACK's decompositions need the CPU threads that a fleet's devices occupy,
    and can deadlock.
    """
    gram = features.T @ features
    return jnp.square(jnp.trace(gram)) / (jnp.sum(jnp.square(gram)) + 1e-12)
