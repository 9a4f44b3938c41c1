"""The parts of an agent's state that are not networks: what is differentiated, and the scalars that are traced."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors import Actor
from floq.agent.config import AgentConfig
from floq.critics import Critic

# --- The random streams of a run, all from its seed ---


class Keys(NamedTuple):
    """One key for each purpose. Within a stream, draws are keyed by what they are for (step, episode, ...) with
    `jax.random.fold_in`, so they depend neither on order nor on which worker does the work."""

    agent: PRNGKeyArray
    batches: PRNGKeyArray
    validation: PRNGKeyArray
    evaluation: PRNGKeyArray
    pictures: PRNGKeyArray
    exploration: PRNGKeyArray  # new streams come last: those before them stay as they are

    @classmethod
    def of(cls, seed: int) -> "Keys":
        """The streams of a run with this seed."""
        return cls(*jax.random.split(jax.random.key(seed), len(cls._fields)))


ADAM = optax.scale_by_adam()


class Params(NamedTuple):
    """What is differentiated, and nothing else is."""

    critic: Critic
    actor: Actor


class OptStates(NamedTuple):
    """Adam's state for each part: the actor may take fewer steps than the critic."""

    critic: optax.OptState
    actor: optax.OptState

    @classmethod
    def init(cls, params: Params) -> "OptStates":
        """Before the first step."""
        return cls(*(ADAM.init(part) for part in params))  # pyright: ignore[reportArgumentType]


class Hypers(NamedTuple):
    """The scalars that a fleet of runs may vary. Traced, so that one compiled program serves them all. What a critic or
    an actor lacks is 0."""

    alpha: Float[Array, ""]
    discount: Float[Array, ""]
    lr: Float[Array, ""]
    tau: Float[Array, ""]
    noise_coverage: Float[Array, ""]
    reward_scale: Float[Array, ""]

    @classmethod
    def of(cls, config: AgentConfig) -> "Hypers":
        """Those of a configuration."""
        settings = config.flat()
        return cls(*(_scalar(settings.get(name, 0.0)) for name in cls._fields))


class ValueRange(NamedTuple):
    """Smallest and largest reward of the data, both widened to contain 0. From the data, so traced."""

    r_min: Float[Array, ""]
    r_max: Float[Array, ""]

    @classmethod
    def of(cls, r_min: float, r_max: float) -> "ValueRange":
        """That of data with rewards from `r_min` to `r_max`."""
        return cls(_scalar(min(0.0, r_min)), _scalar(max(0.0, r_max)))


def _scalar(x: float) -> Float[Array, ""]:
    return jnp.asarray(x, jnp.float32)
