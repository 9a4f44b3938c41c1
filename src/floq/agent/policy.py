"""How an agent acts, in an environment and in TD targets."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.actors import Actor, Value
from floq.critics import Critic, ReturnScale
from floq.networks.precision import matmul_precision


class ObsStats(NamedTuple):
    """What observations are normalised with: mean 0 and std 1 leave them alone. From the data, so traced."""

    mean: Float[Array, " obs"]
    std: Float[Array, " obs"]


class Policy(eqx.Module):
    """What it takes to act: small beside the agent, so it can be kept for an evaluation that comes later. An actor that
    ranks actions brings the critic along."""

    actor: Actor
    critic: Critic | None
    scale: ReturnScale | None
    obs_stats: ObsStats

    @jax.jit
    def act(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """One action in [-1, 1] for one observation; vmap over both for many. Consumes `key`. With the setting
        `action_chunk` h it is the next h actions, laid end to end, to be executed one after another."""
        return self._select(self.actor.act, obs, key)

    @jax.jit
    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """The same with the actor's own exploration, for new experience."""
        return self._select(self.actor.explore, obs, key)

    def _select(self, verb: Callable[[Array, Value, PRNGKeyArray], Array], obs: Array, key: PRNGKeyArray) -> Array:
        with matmul_precision("f32"):
            return select_action(verb, self.critic, self.scale, (obs - self.obs_stats.mean) / self.obs_stats.std, key)


def select_action(
    verb: Callable[[Array, Value, PRNGKeyArray], Array],
    critic: Critic | None,
    scale: ReturnScale | None,
    obs: Float[Array, " obs"],
    key: PRNGKeyArray,
) -> Float[Array, " act"]:
    """What an actor's verb, `act`, `explore` or `target_act`, chooses. With a critic it may ask for values, of all
    candidates with the same random numbers; without one it never does."""
    if critic is None or scale is None:
        return verb(obs, _never_asked, key)
    act_key, value_key = jax.random.split(key)
    return verb(obs, lambda act: jnp.mean(critic.actor_value(obs, act, scale, value_key)), act_key)


def _never_asked(act: Float[Array, " act"]) -> Float[Array, ""]:
    raise AssertionError("an actor that asks for values says so in `needs_critic`")
