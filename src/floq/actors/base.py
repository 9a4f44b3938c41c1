"""What every actor offers."""

import abc
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

Value: TypeAlias = Callable[[Float[Array, " act"]], Float[Array, ""]]


class ActorLoss(NamedTuple):
    """The terms of an actor's loss for one transition: it descends `behaviour - scale * q`, where the scale is 1 or,
    with `normalize_q_loss`, one over the batch's mean |q|."""

    behaviour: Float[Array, ""]
    q: Float[Array, ""]
    info: dict[str, Float[Array, ""]]


class Actor(eqx.Module):
    """A policy and the loss it learns from, written for one transition. An actor knows no critic: whoever calls
    `loss` passes the value to climb as a function of the action."""

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
