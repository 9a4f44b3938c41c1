"""Precision in which networks compute. Weights, optimiser, z, targets and losses are always float32."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from floq.networks.cpu import bf16_product
from floq.utils.machine import cpu_flags

Precision: TypeAlias = Literal["tf32", "f32", "bf16"]
"""tf32: float32 with products in TF32 on GPUs that have it, as published. f32: full float32 everywhere. bf16: products
of hidden layers, and of their gradients, in bfloat16 with float32 sums, and LayerNorms folded into them."""

PrecisionSetting: TypeAlias = Literal["auto", "tf32", "f32", "bf16"]
"""auto: what `fast_precision` says."""

PUBLISHED: Precision = "tf32"
_in_bf16: ContextVar[bool] = ContextVar("in_bf16", default=False)

FAST_WIDTHS = {"amx_bf16": 256, "avx512_bf16": 64}
"""By flag of a CPU, of which the first counts, the width of hidden layers from which an update in bf16 is taken to be
faster (docs/cost.md)."""


def fast_precision(width: int) -> Precision:
    """Return the precision of `auto` for hidden layers of this width: bf16 on CPUs that multiply it faster."""
    if jax.default_backend() != "cpu":
        return PUBLISHED
    least = next((least for flag, least in FAST_WIDTHS.items() if flag in cpu_flags()), math.inf)
    return "bf16" if width >= least else PUBLISHED


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Trace networks in `precision`: a context manager. Devices without TF32 use float32.

    A function that JAX compiles must enter it within, since JAX does not see bf16 from outside and would take a program
    of another precision from its cache.
    """
    token = _in_bf16.set(precision == "bf16")
    try:
        with jax.default_matmul_precision("float32" if precision == "f32" else "tensorfloat32"):
            yield
    finally:
        _in_bf16.reset(token)


def in_bf16() -> bool:
    """Return whether the context is that of bf16."""
    return _in_bf16.get()


def product(
    x: Float[Array, " size_in"], weight: Float[Array, "size_in size_out"], is_head: bool = False
) -> Float[Array, " size_out"]:
    """Compute x W in the precision of the context; that of a head, which bfloat16 would round, at least in TF32.

    In bf16 the result is float32 on CPUs, whose products write nothing else as fast, and bfloat16 on GPUs, which wait
    for memory."""
    if is_head or not in_bf16():
        return jnp.matmul(x, weight)
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    return bf16_product(x, weight, dtype)
