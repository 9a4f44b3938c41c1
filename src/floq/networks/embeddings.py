"""Embeddings of the scalars z and t: z as a smoothed histogram, t as itself, a cosine or Fourier features."""

from typing import Annotated, Literal, TypeAlias

import jax
import jax.numpy as jnp
from annotated_types import Ge, Le
from jaxtyping import Array, Float

from floq.utils.schema import MAX_SIZE

TimeEmbedding: TypeAlias = Literal["cos", "raw", "fourier"]
NumEdges: TypeAlias = Annotated[int, Ge(3), Le(MAX_SIZE)]  # of a histogram


def histogram(
    z: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""], num_edges: int, sigma: float
) -> Float[Array, " bins"]:
    """Return the HL-Gauss histogram of z (arXiv 2403.03950): the mass of a Gaussian around z in each bin.

    Args:
        z: the value to embed, in units of return.
        low: lower end of the support.
        high: upper end of the support.
        num_edges: number of equally spaced edges, which make `num_edges - 1` bins.
        sigma: standard deviation in bin widths (published: 16).

    Returns:
        `num_edges - 1` masses that sum to one: the Gaussian is renormalised on the support.

    z is clipped to three standard deviations outside the support (published settings: one full range): beyond five,
    the mass on the support is 0 in float32 and the published form divides zero by zero.
    """
    extent = high - low
    std = sigma * extent / (num_edges - 1)
    z = jnp.clip(z, low - 3 * std, high + 3 * std)
    edges = low + extent * jnp.linspace(0.0, 1.0, num_edges)
    cdf = jax.scipy.special.erf((edges - z) / (jnp.sqrt(2.0) * std))
    return (cdf[1:] - cdf[:-1]) / (cdf[-1:] - cdf[:1])  # slices, since JAX 0.8 makes gathers of single indices


def scale_to_unit(z: Float[Array, ""], low: Float[Array, ""], high: Float[Array, ""]) -> Float[Array, " one"]:
    """Return z as a single number, with the support mapped to [0, 1] (`use_prob_embed=False`)."""
    return ((z - low) / (high - low))[None]


def embed_time(t: Float[Array, ""], kind: TimeEmbedding, dim: int) -> Float[Array, " emb"]:
    """Embed t in [0, 1] as network input.

    cos: the single number cos(t), used for the published tables. raw: t itself. fourier: `dim` features cos(pi i t),
    sin(pi i t) for i = 1 .. dim / 2, modelled on the 64-dimensional embedding that the paper describes.

    Raises:
        ValueError: unknown kind, or an odd `dim` for fourier.
    """
    if kind == "cos":
        return jnp.cos(t)[None]
    if kind == "raw":
        return t[None]
    if kind == "fourier":
        if dim % 2:
            raise ValueError(
                f"time_embed_dim is {dim}: a fourier embedding pairs cosines with sines, choose an even one"
            )
        angle = jnp.pi * jnp.arange(1, dim // 2 + 1) * t
        return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)])
    raise ValueError(f"time embedding {kind!r}: choose cos, raw or fourier")


def time_embedding_size(kind: TimeEmbedding, dim: int) -> int:
    """Return the number of features of `embed_time`."""
    return dim if kind == "fourier" else 1
