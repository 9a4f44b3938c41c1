"""Interface of actors."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.networks.encoders import Obs
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import Mark, Settings, Size

Value: TypeAlias = Callable[[Float[Array, " act"]], Float[Array, "*values"]]
"""Q(obs, .) as a function of the action: one number, or several whose mean is maximised."""


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """Settings of an actor whose actions are samples."""

    num_candidates: Annotated[Size, Mark.HASHED_IF_SET] = 1
    """Actions that are sampled where the policy acts or explores (N); the one with the highest Q is taken."""


class ActorLoss(NamedTuple):
    """Terms of an actor's loss `behaviour - q_scale * mean(q)` for one transition."""

    behaviour: Float[Array, ""]
    q: Float[Array, "*values"]
    info: dict[str, Float[Array, "*values"]]


class Actor(eqx.Module):
    """A policy and its loss, written for one transition. An actor is independent of the critic: the caller of `loss`
    passes Q(obs, .) as a function of the action, and the caller of `sample` chooses among candidates.

    `init`, `act` and `loss` are required. By default `sample` is `act`, `explore` and `target_act` are `sample`, there
    is one candidate, nothing is subtracted from the TD target, there is no target network, and the actor is updated as
    often as the critic.
    """

    @classmethod
    @abc.abstractmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec, action_dim: int, config: Any = None) -> "Actor":
        """Initialise networks for such observations and actions of `action_dim` numbers. `config` holds this actor's
        settings, a frozen dataclass. Consumes `key`."""

    @abc.abstractmethod
    def act(self, obs: Obs, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return one action in [-1, 1]. Consumes `key`."""

    @abc.abstractmethod
    def loss(
        self,
        obs: Obs,
        act: Float[Array, " act"],
        value: Value,
        alpha: Float[Array, ""],
        key: PRNGKeyArray,
    ) -> ActorLoss:
        """Compute the terms of the loss. `act` is the dataset's action, `value(a)` is Q(obs, a), `alpha` the weight of
        staying close to the data. Consumes `key`."""

    def sample(self, obs: Obs, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return a sample of the policy, a candidate where there are several. Consumes `key`."""
        return self.act(obs, key)

    def explore(self, obs: Obs, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return the action that collects new experience. Consumes `key`."""
        return self.sample(obs, key)

    def target_act(self, obs: Obs, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return the action whose value a TD target takes. Consumes `key`."""
        return self.sample(obs, key)

    def at_temperature(self, temperature: float) -> "Actor":
        """Return the actor with the noise of its samples scaled so; itself where it has none."""
        return self

    @property
    def num_candidates(self) -> int:
        """Samples among which acting and exploring take the one with the highest Q."""
        return 1

    @property
    def target_candidates(self) -> int:
        """Samples among which a TD target takes the one with the highest Q."""
        return 1

    def target_penalty(
        self, obs: Obs, act: Float[Array, " act"], valid: Float[Array, ""], key: PRNGKeyArray
    ) -> Float[Array, ""]:
        """Return the penalty that a TD target subtracts from the value of `obs`. `act` is the dataset's action there;
        `valid` is 1, or 0 where a trajectory ended and there is none. Consumes `key`."""
        return jnp.zeros(())

    @property
    def has_target_penalty(self) -> bool:
        """Whether `target_penalty` can be nonzero."""
        return self.reads_next_action

    @property
    def reads_next_action(self) -> bool:
        """Whether `target_penalty` depends on the dataset's action."""
        return False

    def target_network(self) -> "Actor | None":
        """Return the part that a target network follows, to act in TD targets; None if the actor acts there itself."""
        return None

    @property
    def update_interval(self) -> int:
        """Updates of the critic per update of the actor and of all target networks."""
        return 1

    def q_scale(self, q: Float[Array, "*batch"]) -> Float[Array, ""]:
        """Return the factor of Q in the loss, given a batch of Q; not differentiated."""
        return jnp.ones(())


def inverse_mean_magnitude(q: Float[Array, "*batch"]) -> Float[Array, ""]:
    """Return one over the batch's mean |Q|; with it, weights in the actor's loss do not depend on the return scale."""
    return 1.0 / (jnp.mean(jnp.abs(q)) + 1e-8)
