"""A flow policy that imitates the data's actions. FQL distils it, best-of-N samples from it."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.flow import integrate
from floq.networks.encoders import Encoder, Obs, encode
from floq.networks.mlp import MLP
from floq.utils.obs_spec import ObsSpec


class BehaviourFlow(eqx.Module):
    """A velocity field over actions, learned by flow matching from Gaussian noise (t = 0) to the data's actions."""

    net: MLP  # (s, a_t, t) -> velocity
    encoder: Encoder | None = None

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, hidden_dims: Sequence[int], layer_norm: bool
    ) -> "BehaviourFlow":
        """Initialise the network. Consumes `key`."""
        encoder, dim = Encoder.init(jax.random.fold_in(key, 0), ObsSpec.of(obs_spec))
        return cls(MLP.init(key, dim + action_dim + 1, hidden_dims, action_dim, layer_norm), encoder)

    def velocity(self, obs: Float[Array, " obs"], x: Float[Array, " act"], t: Float[Array, ""]) -> Float[Array, " act"]:
        """Return the velocity at `x`, an action at time t of the flow, for an encoded observation."""
        return self.net(jnp.concatenate([obs, x, t[None]]))

    def loss(
        self, obs: Obs, act: Float[Array, " act"], x_0: Float[Array, " act"], t: Float[Array, ""]
    ) -> Float[Array, ""]:
        """Compute the flow-matching loss on the straight path from the noise `x_0` to the data's action, averaged over
        action dimensions."""
        x_t = (1 - t) * x_0 + t * act
        return jnp.mean(jnp.square(self.velocity(encode(self.encoder, obs), x_t, t) - (act - x_0)))

    def act(self, obs: Obs, noise: Float[Array, " act"], num_steps: int) -> Float[Array, " act"]:
        """Integrate from `noise` to an action in `num_steps` Euler steps, and clip it to [-1, 1]."""
        features = encode(self.encoder, obs)
        return jnp.clip(integrate(lambda x, t: self.velocity(features, x, t), noise, num_steps), -1.0, 1.0)
