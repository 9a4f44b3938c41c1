"""The scalar critic, floq's monolithic baseline: an ensemble of networks from (s, a) to a number, as in FQL.

Source: FQL (arXiv 2502.02538), section 4.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.critics.base import Info, ReturnScale, td_errors
from floq.critics.ensemble import EnsembleCritic, ValueEnsembleConfig
from floq.networks.mlp import MLP, Linear, ResidualBody, ensemble
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import Depth, HiddenDims, Size


@dataclass(frozen=True)
class ScalarConfig(ValueEnsembleConfig):
    """Settings of the scalar critic; the defaults are FQL's."""

    value_hidden_dims: HiddenDims | None = None
    """Hidden layers of each member of a plain network; by default `block_depth` of `block_width`, as published."""
    use_resnets: bool = False
    """Residual network: an entry layer, `num_transformations` blocks, a linear head; ignores `value_hidden_dims`."""
    block_width: Size = 512
    """Width of the network."""
    block_depth: Depth = 4
    """Its hidden layers; with `use_resnets`, hidden layers per residual block."""
    num_transformations: Depth = 2
    """Residual blocks."""
    activate_before_layernorm: bool = True
    """In residual networks: GELU before LayerNorm."""

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden layers of a plain network."""
        return self.value_hidden_dims or (self.block_width,) * self.block_depth

    @property
    def hidden_width(self) -> int:
        return self.block_width if self.use_resnets else max(self.hidden_dims)


class ScalarCritic(EnsembleCritic):
    """Ensemble of scalar Q-networks."""

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: ScalarConfig | None = None
    ) -> "ScalarCritic":
        """Initialise the ensemble. Consumes `key`."""
        c, size_in = config or ScalarConfig(), ObsSpec.of(obs_spec).dim + action_dim

        def member(key: PRNGKeyArray) -> MLP:
            if not c.use_resnets:
                return MLP.init(key, size_in, c.hidden_dims, 1, c.layer_norm)
            entry_key, body_key = jax.random.split(key)
            body = ResidualBody.init(
                body_key, c.block_width, c.block_depth, c.num_transformations, c.layer_norm, c.activate_before_layernorm
            )
            return MLP(Linear.init(entry_key, size_in, c.block_width), body)

        return cls(ensemble(member, key, c.value_num_ensembles), c)

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Compute the mean squared error over members."""
        values = self.members(obs, act, scale)
        loss = jnp.mean(jnp.square(values - target))
        q = jnp.mean(values)
        return loss, {"critic_loss": loss, "q": q, **td_errors(target, q)}

    def diagnose(self, obs, act, scale: ReturnScale, key) -> Info:
        """Return `member_spread`, the standard deviation of Q over the members."""
        return {"member_spread": jnp.std(self.members(obs, act, scale))}

    def members(self, obs, act, scale: ReturnScale):
        return jax.vmap(lambda member: member(jnp.concatenate([obs, act]))[0])(self.net)
