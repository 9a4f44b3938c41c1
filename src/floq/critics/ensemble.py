"""Base class of critics without integration: an ensemble of networks, each of which predicts a value."""

import abc
from dataclasses import dataclass
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from floq.critics.base import AggregationSettings, Critic, PolicyFn, ReturnScale, aggregate
from floq.networks.mlp import MLP
from floq.utils.schema import Count, Mark, Size


@dataclass(frozen=True)
class EnsembleConfig(AggregationSettings):
    """Settings that critics without a flow share; the defaults are FQL's."""

    layer_norm: bool = True
    """LayerNorm after each activation."""
    value_num_ensembles: Count = 2
    """Members of the ensemble."""

    @property
    def num_members(self) -> int:
        return self.value_num_ensembles


@dataclass(frozen=True)
class ValueEnsembleConfig(EnsembleConfig):
    """Settings of an `EnsembleCritic`."""

    target_action_samples: Annotated[Size, Mark.HASHED_IF_SET] = 1
    """Actions of the policy over which the TD target averages; with an actor that ranks candidates for it, one."""


class EnsembleCritic(Critic):
    """A critic whose members each predict one value of (s, a); the target network copies all of it."""

    net: MLP  # stacked over the ensemble
    config: Any = eqx.field(static=True)

    @abc.abstractmethod
    def members(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale
    ) -> Float[Array, " members"]:
        """Return each member's value of (s, a)."""

    def member_values(self, obs, act, scale: ReturnScale, key):
        return self.members(obs, act, scale)

    def target_network(self) -> "EnsembleCritic":
        return self

    def target(self, reward, bootstrap, next_obs, policy: PolicyFn, scale: ReturnScale, key):
        """Compute y = r + g mask mean_j agg_e Q_e(s', a_j), the mean over `target_action_samples` of the policy."""
        c: ValueEnsembleConfig = self.config
        key, pair = c.random_pair(key)
        keys = jax.random.split(key, c.target_action_samples) if c.target_action_samples > 1 else key[None]
        next_acts = jax.vmap(policy, (None, 0))(next_obs, keys)
        values = jax.vmap(lambda act: aggregate(self.members(next_obs, act, scale), c.q_agg, c.rho, pair))(next_acts)
        return reward + bootstrap * jnp.mean(values)

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """Return the mean over members. There is no integration, so `num_steps` must be None."""
        check_no_num_steps(num_steps)
        return jnp.mean(self.members(obs, act, scale))

    def actor_value(self, obs, act, scale: ReturnScale, key):
        """Return the mean over members."""
        return jnp.mean(self.members(obs, act, scale))

    def features(self, obs, act, scale: ReturnScale):
        return jax.vmap(lambda member: member.features(jnp.concatenate([obs, act])))(self.net)


def check_no_num_steps(num_steps: int | None) -> None:
    """Raise ValueError if `num_steps` is given to a critic without integration."""
    if num_steps is not None:
        raise ValueError("this critic is not integrated: num_steps does not apply")
