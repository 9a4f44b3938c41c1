"""Structure of an agent's state: random streams, parameters, optimiser states, and the range of rewards. And the check
of every update for non-finite numbers, so that a run stops before they reach its weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from floq.actors import Actor
from floq.critics import Critic

# --- Random streams ---


class Keys(NamedTuple):
    """Random streams of a run, one key for each purpose. Within a stream, draws are keyed by step, episode and so on
    with `jax.random.fold_in`, so they depend neither on order nor on the assignment to workers."""

    agent: PRNGKeyArray
    batches: PRNGKeyArray
    validation: PRNGKeyArray
    evaluation: PRNGKeyArray
    pictures: PRNGKeyArray
    exploration: PRNGKeyArray  # append new streams: the keys before them do not change

    @classmethod
    def of(cls, seed: int) -> "Keys":
        """Derive the streams of a run from its seed."""
        return cls(*jax.random.split(jax.random.key(seed), len(cls._fields)))


# --- Parameters and scalars ---

ADAM = optax.scale_by_adam()


class Params(NamedTuple):
    """The differentiated parameters."""

    critic: Critic
    actor: Actor


class OptStates(NamedTuple):
    """Adam's state for each part, since the actor may take fewer steps than the critic."""

    critic: optax.OptState
    actor: optax.OptState

    @classmethod
    def init(cls, params: Params) -> "OptStates":
        """Initialise both states."""
        return cls(*(ADAM.init(part) for part in params))  # pyright: ignore[reportArgumentType]


class ValueRange(NamedTuple):
    """Smallest and largest reward of the data, both widened to contain 0. From the data, so traced."""

    r_min: Float[Array, ""]
    r_max: Float[Array, ""]

    @classmethod
    def of(cls, r_min: float, r_max: float) -> "ValueRange":
        """Return the range of data with rewards from `r_min` to `r_max`."""
        return cls(*(jnp.asarray(r, jnp.float32) for r in (min(0.0, r_min), max(0.0, r_max))))


# --- Check of updates ---

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
