"""Structure of an agent's state: random streams, parameters, optimiser states, and the range of rewards."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

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
