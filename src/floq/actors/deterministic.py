"""A deterministic policy that maximises Q and stays close to the data, in the style of ReBRAC.

Source: TD3+BC (arXiv 2106.06860) and ReBRAC (arXiv 2305.09836). ReBRAC's components are settings: a penalty on the
distance from the data in the actor (`alpha`) and another in the critic's target (`alpha_critic`), Q normalised by its
magnitude, noise on the target's action, a target actor, one update of the actor in two. Its LayerNorm and its minimum
over two critics in the target are settings of the critic; here the actor maximises their mean.
"""

from dataclasses import dataclass
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors.base import Actor, ActorLoss, Value, inverse_mean_magnitude
from floq.networks.encoders import Encoder, encode
from floq.networks.mlp import MLP
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, Mark, NonNegativeFloat, Positive, Settings


@dataclass(frozen=True)
class DeterministicConfig(Settings):
    """Settings of the deterministic policy."""

    actor_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of the policy."""
    actor_layer_norm: bool = False
    """LayerNorm in it."""
    alpha: Annotated[NonNegativeFloat, Mark.TRACED] = 0.1
    """Weight of behaviour cloning in the actor's loss: the squared distance from the data's action."""
    alpha_critic: NonNegativeFloat = 0.0
    """Weight of the same distance at the next state, which is subtracted from the TD target's value."""
    normalize_q_loss: bool = True
    """Divide the Q term by the batch's mean |Q|."""
    actor_noise: NonNegativeFloat = 0.2
    """Standard deviation of the noise on the TD target's action."""
    actor_noise_clip: NonNegativeFloat = 0.5
    """Largest magnitude of that noise."""
    exploration_noise: NonNegativeFloat = 0.1
    """Standard deviation of the noise on actions that collect new experience."""
    actor_freq: Positive = 2
    """Updates of the critic per update of the actor and of the target networks."""
    target_actor: bool = True
    """TD targets act with a slow copy of the actor."""
    actor_head_scale: NonNegativeFloat = 0.01
    """Scale of the policy's last layer at the start."""


class DeterministicActor(Actor):
    """tanh of a network."""

    net: MLP  # s -> action before tanh
    config: DeterministicConfig = eqx.field(static=True)
    encoder: Encoder | None = None

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: DeterministicConfig | None = None
    ) -> "DeterministicActor":
        """Initialise the network. Consumes `key`."""
        c = config or DeterministicConfig()
        encoder, dim = Encoder.init(jax.random.fold_in(key, 0), ObsSpec.of(obs_spec))
        net = MLP.init(key, dim, c.actor_hidden_dims, action_dim, c.actor_layer_norm)
        head = lambda net: net.body.linears[-1].weight  # noqa: E731
        return cls(eqx.tree_at(head, net, c.actor_head_scale * head(net)), c, encoder)

    def act(self, obs, key):
        return jnp.tanh(self.net(encode(self.encoder, obs)))

    def explore(self, obs, key):
        act = self.act(obs, key)
        return jnp.clip(act + self.config.exploration_noise * jax.random.normal(key, act.shape), -1.0, 1.0)

    def target_act(self, obs, key):
        c, act = self.config, self.act(obs, key)
        noise = c.actor_noise * jax.random.normal(key, act.shape)
        return jnp.clip(act + jnp.clip(noise, -c.actor_noise_clip, c.actor_noise_clip), -1.0, 1.0)

    @property
    def reads_next_action(self) -> bool:
        return self.config.alpha_critic > 0

    def target_penalty(self, obs, act, valid, key):
        """Return alpha_critic * |a' - act|^2 for a separately drawn a': in expectation ReBRAC's penalty."""
        distance = self.target_act(obs, key) - act
        return valid * self.config.alpha_critic * jnp.sum(jnp.square(distance))

    def target_network(self) -> "DeterministicActor | None":
        return self if self.config.target_actor else None

    @property
    def update_interval(self) -> int:
        return self.config.actor_freq

    def loss(self, obs, act, value: Value, alpha, key) -> ActorLoss:
        policy_act: Float[Array, " act"] = self.act(obs, key)
        squared = jnp.square(policy_act - act)
        q = value(policy_act)
        return ActorLoss(alpha * jnp.sum(squared), q, {"bc_loss": jnp.sum(squared), "q": q, "mse": jnp.mean(squared)})

    def q_scale(self, q):
        """Return 1, or one over the batch's mean |Q|."""
        return inverse_mean_magnitude(q) if self.config.normalize_q_loss else jnp.ones(())
