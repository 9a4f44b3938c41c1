"""What every actor offers."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Value: TypeAlias = Callable[[Float[Array, " act"]], Float[Array, ""]]


class ActorLoss(NamedTuple):
    """The terms of an actor's loss for one transition: it descends `behaviour - q_scale * q`."""

    behaviour: Float[Array, ""]
    q: Float[Array, ""]
    info: dict[str, Float[Array, ""]]


class Actor(eqx.Module):
    """A policy and the loss it learns from, written for one transition. An actor knows no critic: whoever calls
    `loss` passes the value to climb as a function of the action."""

    @classmethod
    @abc.abstractmethod
    def init(cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: Any = None) -> "Actor":
        """Fresh networks for observations and actions of these sizes; `config` is this actor's own settings, a frozen
        dataclass whose `traced_settings` names those that are traced. Consumes `key`."""

    @abc.abstractmethod
    def act(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """One action in [-1, 1]. Consumes `key`."""

    @abc.abstractmethod
    def loss(
        self,
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        value: Value,
        alpha: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> ActorLoss:
        """`act` is the dataset's action, `value(a)` is Q(obs, a), `alpha` weighs staying close to the data."""

    def q_scale(self, q: Float[Array, " batch"]) -> Float[Array, ""]:
        """What Q is multiplied with in the loss, given a batch of it; not differentiated."""
        return jnp.ones(())
