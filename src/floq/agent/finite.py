"""What is looked at in every update, so that a run stops before numbers that are none reach its weights."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

TERMS = ("TD target", "critic's loss", "critic's gradient", "actor's loss", "actor's gradient", "exploring action")
"""The terms of an update, in the order in which they are computed, and what online comes of it; a fault is the number
of one, from 1 on."""
OK = 0
ACTION = len(TERMS)
LARGEST = 1.8e19  # what can be squared in float32


def first_nonfinite(terms: tuple[PyTree, ...]) -> Int[Array, ""]:
    """The number, from 1 on, of the first term that is not finite, or has an array with a number whose square is not:
    Adam averages squares. `OK` if there is none. A term is a tree of arrays."""
    sound = jnp.stack([_is_finite(term) for term in terms])
    return jnp.where(jnp.all(sound), OK, 1 + jnp.argmin(sound)).astype(jnp.int32)


def _is_finite(tree: Any) -> Bool[Array, ""]:
    """One reduction for each array; a logical one, since processors add floating-point numbers one after another."""
    leaves = [x.astype(jnp.float32) for x in jax.tree.leaves(tree)]
    found = [jnp.all(jnp.abs(x) < LARGEST) if x.ndim else jnp.isfinite(x) for x in leaves]
    return jnp.all(jnp.stack(found)) if found else jnp.array(True)
