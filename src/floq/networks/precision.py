"""In what precision the networks compute. Weights, optimiser, z, targets and losses are float32 in any case."""

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

Precision: TypeAlias = Literal["tf32", "f32", "bf16"]
"""tf32: float32, its products rounded to TF32 where a GPU has that: as published. f32: full float32 everywhere. bf16:
products and hidden layers in bfloat16, LayerNorm's statistics and the outputs of every network in float32."""

PUBLISHED: Precision = "tf32"


def matmul_precision(precision: Precision):
    """A context in which float32 products are traced in that precision. Processors without TF32 take float32; products
    of bfloat16 stay what they are."""
    return jax.default_matmul_precision("float32" if precision == "f32" else "tensorfloat32")


def computing_copy(tree: PyTree, precision: Precision) -> PyTree:
    """Networks as they compute: in bf16 a copy of their matrices in bfloat16, through which gradients reach the float32
    ones; otherwise the tree itself."""
    if precision != "bf16":
        return tree
    is_matrix = lambda path: getattr(path[-1], "name", "").startswith("weight")  # noqa: E731
    return jax.tree_util.tree_map_with_path(lambda path, x: x.astype(jnp.bfloat16) if is_matrix(path) else x, tree)
