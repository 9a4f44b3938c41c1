"""Check of every update for non-finite numbers, so that a run stops before they reach its weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

TERMS = (
    *("TD target", "critic's loss", "critic's gradient", "actor's loss", "actor's gradient"),
    *("critic's new weight", "actor's new weight", "exploring action"),
)
"""The terms of an update in the order in which they are computed, then the action of online training. A fault is the
number of a term, from 1."""
OK = 0
ACTION = len(TERMS)
MAX_MAGNITUDE = 1.8e19  # the square of larger numbers overflows in float32


def first_nonfinite(terms: tuple[PyTree, ...]) -> Int[Array, ""]:
    """Return the number, from 1, of the first term that is not finite, or has an array with an element whose square is
    not finite (Adam averages squares); `OK` if there is none. A term is a tree of arrays."""
    finite = jnp.stack([_is_finite(term) for term in terms])
    return jnp.where(jnp.all(finite), OK, 1 + jnp.argmin(finite)).astype(jnp.int32)


def _is_finite(tree: Any) -> Bool[Array, ""]:
    """Return whether all arrays are finite. Each takes one logical reduction: CPUs add floating-point numbers serially,
    which is slower."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    finite = [jnp.all(jnp.abs(x) < MAX_MAGNITUDE) if x.ndim else jnp.isfinite(x) for x in leaves]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)
