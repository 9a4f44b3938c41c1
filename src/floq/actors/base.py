"""What every actor offers."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Value: TypeAlias = Callable[[Float[Array, " act"]], Float[Array, "*values"]]
"""Q(obs, .) of an action: one number, or in a loss several whose mean is climbed."""


class ActorLoss(NamedTuple):
    """The terms of an actor's loss for one transition: it descends `behaviour - q_scale * mean(q)`."""

    behaviour: Float[Array, ""]
    q: Float[Array, "*values"]
    info: dict[str, Float[Array, "*values"]]


class Actor(eqx.Module):
    """A policy and the loss it learns from, written for one transition. An actor knows no critic: whoever calls it
    passes Q(obs, .) as a function of the action, to climb in `loss`, and to rank actions by if `needs_critic`.

    `act` and `loss` are what an actor must have. The other verbs have defaults: it explores as it acts, the target's
    action is drawn like any other, nothing is subtracted from its value, no target copy is kept, and every update of
    the critic is one of the actor.
    """

    needs_critic: ClassVar[bool] = False
    """Whether actions are chosen by their value: then acting needs the critic too."""

    @classmethod
    @abc.abstractmethod
    def init(cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: Any = None) -> "Actor":
        """Fresh networks for observations and actions of these sizes; `config` is this actor's own settings, a frozen
        dataclass whose `traced_settings` names those that are traced. Consumes `key`."""

    @abc.abstractmethod
    def act(self, obs: Float[Array, " obs"], value: Value, key: PRNGKeyArray) -> Float[Array, " act"]:
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

    def explore(self, obs: Float[Array, " obs"], value: Value, key: PRNGKeyArray) -> Float[Array, " act"]:
        """The action with which new experience is made. Consumes `key`."""
        return self.act(obs, value, key)

    def target_act(self, obs: Float[Array, " obs"], value: Value, key: PRNGKeyArray) -> Float[Array, " act"]:
        """The action whose value a TD target takes. Consumes `key`."""
        return self.act(obs, value, key)

    def target_penalty(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], valid: Float[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """What a TD target subtracts from the value of `obs`. `act` is the dataset's action there; `valid` is 1, or 0
        where a trajectory ended and there is none. Consumes `key`."""
        return jnp.zeros(())

    @property
    def has_target_penalty(self) -> bool:
        """Whether `target_penalty` is ever anything but 0."""
        return self.reads_next_action

    @property
    def reads_next_action(self) -> bool:
        """Whether `target_penalty` goes by the dataset's action."""
        return False

    def target_network(self) -> "Actor | None":
        """What a target copy follows, to act in TD targets; None where the actor itself does."""
        return None

    @property
    def update_interval(self) -> int:
        """The actor, and the target copies with it, take a step in one of so many updates."""
        return 1

    def q_scale(self, q: Float[Array, "*batch"]) -> Float[Array, ""]:
        """What Q is multiplied with in the loss, given a batch of it; not differentiated."""
        return jnp.ones(())


def inverse_mean_magnitude(q: Float[Array, "*batch"]) -> Float[Array, ""]:
    """One over the batch's mean |Q|, which makes a weight of the actor's loss independent of the scale of returns."""
    return 1.0 / (jnp.mean(jnp.abs(q)) + 1e-8)
