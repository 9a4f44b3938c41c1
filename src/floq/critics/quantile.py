"""The implicit quantile critic, floq's distributional baseline: an ensemble of networks from (s, a, tau) to the
tau-quantile of the return.

Source: IQN (arXiv 1806.06923), in the form that the floq paper compares with: tau enters as cosines beside (s, a),
without a learned projection, and the error is squared.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from floq.critics.base import Critic, Info, PolicyFn, ReturnScale, aggregate, td_errors
from floq.critics.ensemble import EnsembleConfig, check_no_num_steps
from floq.networks.mlp import MLP, ensemble
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, PositiveFloat, Size

EVEN_TAUS = [i / 50 for i in range(1, 50)]  # of the quantiles whose mean is a member's value


@dataclass(frozen=True)
class QuantileConfig(EnsembleConfig):
    """Settings of the implicit quantile critic; the defaults are the published ones."""

    value_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of each member."""
    num_tau_samples: Size = 8
    """Quantiles per transition, of the target and of the current value alike (M)."""
    kappa: PositiveFloat = 1.0
    """Divides the loss."""
    embed_quantile: bool = True
    """tau enters as cosines; otherwise as itself."""
    quantile_embed_dim: Size = 64
    """Number of cosines."""

    @property
    def hidden_width(self) -> int:
        return max(self.value_hidden_dims)


class QuantileCritic(Critic):
    """Ensemble of implicit quantile networks."""

    net: MLP  # stacked over the ensemble
    config: QuantileConfig = eqx.field(static=True)

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: QuantileConfig | None = None
    ) -> "QuantileCritic":
        """Initialise the ensemble. Consumes `key`."""
        c = config or QuantileConfig()
        size_in = ObsSpec.of(obs_spec).dim + action_dim + (c.quantile_embed_dim if c.embed_quantile else 1)
        member = lambda k: MLP.init(k, size_in, c.value_hidden_dims, 1, c.layer_norm)  # noqa: E731
        return cls(ensemble(member, key, c.value_num_ensembles), c)

    def target_network(self) -> "QuantileCritic":
        return self

    def target(self, reward, bootstrap, next_obs, policy: PolicyFn, scale: ReturnScale, key):
        """Compute `target_at` with M random quantiles and one action of the policy for each."""
        key, pair = self.config.random_pair(key)
        act_key, tau_key = jax.random.split(key)
        next_acts = jax.vmap(policy, (None, 0))(next_obs, jax.random.split(act_key, self.config.num_tau_samples))
        return self.target_at(reward, bootstrap, next_obs, next_acts, self._taus(tau_key), pair)

    def target_at(
        self,
        reward: Float[Array, ""],
        bootstrap: Float[Array, ""],
        next_obs: Float[Array, " obs"],
        next_acts: Float[Array, "samples act"],
        taus: Float[Array, " samples"],
        pair: Int[Array, " 2"] | None = None,
    ) -> Float[Array, " samples"]:
        """Compute y_j = r + g mask agg_e Z_e(s', a_j, tau_j): one target per sample, not their mean."""
        c = self.config

        def value_of_sample(act: Float[Array, " act"], tau: Float[Array, ""]) -> Float[Array, ""]:
            return aggregate(self._members(next_obs, act, tau), c.q_agg, c.rho, pair)

        return reward + bootstrap * jax.vmap(value_of_sample)(next_acts, taus)

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Compute `loss_at` with random quantiles."""
        return self.loss_at(obs, act, target, self._taus(key))

    def loss_at(
        self,
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        target: Float[Array, " targets"],
        taus: Float[Array, " samples"],
    ) -> tuple[Float[Array, ""], Info]:
        """Compute |tau - 1{error < 0}| error^2 / kappa, with error = target - current; summed over the current
        quantiles, averaged over targets and members."""
        values = jax.vmap(lambda tau: self._members(obs, act, tau))(taus)  # (samples, members)
        errors = target[:, None, None] - values[None]  # (targets, samples, members)
        weights = jnp.abs(taus[None, :, None] - (errors < 0))
        loss = jnp.mean(jnp.sum(weights * jnp.square(errors), axis=1)) / self.config.kappa
        q = jnp.mean(values)
        return loss, {"critic_loss": loss, "q": q, **td_errors(jnp.mean(target), q)}

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """Return the mean over M quantiles and members. There is no integration, so `num_steps` must be None."""
        check_no_num_steps(num_steps)
        return jnp.mean(self.actor_value(obs, act, scale, key))

    def actor_value(self, obs, act, scale: ReturnScale, key) -> Float[Array, " samples"]:
        """Return M quantiles, each the mean over the members."""
        return jnp.mean(jax.vmap(lambda tau: self._members(obs, act, tau))(self._taus(key)), axis=1)

    def diagnose(self, obs, act, scale: ReturnScale, key) -> Info:
        """Return `quantile_spread` and `member_spread`, the value's standard deviation over quantiles and members."""
        values = jax.vmap(lambda tau: self._members(obs, act, tau))(self._taus(key))  # (samples, members)
        return {
            "quantile_spread": jnp.mean(jnp.std(values, axis=0)),
            "member_spread": jnp.std(jnp.mean(values, axis=0)),
        }

    def features(self, obs, act, scale: ReturnScale):
        """Return the features at the median."""
        return jax.vmap(lambda member: member.features(self._input(obs, act, jnp.float32(0.5))))(self.net)

    def member_values(self, obs, act, scale: ReturnScale, key) -> Float[Array, " members"]:
        """Return each member's mean over evenly spaced quantiles."""
        return jnp.mean(self.quantiles(obs, act, scale, jnp.array(EVEN_TAUS)), axis=1)

    def quantiles(self, obs, act, scale: ReturnScale, taus: Float[Array, " taus"]) -> Float[Array, "members taus"]:
        return jax.vmap(lambda tau: self._members(obs, act, tau), out_axes=1)(taus)

    def _taus(self, key: PRNGKeyArray) -> Float[Array, " samples"]:
        return jax.random.uniform(key, (self.config.num_tau_samples,))

    def _members(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], tau: Float[Array, ""]
    ) -> Float[Array, " members"]:
        return jax.vmap(lambda member: member(self._input(obs, act, tau))[0])(self.net)

    def _input(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], tau: Float[Array, ""]
    ) -> Float[Array, " inputs"]:
        c = self.config
        tau_input = jnp.cos(jnp.pi * jnp.arange(1, c.quantile_embed_dim + 1) * tau) if c.embed_quantile else tau[None]
        return jnp.concatenate([obs, act, tau_input])
