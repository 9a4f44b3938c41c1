"""Actors against NumPy and SciPy, and where their gradients go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, ACTOR, OBS, SCALAR, agent_config
from oracle import gelu
from scipy.stats import norm

from floq.actors import (
    BestOfNActor,
    BestOfNConfig,
    DeterministicActor,
    DeterministicConfig,
    FQLActor,
    GaussianActor,
    GaussianConfig,
)
from floq.agent.agent import Agent
from floq.utils.errors import UserError

KEYS = ("x_0", "t", "noise", "mse")  # the order in which the loss splits its key


def make_actor() -> FQLActor:
    """An actor whose outputs leave [-1, 1] here and there, so that clipping shows."""
    actor = FQLActor.init(jax.random.key(0), OBS, ACT, ACTOR)
    return jax.tree.map(lambda leaf: 2.0 * leaf, actor)


def network(net, x):
    x = x @ np.asarray(net.entry.weight) + np.asarray(net.entry.bias)
    for linear in net.body.linears:
        x = gelu(x) @ np.asarray(linear.weight) + np.asarray(linear.bias)
    return x


def loss(actor, obs, act, alpha=1.0, value=jnp.sum):
    return actor.loss(obs, act, value, jnp.float32(alpha), jax.random.key(7))


def inputs():
    return jnp.array([0.3, -1.0, 2.0]), jnp.array([0.5, -0.9])


def test_every_term_against_numpy():
    actor, (obs, act) = make_actor(), inputs()
    keys = dict(zip(KEYS, jax.random.split(jax.random.key(7), 4), strict=True))
    x_0, t = np.asarray(jax.random.normal(keys["x_0"], (ACT,))), float(jax.random.uniform(keys["t"]))
    noise = np.asarray(jax.random.normal(keys["noise"], (ACT,)))

    x_t = (1 - t) * x_0 + t * np.asarray(act)
    velocity = network(actor.flow.net, np.concatenate([obs, x_t, [t]]))
    bc_flow = np.mean((velocity - (np.asarray(act) - x_0)) ** 2)
    x = noise
    for i in range(ACTOR.actor_flow_steps):
        x = x + network(actor.flow.net, np.concatenate([obs, x, [i / ACTOR.actor_flow_steps]])) / ACTOR.actor_flow_steps
    one_step = network(actor.one_step, np.concatenate([obs, noise]))
    distill = np.mean((one_step - np.clip(x, -1, 1)) ** 2)
    assert np.abs(x).max() > 1 or np.abs(one_step).max() > 1  # else clipping is not tested

    terms = loss(actor, obs, act, alpha=3.0)
    assert float(terms.info["bc_flow_loss"]) == pytest.approx(bc_flow, rel=1e-4)
    assert float(terms.info["distill_loss"]) == pytest.approx(distill, rel=1e-4)
    assert float(terms.q) == pytest.approx(np.clip(one_step, -1, 1).sum(), rel=1e-4, abs=1e-5)
    assert float(terms.behaviour) == pytest.approx(bc_flow + 3.0 * distill, rel=1e-4)


def test_distillation_and_q_leave_the_behaviour_flow_alone():
    obs, act = inputs()
    grads = jax.grad(lambda actor: loss(actor, obs, act).info["distill_loss"] - loss(actor, obs, act).q)(make_actor())
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads.flow))
    assert any(leaf.any() for leaf in jax.tree.leaves(grads.one_step))


def test_behaviour_cloning_leaves_the_one_step_policy_alone():
    obs, act = inputs()
    grads = jax.grad(lambda actor: loss(actor, obs, act).info["bc_flow_loss"])(make_actor())
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads.one_step))
    assert any(leaf.any() for leaf in jax.tree.leaves(grads.flow))


def test_acting_clips_the_one_step_policy():
    actor, (obs, _) = make_actor(), inputs()
    noise = np.asarray(jax.random.normal(jax.random.key(3), (ACT,)))
    expected = np.clip(network(actor.one_step, np.concatenate([obs, noise])), -1, 1)
    np.testing.assert_allclose(actor.act(obs, jax.random.key(3)), expected, rtol=1e-4)


# --- tanh-Gaussian ---


def make_gaussian(**settings) -> GaussianActor:
    return GaussianActor.init(jax.random.key(1), OBS, ACT, GaussianConfig(actor_hidden_dims=(16, 16), **settings))


def test_the_likelihood_of_a_squashed_gaussian_against_scipy():
    """By the change of variables: density of atanh(a), over the slope of tanh there."""
    actor, (obs, act) = make_gaussian(), inputs()
    mean, log_std = np.split(network(actor.net, np.asarray(obs)), 2)
    x = np.arctanh(np.asarray(act, np.float64))
    expected = norm.logpdf(x, mean, np.exp(log_std)) - np.log(1 - np.tanh(x) ** 2)
    assert float(actor.log_prob(obs, act)) == pytest.approx(expected.sum(), rel=1e-4)
    assert np.isfinite(actor.log_prob(obs, jnp.array([1.0, -1.0])))


def test_a_gaussians_likelihood_is_a_density():
    """Of a single number: over (-1, 1) it integrates to one."""
    actor = GaussianActor.init(jax.random.key(2), OBS, 1, GaussianConfig(actor_hidden_dims=(16,)))
    grid = jnp.linspace(-1, 1, 20_001)[1:-1]
    density = jnp.exp(jax.vmap(lambda a: actor.log_prob(jnp.ones(OBS), a[None]))(grid))
    assert float(density.sum() * (grid[1] - grid[0])) == pytest.approx(1.0, abs=1e-3)


def test_a_gaussian_acts_by_its_mode_and_samples_for_targets():
    actor, (obs, _) = make_gaussian(), inputs()
    mean, log_std = np.split(network(actor.net, np.asarray(obs)), 2)
    np.testing.assert_allclose(actor.act(obs, jax.random.key(0)), np.tanh(mean), rtol=1e-4)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.arctanh(np.asarray(jax.vmap(lambda k: actor.target_act(obs, k))(keys)))
    np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), np.exp(log_std), rtol=0.1)


def test_a_gaussians_loss_by_hand():
    """alpha times the negative log-likelihood per number, plus temperature times the sample's log-likelihood."""
    actor, (obs, act) = make_gaussian(temperature=0.3), inputs()
    terms = loss(actor, obs, act, alpha=2.0)
    sampled = actor.target_act(obs, jax.random.key(7))
    log_prob = actor.log_prob(obs, sampled)
    expected = -2.0 * actor.log_prob(obs, act) / ACT + 0.3 * log_prob
    assert float(terms.behaviour) == pytest.approx(float(expected), rel=1e-3)
    assert float(terms.q) == pytest.approx(float(sampled.sum()), rel=1e-5)
    assert float(terms.info["entropy"]) == pytest.approx(-float(log_prob) / ACT, rel=1e-3)


@pytest.mark.parametrize(("target_entropy", "sign"), [(-10.0, 1), (10.0, -1)])
def test_a_learned_temperature_falls_where_there_is_more_entropy_than_wanted(target_entropy, sign):
    actor, (obs, act) = make_gaussian(temperature=1.0, learn_temperature=True, target_entropy=target_entropy), inputs()
    grads = jax.grad(lambda actor: loss(actor, obs, act).behaviour)(actor)
    assert np.sign(grads.log_temperature) == sign
    assert make_gaussian().log_temperature is None
    with pytest.raises(UserError, match="start above 0"):
        GaussianConfig(learn_temperature=True)
    with pytest.raises(UserError, match="entropy is worth nothing"):
        GaussianConfig(entropy_backup=True)


def test_a_soft_target_subtracts_temperature_times_log_likelihood():
    actor, (obs, act) = make_gaussian(temperature=0.5, entropy_backup=True), inputs()
    assert actor.has_target_penalty
    assert not make_gaussian(temperature=0.5).has_target_penalty
    penalty = actor.target_penalty(obs, act, jnp.float32(0.0), jax.random.key(3))
    sampled = actor.target_act(obs, jax.random.key(3))
    assert float(penalty) == pytest.approx(0.5 * float(actor.log_prob(obs, sampled)), rel=1e-3)


# --- deterministic ---


def make_deterministic(**settings) -> DeterministicActor:
    config = DeterministicConfig(actor_hidden_dims=(16, 16), actor_head_scale=1.0, **settings)
    return DeterministicActor.init(jax.random.key(1), OBS, ACT, config)


def test_a_deterministic_actor_against_numpy():
    actor, (obs, act) = make_deterministic(), inputs()
    own = np.tanh(network(actor.net, np.asarray(obs)))
    np.testing.assert_allclose(actor.act(obs, jax.random.key(0)), own, rtol=1e-4)
    terms = loss(actor, obs, act, alpha=3.0)
    assert float(terms.behaviour) == pytest.approx(3.0 * np.sum((own - np.asarray(act)) ** 2), rel=1e-4)
    assert float(terms.q) == pytest.approx(own.sum(), rel=1e-4)
    assert float(actor.q_scale(jnp.array([-2.0, 6.0]))) == pytest.approx(1 / 4)
    assert float(make_deterministic(normalize_q_loss=False).q_scale(jnp.array([-2.0, 6.0]))) == 1


def test_noise_on_the_targets_action_is_clipped():
    actor, (obs, _) = make_deterministic(actor_noise=0.2, actor_noise_clip=0.1), inputs()
    own = actor.act(obs, jax.random.key(0))
    noise = jax.vmap(lambda k: actor.target_act(obs, k) - own)(jax.random.split(jax.random.key(1), 200))
    assert float(jnp.abs(noise).max()) == pytest.approx(0.1, abs=1e-5)
    assert float(jnp.abs(noise).min()) < 0.05


def test_leaving_the_data_costs_in_the_target():
    actor, (obs, act) = make_deterministic(alpha_critic=2.0, actor_noise=0.0), inputs()
    own = actor.act(obs, jax.random.key(0))
    penalty = lambda valid: actor.target_penalty(obs, act, jnp.float32(valid), jax.random.key(1))  # noqa: E731
    assert float(penalty(1)) == pytest.approx(2.0 * float(jnp.sum((own - act) ** 2)), rel=1e-4)
    assert float(penalty(0)) == 0
    assert actor.reads_next_action
    assert not make_deterministic().reads_next_action


def test_the_last_layer_starts_small():
    small = DeterministicActor.init(jax.random.key(1), OBS, ACT, DeterministicConfig(actor_hidden_dims=(16, 16)))
    ratio = np.asarray(small.net.body.linears[-1].weight) / np.asarray(make_deterministic().net.body.linears[-1].weight)
    np.testing.assert_allclose(ratio, 0.01, rtol=1e-4)


# --- best of N ---


def test_best_of_n_samples_its_behaviour_flow_and_imitates_the_data():
    config = BestOfNConfig(actor_hidden_dims=(16, 16), actor_flow_steps=3, num_candidates=6, target_candidates=2)
    actor, (obs, act) = BestOfNActor.init(jax.random.key(1), OBS, ACT, config), inputs()
    noise = jax.random.normal(jax.random.key(5), (ACT,))
    np.testing.assert_array_equal(actor.sample(obs, jax.random.key(5)), actor.flow.act(obs, noise, 3))
    assert (actor.num_candidates, actor.target_candidates) == (6, 2)
    assert dataclasses.replace(actor, config=BestOfNConfig(num_candidates=6)).target_candidates == 6
    terms = loss(actor, obs, act)
    assert float(terms.q) == 0  # nothing is climbed
    assert float(terms.behaviour) == float(terms.info["bc_flow_loss"]) > 0


def test_how_actors_explore():
    """The Gaussian samples, the deterministic one adds its noise, the others act."""
    obs, keys = jnp.ones(OBS), jax.random.split(jax.random.key(0), 400)

    def drawn(config):
        policy = Agent.init(jax.random.key(1), OBS, ACT, agent_config(SCALAR, config)).policy
        raw = jax.random.key_data(keys)
        draw = lambda verb: jax.vmap(lambda k: verb(obs, jax.random.wrap_key_data(k)))(raw)  # noqa: E731
        return np.asarray(draw(policy.act)), np.asarray(draw(policy.explore))

    acted, explored = drawn(GaussianConfig(actor_hidden_dims=(8,)))
    assert acted.std(axis=0).max() < 1e-5
    assert explored.std(axis=0).min() > 0.1
    acted, explored = drawn(DeterministicConfig(actor_hidden_dims=(8,), exploration_noise=0.05))
    np.testing.assert_allclose((explored - acted).std(axis=0), 0.05, rtol=0.2)
    acted, explored = drawn(ACTOR)
    np.testing.assert_array_equal(acted, explored)
    assert acted.std(axis=0).min() > 0.01
