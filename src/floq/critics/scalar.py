"""The monolithic critic that floq is compared with: an ensemble of networks from (s, a) to a number, as in FQL.

Source: FQL (arXiv 2502.02538), section 4.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.critics.base import Aggregation, Critic, Info, Policy, ReturnScale, aggregate
from floq.networks import MLP, Linear, ResidualBody, ensemble


@dataclass(frozen=True)
class ScalarConfig:
    """Settings of the scalar critic; the defaults are FQL's."""

    traced_settings: ClassVar[tuple[str, ...]] = ()

    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of each member."""
    layer_norm: bool = True
    """LayerNorm after each activation."""
    q_agg: Aggregation = "mean"
    """How the TD target combines the members: their mean, min, or mean less rho standard deviations (lcb)."""
    rho: float = 0.0
    """Standard deviations that q_agg=lcb subtracts."""
    value_num_ensembles: int = 2
    """Members of the ensemble."""
    use_resnets: bool = False
    """Residual network: an entry layer, `num_transformations` blocks, a linear head; ignores `value_hidden_dims`."""
    block_width: int = 512
    """Width of the residual network."""
    block_depth: int = 2
    """Hidden layers per residual block."""
    num_transformations: int = 1
    """Residual blocks."""
    activate_before_layernorm: bool = True
    """In residual blocks: GELU before LayerNorm."""


class ScalarCritic(Critic):
    """Ensemble of scalar Q-networks."""

    net: MLP  # stacked over the ensemble
    config: ScalarConfig = eqx.field(static=True)

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: ScalarConfig | None = None
    ) -> "ScalarCritic":
        """Networks for observations of `obs_size` and actions of `act_size` numbers. Consumes `key`."""
        c = config or ScalarConfig()

        def member(key: PRNGKeyArray) -> MLP:
            if not c.use_resnets:
                return MLP.init(key, obs_size + act_size, c.value_hidden_dims, 1, c.layer_norm)
            entry_key, body_key = jax.random.split(key)
            body = ResidualBody.init(
                body_key,
                c.block_width,
                c.block_depth,
                c.num_transformations,
                1,
                c.layer_norm,
                c.activate_before_layernorm,
            )
            return MLP(Linear.init(entry_key, obs_size + act_size, c.block_width), body)

        return cls(ensemble(member, key, c.value_num_ensembles), c)

    def tracked(self) -> "ScalarCritic":
        return self

    def target(self, reward, bootstrap, next_obs, policy: Policy, scale: ReturnScale, key):
        """y = r + g mask agg_e Q_e(s', a'), with one action a' from the policy."""
        c = self.config
        return reward + bootstrap * aggregate(self._members(next_obs, policy(next_obs, key)), c.q_agg, c.rho)

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Mean squared error over members."""
        values = self._members(obs, act)
        loss = jnp.mean(jnp.square(values - target))
        q = jnp.mean(values)
        return loss, {"critic_loss": loss, "q": q, "td_error": jnp.abs(target - q)}

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """The mean member. There is nothing to integrate, so `num_steps` must be left out."""
        if num_steps is not None:
            raise ValueError("a scalar critic is looked up, not integrated: num_steps does not apply")
        return jnp.mean(self._members(obs, act))

    def actor_value(self, obs, act, scale: ReturnScale, key):
        """The mean member."""
        return jnp.mean(self._members(obs, act))

    def diagnose(self, obs, act, scale: ReturnScale, key) -> Info:
        """member_spread: standard deviation of Q over the members."""
        return {"member_spread": jnp.std(self._members(obs, act))}

    def features(self, obs, act, scale: ReturnScale):
        return jax.vmap(lambda member: member.features(jnp.concatenate([obs, act])))(self.net)

    def _members(self, obs: Float[Array, " obs"], act: Float[Array, " act"]) -> Float[Array, " members"]:
        return jax.vmap(lambda member: member(jnp.concatenate([obs, act]))[0])(self.net)
