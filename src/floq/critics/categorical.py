"""The categorical critic: an ensemble of networks from (s, a) to a histogram over returns, trained by cross-entropy.

Source: HL-Gauss, "Stop Regressing" (arXiv 2403.03950). It is the control for floq's histogram: here the histogram is
the output of the network, in floq it is the input z. The number of bins is floq's; the smoothing is that paper's, since
smoothing as wide as floq's would bias the mean towards the middle of the support.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.critics.base import Info, ReturnScale, td_errors
from floq.critics.ensemble import EnsembleCritic, ValueEnsembleConfig
from floq.networks.embeddings import NumEdges, histogram
from floq.networks.mlp import MLP, ensemble
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import HiddenDims, NonNegativeFloat, PositiveFloat


@dataclass(frozen=True)
class CategoricalConfig(ValueEnsembleConfig):
    """Settings of the categorical critic."""

    value_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of each member."""
    num_bins: NumEdges = 51
    """Edges of the histogram (one more than its bins)."""
    sigma: PositiveFloat = 0.75
    """Smoothing of the target, in bin widths; the default is that of HL-Gauss."""
    support_margin: NonNegativeFloat = 0.05
    """Widens the support by this share of the return range on both sides: more than two bins, so that the extreme
    returns fit in with their smoothing."""

    @property
    def hidden_width(self) -> int:
        return max(self.value_hidden_dims)


class CategoricalCritic(EnsembleCritic):
    """Ensemble of networks that output the logits of a histogram; Q is its mean."""

    bounded: ClassVar[bool] = True

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: CategoricalConfig | None = None
    ) -> "CategoricalCritic":
        """Initialise the ensemble. Consumes `key`."""
        c, size_in = config or CategoricalConfig(), ObsSpec.of(obs_spec).dim + action_dim
        member = lambda k: MLP.init(k, size_in, c.value_hidden_dims, c.num_bins - 1, c.layer_norm)  # noqa: E731
        return cls(ensemble(member, key, c.value_num_ensembles), c)

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Compute the cross-entropy of each member to the smoothed target, averaged over members."""
        c = self.config
        low, high = self._support(scale)
        target_masses = histogram(jax.lax.stop_gradient(target), low, high, c.num_bins, c.sigma)
        log_masses = jax.nn.log_softmax(self._logits(obs, act))
        loss = -jnp.mean(log_masses @ target_masses)
        q = jnp.mean(self.members(obs, act, scale))
        return loss, {"critic_loss": loss, "q": q, **td_errors(target, q)}

    def diagnose(self, obs, act, scale: ReturnScale, key) -> Info:
        """Return `member_spread`, the standard deviation of Q over the members, `return_spread`, that of the histogram,
        and `mass_at_ends`, its mass in the first and the last bin, where the support may be too narrow."""
        centres, masses = self.histograms(obs, act, scale)
        values = self.members(obs, act, scale)
        variance = jnp.maximum(masses @ jnp.square(centres) - jnp.square(values), 0.0)
        return {
            "member_spread": jnp.std(values),
            "return_spread": jnp.mean(jnp.sqrt(variance)),
            "mass_at_ends": jnp.mean(masses[:, 0] + masses[:, -1]),
        }

    def members(self, obs, act, scale: ReturnScale):
        """Return the mean of each member's histogram."""
        centres, masses = self.histograms(obs, act, scale)
        return masses @ centres

    def histograms(self, obs, act, scale: ReturnScale) -> tuple[Float[Array, " bins"], Float[Array, "members bins"]]:
        return self._centres(scale), jax.nn.softmax(self._logits(obs, act))

    def _logits(self, obs: Float[Array, " obs"], act: Float[Array, " act"]) -> Float[Array, "members bins"]:
        return jax.vmap(lambda member: member(jnp.concatenate([obs, act])))(self.net)

    def _centres(self, scale: ReturnScale) -> Float[Array, " bins"]:
        low, high = self._support(scale)
        bins = self.config.num_bins - 1
        return low + (high - low) * (jnp.arange(bins) + 0.5) / bins

    def _support(self, scale: ReturnScale) -> tuple[Float[Array, ""], Float[Array, ""]]:
        low, high = scale.support(0.0)
        margin = self.config.support_margin * (high - low)
        return low - margin, high + margin
