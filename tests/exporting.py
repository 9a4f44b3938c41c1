"""Agents of every kind, exported: what the tests of `floq export` share."""

import dataclasses

import jax
import jax.numpy as jnp
from helpers import ACT, ACTOR, CATEGORICAL, FLOQ, OBS, QUANTILE, SCALAR, WIDTH, agent_config

from floq.actors import BestOfNConfig, DeterministicConfig, GaussianConfig
from floq.agent.agent import Agent
from floq.agent.policy import ObsStats
from floq.export.formats import Exportable, write_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy

HIDDEN = (WIDTH, WIDTH)
BEST = BestOfNConfig(actor_hidden_dims=HIDDEN, actor_flow_steps=2, num_candidates=4)
SMALL = dataclasses.replace(FLOQ, critic_flow_steps=2)
INTEGRATED = dataclasses.replace(
    SMALL, actor_climbs="flow", actor_noise_samples=2, time_embedding="fourier", solver="midpoint"
)
ONE_PASS = dataclasses.replace(
    SMALL, actor_climbs="one_pass", noise_scheme="stratified", use_resnets=True, use_prob_embed=False
)
PAIRS = {
    "fql": (ACTOR, FLOQ),
    "gaussian": (GaussianConfig(actor_hidden_dims=HIDDEN), SCALAR),
    "deterministic": (DeterministicConfig(actor_hidden_dims=HIDDEN, actor_layer_norm=True), SCALAR),
    "best, distilled": (BEST, FLOQ),
    "best, integrated": (BEST, INTEGRATED),
    "best, one pass": (BEST, ONE_PASS),
    "best, scalar": (BEST, SCALAR),
    "best, residual": (BEST, dataclasses.replace(SCALAR, use_resnets=True, block_width=WIDTH)),
    "best, quantile": (BEST, QUANTILE),
    "best, categorical": (BEST, CATEGORICAL),
}


def make_agent(actor, critic, seed=0, action_dim=ACT):
    stats = ObsStats(jnp.asarray([0.5, -2.0, 3.0]), jnp.asarray([2.0, 0.1, 1.0]))
    return Agent.init(jax.random.key(seed), OBS, action_dim, agent_config(critic, actor), obs_stats=stats)


def make_exportable(agent, explore=False, chunk=1, action_dim=ACT):
    traced = TracedPolicy.of(agent.policy, agent.obs_spec, explore)
    sizes = {"observation_size": OBS, "action_size": action_dim, "action_chunk": chunk}
    return Exportable(traced, translate(traced), {"about": {"task": "a test", "step": 3, "floq": "0"}, **sizes})


def written(folder, agent, form="numpy", explore=False):
    policy = make_exportable(agent, explore)
    write_exported(form, policy, folder)
    return policy
