"""Structure of an agent's state: random streams, parameters, optimiser states, and the traced scalars."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors import Actor
from floq.agent.config import AgentConfig
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


# --- Parameters and traced scalars ---

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


class Hypers(NamedTuple):
    """Scalars that may differ between the runs of a fleet. Traced, so that one compiled program serves them all. Those
    that neither critic nor actor has are 0."""

    alpha: Float[Array, ""]
    discount: Float[Array, ""]
    lr: Float[Array, ""]
    tau: Float[Array, ""]
    noise_coverage: Float[Array, ""]
    reward_scale: Float[Array, ""]

    @classmethod
    def of(cls, config: AgentConfig) -> "Hypers":
        """Extract the scalars from a configuration."""
        settings = config.flat()
        return cls(*(_scalar(settings.get(name, 0.0)) for name in cls._fields))


class ValueRange(NamedTuple):
    """Smallest and largest reward of the data, both widened to contain 0. From the data, so traced."""

    r_min: Float[Array, ""]
    r_max: Float[Array, ""]

    @classmethod
    def of(cls, r_min: float, r_max: float) -> "ValueRange":
        """Return the range of data with rewards from `r_min` to `r_max`."""
        return cls(_scalar(min(0.0, r_min)), _scalar(max(0.0, r_max)))


def _scalar(x: float) -> Float[Array, ""]:
    return jnp.asarray(x, jnp.float32)
