"""Policies: action selection in environments and in TD targets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors import Actor
from floq.critics import Critic, ReturnScale
from floq.networks.precision import matmul_precision
from floq.utils.obs_spec import ObsSpec


class ObsStats(NamedTuple):
    """Statistics that normalise observations, or by name those of their parts that are vectors; mean 0 and std 1 leave
    them unchanged. From the data, so traced."""

    mean: Any
    std: Any

    @classmethod
    def identity(cls, obs_spec: ObsSpec) -> "ObsStats":
        """Return the statistics that leave observations as they are."""
        zeros = jax.tree.map(jnp.asarray, obs_spec.vectors(obs_spec.read(obs_spec.zeros())))
        return cls(zeros, jax.tree.map(jnp.ones_like, zeros))

    def normalize(self, obs: Any, obs_spec: ObsSpec) -> Any:
        """Return what networks read of observations: normalised vectors, and images with values in [0, 1]; by name if
        there are several parts. Raises UserError if a part is missing, or of another shape."""
        if obs_spec.is_vector:
            return (obs - self.mean) / self.std
        parts = obs_spec.read(obs)
        vectors = {name: (parts[name] - self.mean[name]) / self.std[name] for name in self.mean}
        return vectors | {name: parts[name].astype(jnp.float32) / 255 for name in obs_spec.images}


class Policy(eqx.Module):
    """The part of an agent that acts: much smaller than the agent, so it can be kept for a later evaluation. It
    includes the critic if it chooses among several candidates."""

    actor: Actor
    critic: Critic | None  # None with one candidate
    scale: ReturnScale | None
    obs_stats: ObsStats
    obs_spec: ObsSpec = eqx.field(static=True)
    num_candidates: int = eqx.field(static=True, default=1)

    @jax.jit
    def act(self, obs: Any, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return one action in [-1, 1] for one observation, a vector, the parts by name, or a row of `ObsSpec`; vmap
        over both arguments for many. Consumes `key`. With the setting `action_chunk` h it is the next h actions,
        concatenated, to be executed one after another."""
        return self._select(self.actor.act, obs, key)

    @jax.jit
    def explore(self, obs: Any, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Act as `act` does, but with the actor's exploration, to collect new experience. Consumes `key`."""
        return self._select(self.actor.explore, obs, key)

    @jax.jit
    def rank(self, obs: Any, act: Float[Array, " act"], key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the value by which `act` and `explore` rank the candidate `act` when they are called with `key`.
        Consumes `key`. Raises ValueError if there is one candidate."""
        if self.critic is None or self.scale is None:
            raise ValueError("one candidate is not ranked")
        with matmul_precision("f32"):
            return self.critic.ranking_value(self._normalize(obs), act, self.scale, jax.random.split(key)[1])

    def _select(self, alone: Callable[[Array, PRNGKeyArray], Array], obs: Any, key: PRNGKeyArray) -> Array:
        """Take the action of `alone`, or the best candidate if there are several."""
        obs = self._normalize(obs)
        with matmul_precision("f32"):
            if self.critic is None or self.scale is None:
                return alone(obs, key)
            return best_of(self.num_candidates, self.actor, self.critic, self.scale, obs, key)

    def _normalize(self, obs: Any) -> Any:
        return self.obs_stats.normalize(obs, self.obs_spec)


def best_of(
    num_candidates: int,
    actor: Actor,
    critic: Critic,
    scale: ReturnScale,
    obs: Any,
    key: PRNGKeyArray,
) -> Float[Array, " act"]:
    """Sample so many actions of the actor, and return the one that the critic ranks highest: all with the same random
    numbers, such as a flow's source noise, so that luck does not decide. Consumes `key`."""
    sample_key, value_key = jax.random.split(key)
    candidates = jax.vmap(actor.sample, (None, 0))(obs, jax.random.split(sample_key, num_candidates))
    values = jax.vmap(lambda act: critic.ranking_value(obs, act, scale, value_key))(candidates)
    return candidates[jnp.argmax(values)]
