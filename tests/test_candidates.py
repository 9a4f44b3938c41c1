"""A policy that takes the best of several samples of its actor: by hand, in TD targets, and changed after training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, ACTOR, FLOQ, OBS, QUANTILE, SCALAR, agent_config, make_batch

from floq.actors import BestOfNConfig, DeterministicConfig, GaussianConfig
from floq.agent.agent import Agent
from floq.utils.errors import UserError

BEST = BestOfNConfig(actor_hidden_dims=(16, 16), actor_flow_steps=2, num_candidates=5)


def make_agent(critic=FLOQ, actor=ACTOR) -> Agent:
    return Agent.init(jax.random.key(0), OBS, ACT, agent_config(critic, actor))


def by_actor_value(critic, obs, act, scale, key):
    return jnp.mean(critic.actor_value(obs, act, scale, key))


def by_flow(critic, obs, act, scale, key, num_steps=FLOQ.critic_flow_steps):
    z_0 = critic._source(key, 1, scale)
    return jnp.mean(critic.trajectories(z_0, obs, act, scale, num_steps)[..., -1])


def by_one_pass(*given):
    return by_flow(*given, num_steps=1)


def best_by_hand(agent, value, num, obs, key):
    """The sample of the actor with the highest value, and all values, computed with the same random numbers."""
    sample_key, value_key = jax.random.split(key)
    acts = [agent.params.actor.sample(obs, key) for key in jax.random.split(sample_key, num)]
    critic, scale = agent.params.critic, agent.scale
    values = [float(value(critic, obs, act, scale, jax.random.clone(value_key))) for act in acts]
    return acts[int(np.argmax(values))], values


@pytest.mark.parametrize(
    ("critic", "actor", "value"),
    [
        (FLOQ, BEST, by_actor_value),
        (replace(FLOQ, rank_by="flow"), BEST, by_flow),
        (replace(FLOQ, rank_by="one_pass"), replace(ACTOR, num_candidates=5), by_one_pass),
        (QUANTILE, BEST, by_actor_value),
        (SCALAR, GaussianConfig(actor_hidden_dims=(16, 16), num_candidates=5), by_actor_value),
    ],
    ids=["distilled", "flow", "one pass", "quantile", "gaussian"],
)
def test_the_best_candidate_is_taken(critic, actor, value):
    agent, obs, key = make_agent(critic, actor), jnp.ones(OBS), jax.random.key(3)
    best, values = best_by_hand(agent, value, 5, obs, jax.random.clone(key))
    assert np.ptp(values) > 1e-4
    np.testing.assert_allclose(agent.act(obs, jax.random.clone(key)), best, rtol=1e-5)
    np.testing.assert_allclose(agent.policy.explore(obs, jax.random.clone(key)), best, rtol=1e-5)
    assert float(agent.policy.rank(obs, best, key)) == pytest.approx(max(values), rel=1e-4)


@pytest.mark.parametrize(
    "actor", [ACTOR, BEST, GaussianConfig(actor_hidden_dims=(16, 16))], ids=["fql", "flow", "gaussian"]
)
def test_a_temperature_scales_the_noise_of_samples(actor):
    """At 0 all samples are that without noise; at 1 they are the actor's."""
    kind, obs, keys = make_agent(actor=actor).params.actor, jnp.ones(OBS), jax.random.split(jax.random.key(3), 20)
    at = lambda t: jax.vmap(kind.at_temperature(t).sample, (None, 0))(obs, jax.random.clone(keys))  # noqa: E731
    np.testing.assert_array_equal(at(1.0), jax.vmap(kind.sample, (None, 0))(obs, jax.random.clone(keys)))
    assert np.ptp(at(0.0), axis=0).max() < 1e-6
    assert np.std(at(0.0), axis=0).max() < np.std(at(0.1), axis=0).max() < np.std(at(1.0), axis=0).max()
    fixed = make_agent(actor=DeterministicConfig(actor_hidden_dims=(16, 16))).params.actor
    assert fixed.at_temperature(0.0) is fixed


def test_candidates_may_change_without_training():
    """With one the actor acts alone, without the critic; more are ranked, also where the actor climbs another value."""
    agent, obs, act, key = make_agent(), jnp.ones(OBS), jnp.zeros(ACT), jax.random.key(3)
    alone = agent.params.actor.act(obs, jax.random.clone(key))
    np.testing.assert_allclose(agent.best_of(1).act(obs, jax.random.clone(key)), alone, rtol=1e-5)
    assert agent.policy.critic is None
    with pytest.raises(ValueError, match="one candidate is not ranked"):
        agent.policy.rank(obs, act, jax.random.clone(key))
    for given, value in (
        ((8,), by_actor_value),
        ((8, "flow"), by_flow),
        ((8, "flow", 1), by_one_pass),
        ((8, "one_pass"), by_one_pass),
    ):
        policy = agent.best_of(*given)
        expected = value(agent.params.critic, obs, act, agent.scale, jax.random.split(jax.random.clone(key))[1])
        assert policy.num_candidates == 8
        assert float(policy.rank(obs, act, jax.random.clone(key))) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ((0,), "num_candidates=0: must be greater than 0"),
        ((None, "flow"), "rank_by=flow: with one candidate nothing is ranked"),
        ((1, None, 4), "acting_flow_steps=4: with one candidate nothing is ranked"),
        ((8, None, 4), "acting_flow_steps=4: with --agent.actor_climbs=distilled no actor integrates the flow"),
        ((8, "flow", 0), "acting_flow_steps=0: must be greater than 0"),
    ],
)
def test_what_cannot_be_chosen(given, complaint):
    with pytest.raises(UserError, match=complaint):
        make_agent().best_of(*given)


def test_who_cannot_choose():
    with pytest.raises(UserError, match="only a flow critic has several values to rank by"):
        make_agent(SCALAR).best_of(8, "flow")
    with pytest.raises(UserError, match="actor 'deterministic' has one action and no samples"):
        make_agent(SCALAR, DeterministicConfig(actor_hidden_dims=(16, 16))).best_of(8)
    with pytest.raises(UserError, match="rank_by=flow: one candidate is not ranked"):
        agent_config(replace(FLOQ, rank_by="flow"))
    with pytest.raises(UserError, match=r"rank_by=distilled: .* there is no distilled critic"):
        replace(FLOQ, actor_climbs="flow", rank_by="distilled")


def test_a_target_chooses_once_for_all_its_quantiles():
    """The online critic selects one action, and the target network evaluates every quantile of it."""
    agent = make_agent(QUANTILE, replace(BEST, target_candidates=4))
    agent = replace(agent, target=jax.tree.map(lambda x: 1.5 * x, agent.target))
    batch = agent._prepare({name: x[:1] for name, x in make_batch().items()})
    next_obs = batch["next_observations"][0]
    (key,) = jax.random.split(jax.random.key(2), 1)
    key, act_key = jax.random.split(key)
    best, _ = best_by_hand(agent, by_actor_value, 4, next_obs, act_key)
    taus = agent.target._taus(jax.random.split(key)[1])
    expected = agent.target.target_at(batch["rewards"][0], jnp.float32(0.99), next_obs, jnp.stack([best] * 3), taus)
    found = agent.td_targets({name: x[:1] for name, x in make_batch().items()}, jax.random.key(2))
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)
