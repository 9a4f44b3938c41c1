"""Best-of-N sampling: draw actions from a flow that imitates the data, and take the one with the highest Q.

Source: implicit diffusion Q-learning's policy (arXiv 2304.10573) and its flow version in FQL (arXiv 2502.02538).
"""

from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from floq.actors.base import Actor, ActorLoss, SamplingSettings, Value
from floq.actors.behaviour import BehaviourFlow
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, Size


@dataclass(frozen=True)
class BestOfNConfig(SamplingSettings):
    """Settings of best-of-N sampling."""

    actor_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of the behaviour flow."""
    actor_layer_norm: bool = False
    """LayerNorm in it."""
    actor_flow_steps: Size = 10
    """Euler steps of the behaviour flow."""
    num_candidates: Size = 32
    """Actions to choose from (N)."""
    target_candidates: Size | None = None
    """Actions to choose from in TD targets; by default `num_candidates`. More of them overestimate more."""


class BestOfNActor(Actor):
    """The behaviour flow, among whose actions the policy and TD targets choose by Q: no actor is trained on Q."""

    flow: BehaviourFlow
    action_dim: int = eqx.field(static=True)
    config: BestOfNConfig = eqx.field(static=True)
    noise_scale: float = eqx.field(static=True, default=1.0)  # of `act`

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: BestOfNConfig | None = None
    ) -> "BestOfNActor":
        """Initialise the behaviour flow. Consumes `key`."""
        c = config or BestOfNConfig()
        flow = BehaviourFlow.init(key, obs_spec, action_dim, c.actor_hidden_dims, c.actor_layer_norm)
        return cls(flow, action_dim, c)

    def act(self, obs, key):
        noise = self.noise_scale * jax.random.normal(key, (self.action_dim,))
        return self.flow.act(obs, noise, self.config.actor_flow_steps)

    def at_temperature(self, temperature: float) -> "BestOfNActor":
        return replace(self, noise_scale=temperature)

    @property
    def num_candidates(self) -> int:
        return self.config.num_candidates

    @property
    def target_candidates(self) -> int:
        return self.config.target_candidates or self.config.num_candidates

    def loss(self, obs, act, value: Value, alpha, key) -> ActorLoss:
        """Compute the flow-matching loss alone: nothing maximises Q. The logged `q` is that of the data's action."""
        x_0_key, t_key = jax.random.split(key)
        bc_flow_loss = self.flow.loss(obs, act, jax.random.normal(x_0_key, act.shape), jax.random.uniform(t_key))
        return ActorLoss(bc_flow_loss, jnp.zeros(()), {"bc_flow_loss": bc_flow_loss, "q": value(act)})
