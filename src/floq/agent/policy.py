"""Policies: action selection in environments and in TD targets."""

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
    """Statistics that normalise observations; mean 0 and std 1 leave them unchanged. From the data, so traced."""

    mean: Float[Array, " obs"]
    std: Float[Array, " obs"]


class Policy(eqx.Module):
    """The part of an agent that acts: much smaller than the agent, so it can be kept for a later evaluation. It
    includes the critic if the actor ranks actions."""

    actor: Actor
    critic: Critic | None
    scale: ReturnScale | None
    obs_stats: ObsStats

    @jax.jit
    def act(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return one action in [-1, 1] for one observation; vmap over both arguments for many. Consumes `key`. With the
        setting `action_chunk` h it is the next h actions, concatenated, to be executed one after another."""
        return self._select(self.actor.act, obs, key)

    @jax.jit
    def explore(self, obs: Float[Array, " obs"], key: PRNGKeyArray) -> Float[Array, " act"]:
        """Act as `act` does, but with the actor's exploration, to collect new experience. Consumes `key`."""
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
    """Select an action by `verb`, an actor's `act`, `explore` or `target_act`. With a critic, `verb` may evaluate
    actions, all with the same random numbers; without one it must not. Consumes `key`."""
    if critic is None or scale is None:
        return verb(obs, _no_critic, key)
    act_key, value_key = jax.random.split(key)
    return verb(obs, lambda act: jnp.mean(critic.actor_value(obs, act, scale, value_key)), act_key)


def _no_critic(act: Float[Array, " act"]) -> Float[Array, ""]:
    raise AssertionError("an actor that evaluates actions must set `needs_critic`")
