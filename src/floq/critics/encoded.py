"""A critic that reads images: any other one behind an encoder, which its networks, members and target share."""

from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from floq.critics.base import Act, Critic, Ranking, ReturnScale
from floq.networks.encoders import Encoder
from floq.utils.obs_spec import ObsSpec


class EncodedCritic(Critic):
    """A critic whose observations are encoded first, once for each, however often it evaluates its networks there. Its
    target network has a copy of the encoder."""

    encoder: Encoder
    critic: Critic

    @classmethod
    def of(
        cls, kind: type[Critic], key: PRNGKeyArray, obs_spec: ObsSpec, action_dim: int, config: Any = None
    ) -> Critic:
        """Initialise a critic of this kind, behind an encoder if observations have images. Consumes `key`."""
        if obs_spec.is_vector:
            return kind.init(key, obs_spec, action_dim, config)
        encoder_key, critic_key = jax.random.split(key)
        encoder, dim = Encoder.init(encoder_key, obs_spec)
        assert encoder is not None
        return cls(encoder, kind.init(critic_key, ObsSpec.of(dim), action_dim, config))

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec, action_dim: int, config: Any = None) -> "Critic":
        """Not used, see `of`."""
        raise NotImplementedError

    def target_network(self) -> "EncodedCritic":
        return EncodedCritic(self.encoder, self.critic.target_network())

    def target(self, reward, bootstrap, next_obs, policy, scale: ReturnScale, key):
        """Compute the critic's target; the policy sees the observation itself."""
        of_images = lambda _, key: policy(next_obs, key)  # noqa: E731
        return self.critic.target(reward, bootstrap, self.encoder(next_obs), of_images, scale, key)

    def loss(self, obs, act, target, scale: ReturnScale, key):
        return self.critic.loss(self.encoder(obs), act, target, scale, key)

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        return self.critic.read_out(self.encoder(obs), act, scale, key, num_steps)

    def actor_value(self, obs, act, scale: ReturnScale, key):
        return self.critic.actor_value(self.encoder(obs), act, scale, key)

    def ranking_value(self, obs, act, scale: ReturnScale, key):
        return self.critic.ranking_value(self.encoder(obs), act, scale, key)

    def diagnose(self, obs, act, scale: ReturnScale, key):
        return self.critic.diagnose(self.encoder(obs), act, scale, key)

    def features(self, obs, act, scale: ReturnScale):
        return self.critic.features(self.encoder(obs), act, scale)

    def member_values(self, obs, act, scale: ReturnScale, key):
        return self.critic.member_values(self.encoder(obs), act, scale, key)

    def histograms(self, obs, act, scale: ReturnScale):
        return self.critic.histograms(self.encoder(obs), act, scale)

    def quantiles(self, obs, act, scale: ReturnScale, taus):
        return self.critic.quantiles(self.encoder(obs), act, scale, taus)

    @property
    def flow_steps(self) -> int | None:
        return self.critic.flow_steps

    def trajectories(self, z_0, obs, act, scale: ReturnScale, num_steps=None):
        return self.critic.trajectories(z_0, self.encoder(obs), act, scale, num_steps)

    def velocities(self, z, t, obs, act: Act, scale: ReturnScale):
        return self.critic.velocities(z, t, self.encoder(obs), act, scale)

    def ranking_by(self, rank_by: Ranking | None, acting_flow_steps: int | None) -> "EncodedCritic":
        return EncodedCritic(self.encoder, self.critic.ranking_by(rank_by, acting_flow_steps))
