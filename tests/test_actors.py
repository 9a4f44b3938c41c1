"""The one-step flow policy against NumPy, and where its gradients go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, ACTOR, OBS
from oracle import gelu

from floq.actors import FQLActor

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
    np.testing.assert_allclose(actor.act(obs, jnp.sum, jax.random.key(3)), expected, rtol=1e-4)
