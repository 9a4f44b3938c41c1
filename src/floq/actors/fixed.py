"""A policy that is fixed while a critic is learned for it: off-policy evaluation, as fitted Q evaluation.

It has no network, since its actions in all states of the data were drawn before training; a batch brings those in its
next states. Source: fitted Q evaluation (Le et al. 2019, arXiv 1903.08738).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors.base import Actor, ActorLoss, Value
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import Settings, Size


@dataclass(frozen=True)
class FixedConfig(Settings):
    """Settings of a fixed policy."""

    policy_samples: Size = 8
    """Actions of the policy that are drawn in each state of the data, once; a TD target takes one of them at random."""


class FixedActor(Actor):
    """Stands for a policy whose actions come with the data. Nothing is learned."""

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: Any = None) -> "FixedActor":
        """Make the actor, which has no parameters."""
        return cls()

    def act(self, obs, key):
        """Raise UserError: the evaluated policy acts elsewhere."""
        raise UserError("this agent only evaluates a policy, and cannot act: use the run that it evaluates")

    def loss(self, obs, act, value: Value, alpha, key) -> ActorLoss:
        """Return zeros: there is nothing to learn."""
        return ActorLoss(jnp.zeros(()), jnp.zeros(()), {"q": jnp.zeros(())})


def one_of(actions: Float[Array, "draws act"], key: PRNGKeyArray) -> Float[Array, " act"]:
    """Return one of the actions that a fixed policy drew in a state. Consumes `key`."""
    return actions[jax.random.randint(key, (), 0, actions.shape[0])]
