"""Precision in which networks compute. Weights, optimiser, z, targets and losses are always float32."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Precision: TypeAlias = Literal["tf32", "f32", "bf16"]
"""tf32: float32 with products in TF32 on GPUs that have it, as published. f32: full float32 everywhere. bf16: products
and hidden layers in bfloat16, LayerNorm's statistics and the outputs of every network in float32."""

PUBLISHED: Precision = "tf32"


def matmul_precision(precision: Precision):
    """Return a context in which float32 products are traced in `precision`. Devices without TF32 use float32; products
    of bfloat16 are unaffected."""
    return jax.default_matmul_precision("float32" if precision == "f32" else "tensorfloat32")


def cast_for_compute(tree: PyTree, precision: Precision) -> PyTree:
    """Return the networks in the type in which they compute: for bf16 a copy with bfloat16 matrices, through which
    gradients reach the float32 ones; otherwise the tree itself."""
    if precision != "bf16":
        return tree
    is_matrix = lambda path: getattr(path[-1], "name", "").startswith("weight")  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(jnp.bfloat16) if is_matrix(path) else x, tree)
