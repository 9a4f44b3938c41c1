"""The one-step flow policy of FQL (arXiv 2502.02538, section 4).

A behaviour flow policy learns the data's actions by flow matching; a one-step policy mu(s, n) is distilled from that
flow with the same noise n, and maximises Q. Only the one-step policy acts, so no gradient passes through the flow.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors.base import Actor, ActorLoss, SamplingSettings, Value, inverse_mean_magnitude
from floq.actors.behaviour import BehaviourFlow
from floq.networks.encoders import Encoder, Obs, encode
from floq.networks.mlp import MLP
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, Mark, NonNegativeFloat, Size


@dataclass(frozen=True)
class FQLConfig(SamplingSettings):
    """Settings of the one-step flow policy; the defaults are FQL's."""

    actor_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of the behaviour flow and of the one-step policy."""
    actor_layer_norm: bool = False
    """LayerNorm in both."""
    alpha: Annotated[NonNegativeFloat, Mark.TRACED] = 10.0
    """Weight of staying close to the behaviour flow. Set it per environment."""
    actor_flow_steps: Size = 10
    """Euler steps of the behaviour flow."""
    normalize_q_loss: bool = False
    """Divide the Q term by the batch's mean |Q|."""


class FQLActor(Actor):
    """Behaviour flow and one-step policy; each has an encoder of its own, as in FQL."""

    flow: BehaviourFlow
    one_step: MLP  # (s, noise) -> action
    action_dim: int = eqx.field(static=True)
    config: FQLConfig = eqx.field(static=True)
    noise_scale: float = eqx.field(static=True, default=1.0)  # of `act`
    encoder: Encoder | None = None  # of the one-step policy

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: FQLConfig | None = None
    ) -> "FQLActor":
        """Initialise both networks. Consumes `key`."""
        c = config or FQLConfig()
        flow_key, one_step_key = jax.random.split(key)
        encoder, dim = Encoder.init(jax.random.fold_in(one_step_key, 0), ObsSpec.of(obs_spec))
        return cls(
            BehaviourFlow.init(flow_key, obs_spec, action_dim, c.actor_hidden_dims, c.actor_layer_norm),
            MLP.init(one_step_key, dim + action_dim, c.actor_hidden_dims, action_dim, c.actor_layer_norm),
            action_dim,
            c,
            encoder=encoder,
        )

    def act(self, obs, key):
        noise = self.noise_scale * jax.random.normal(key, (self.action_dim,))
        return jnp.clip(self._one_step(obs, noise), -1.0, 1.0)

    def loss(self, obs, act, value: Value, alpha, key) -> ActorLoss:
        x_0_key, t_key, noise_key, mse_key = jax.random.split(key, 4)
        bc_flow_loss = self.flow.loss(obs, act, jax.random.normal(x_0_key, act.shape), jax.random.uniform(t_key))

        # The one-step policy imitates the flow and maximises Q.
        noise = jax.random.normal(noise_key, act.shape)
        frozen = jax.lax.stop_gradient(self)
        flow_act = frozen.flow.act(obs, noise, self.config.actor_flow_steps)
        one_step_act = self._one_step(obs, noise)
        distill_loss = jnp.mean(jnp.square(one_step_act - flow_act))
        q = value(jnp.clip(one_step_act, -1.0, 1.0))

        mse = jnp.mean(jnp.square(self.act(obs, mse_key) - act))
        info = {"bc_flow_loss": bc_flow_loss, "mean_bc_flow_loss": bc_flow_loss}  # floq's name and FQL's
        info |= {"distill_loss": distill_loss, "q": q, "mse": mse}
        return ActorLoss(bc_flow_loss + alpha * distill_loss, q, info)

    def at_temperature(self, temperature: float) -> "FQLActor":
        return replace(self, noise_scale=temperature)

    @property
    def num_candidates(self) -> int:
        return self.config.num_candidates

    def q_scale(self, q):
        """Return 1, or one over the batch's mean |Q|."""
        return inverse_mean_magnitude(q) if self.config.normalize_q_loss else jnp.ones(())

    def _one_step(self, obs: Obs, noise: Float[Array, " act"]) -> Float[Array, " act"]:
        return self.one_step(jnp.concatenate([encode(self.encoder, obs), noise]))
