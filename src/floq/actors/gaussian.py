"""A Gaussian policy squashed by tanh, regularised by the likelihood of the data's actions or by its entropy.

Source: SAC (arXiv 1812.05905) for the policy, the temperature and the soft value; behaviour cloning is an added term.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors.base import Actor, ActorLoss, SamplingSettings, Value, inverse_mean_magnitude
from floq.networks.encoders import Encoder, Obs, encode
from floq.networks.mlp import MLP
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, Mark, NonNegativeFloat

LOG_STD_RANGE = (-5.0, 2.0)
LIMIT = 1 - 1e-5  # actions are clipped to this before arctanh


@dataclass(frozen=True)
class GaussianConfig(SamplingSettings):
    """Settings of the tanh-Gaussian policy. Offline, regularise with alpha; online, rather with entropy."""

    actor_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of the policy."""
    actor_layer_norm: bool = False
    """LayerNorm in it."""
    alpha: Annotated[NonNegativeFloat, Mark.TRACED] = 1.0
    """Weight of behaviour cloning, the negative log-likelihood of the data's action per action dimension."""
    normalize_q_loss: bool = False
    """Divide the Q term by the batch's mean |Q|."""
    temperature: NonNegativeFloat = 0.0
    """Weight of the policy's entropy; the initial value if it is learned."""
    learn_temperature: bool = False
    """Adapt the temperature such that the entropy stays at target_entropy."""
    target_entropy: float = -0.5
    """Target entropy, in nats per action dimension."""
    entropy_backup: bool = False
    """Count the entropy of the next action as reward in the TD target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learn_temperature and self.temperature <= 0:
            raise UserError(f"--agent.temperature={self.temperature}: to learn it, start above 0, say at 1")
        if self.entropy_backup and self.temperature <= 0:
            raise UserError("--agent.entropy_backup=True: without --agent.temperature above 0 entropy is worth nothing")


class GaussianActor(Actor):
    """tanh(N(mean(s), std(s))). Acting takes the mode of the Gaussian, or the best of several samples; exploring, TD
    targets and the loss sample it."""

    net: MLP  # s -> (mean, log std), concatenated
    log_temperature: Float[Array, ""] | None  # None unless it is learned
    config: GaussianConfig = eqx.field(static=True)
    noise_scale: float = eqx.field(static=True, default=1.0)  # of `sample`
    encoder: Encoder | None = None

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: GaussianConfig | None = None
    ) -> "GaussianActor":
        """Initialise the network. Consumes `key`."""
        c = config or GaussianConfig()
        encoder, dim = Encoder.init(jax.random.fold_in(key, 0), ObsSpec.of(obs_spec))
        net = MLP.init(key, dim, c.actor_hidden_dims, 2 * action_dim, c.actor_layer_norm)
        return cls(net, jnp.float32(math.log(c.temperature)) if c.learn_temperature else None, c, encoder=encoder)

    def act(self, obs, key):
        return jnp.tanh(self._moments(obs)[0])

    def sample(self, obs, key):
        mean, log_std = self._moments(obs)
        return jnp.tanh(mean + self.noise_scale * jnp.exp(log_std) * jax.random.normal(key, mean.shape))

    def at_temperature(self, temperature: float) -> "GaussianActor":
        return replace(self, noise_scale=temperature)

    @property
    def num_candidates(self) -> int:
        return self.config.num_candidates

    @property
    def has_target_penalty(self) -> bool:
        return self.config.entropy_backup

    def target_penalty(self, obs, act, valid, key):
        """Return temperature * log pi(a' | s') of a separately drawn a': in expectation the term that SAC subtracts."""
        return self._temperature() * self._sample(obs, key)[1]

    def loss(self, obs, act, value: Value, alpha, key) -> ActorLoss:
        sampled, log_prob = self._sample(obs, key)
        bc_log_prob = self.log_prob(obs, act) / act.shape[0]
        temperature, entropy = self._temperature(), -log_prob / act.shape[0]
        behaviour = -alpha * bc_log_prob + jax.lax.stop_gradient(temperature) * log_prob
        if self.config.learn_temperature:
            behaviour += temperature * jax.lax.stop_gradient(entropy - self.config.target_entropy)
        q = value(sampled)
        mse = jnp.mean(jnp.square(jnp.tanh(self._moments(obs)[0]) - act))
        info = {"bc_log_prob": bc_log_prob, "entropy": entropy, "temperature": temperature, "q": q, "mse": mse}
        return ActorLoss(behaviour, q, info)

    def q_scale(self, q):
        """Return 1, or one over the batch's mean |Q|."""
        return inverse_mean_magnitude(q) if self.config.normalize_q_loss else jnp.ones(())

    def log_prob(self, obs: Obs, act: Float[Array, " act"]) -> Float[Array, ""]:
        """Return log pi(act | obs), summed over action dimensions, in nats."""
        mean, log_std = self._moments(obs)
        return _log_prob(mean, log_std, jnp.arctanh(jnp.clip(act, -LIMIT, LIMIT)))

    def _sample(self, obs: Obs, key: PRNGKeyArray) -> tuple[Float[Array, " act"], Float[Array, ""]]:
        """Draw an action; return it and its log-likelihood, both differentiable. Consumes `key`."""
        mean, log_std = self._moments(obs)
        before_tanh = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(before_tanh), _log_prob(mean, log_std, before_tanh)

    def _moments(self, obs: Obs) -> tuple[Float[Array, " act"], Float[Array, " act"]]:
        mean, log_std = jnp.split(self.net(encode(self.encoder, obs)), 2)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)

    def _temperature(self) -> Float[Array, ""]:
        if self.log_temperature is None:
            return jnp.asarray(self.config.temperature, jnp.float32)
        return jnp.exp(self.log_temperature)


def _log_prob(
    mean: Float[Array, " act"], log_std: Float[Array, " act"], before_tanh: Float[Array, " act"]
) -> Float[Array, ""]:
    """Return the log-density of tanh(x) for x ~ N(mean, std): the Gaussian's less log(1 - tanh(x)^2), without
    overflow."""
    gaussian = jax.scipy.stats.norm.logpdf(before_tanh, mean, jnp.exp(log_std))
    squashing = 2 * (jnp.log(2.0) - before_tanh - jax.nn.softplus(-2 * before_tanh))
    return jnp.sum(gaussian - squashing)
