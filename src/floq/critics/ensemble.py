"""What critics share that are looked up, not integrated: an ensemble of networks, each of which says a value."""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from floq.critics.base import Aggregation, Critic, Policy, ReturnScale, aggregate
from floq.networks.mlp import MLP


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of any such critic; the defaults are FQL's."""

    traced_settings: ClassVar[tuple[str, ...]] = ()

    layer_norm: bool = True
    """LayerNorm after each activation."""
    q_agg: Aggregation = "mean"
    """How the TD target combines the members: their mean, min, or mean less rho standard deviations (lcb)."""
    rho: float = 0.0
    """Standard deviations that q_agg=lcb subtracts."""
    value_num_ensembles: int = 2
    """Members of the ensemble."""


class EnsembleCritic(Critic):
    """A critic whose members each say one value of (s, a); its target copy is the whole of it."""

    net: MLP  # stacked over the ensemble
    config: Any = eqx.field(static=True)

    @abc.abstractmethod
    def members(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale
    ) -> Float[Array, " members"]:
        """What each member says."""

    def target_network(self) -> "EnsembleCritic":
        return self

    def target(self, reward, bootstrap, next_obs, policy: Policy, scale: ReturnScale, key):
        """y = r + g mask agg_e Q_e(s', a'), with one action a' from the policy."""
        values = self.members(next_obs, policy(next_obs, key), scale)
        return reward + bootstrap * aggregate(values, self.config.q_agg, self.config.rho)

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """The mean member. There is nothing to integrate, so `num_steps` must be left out."""
        refuse_steps(num_steps)
        return jnp.mean(self.members(obs, act, scale))

    def actor_value(self, obs, act, scale: ReturnScale, key):
        """The mean member."""
        return jnp.mean(self.members(obs, act, scale))

    def features(self, obs, act, scale: ReturnScale):
        return jax.vmap(lambda member: member.features(jnp.concatenate([obs, act])))(self.net)


def refuse_steps(num_steps: int | None) -> None:
    """Raises ValueError if somebody wants a critic integrated that cannot be."""
    if num_steps is not None:
        raise ValueError("this critic is looked up, not integrated: num_steps does not apply")
