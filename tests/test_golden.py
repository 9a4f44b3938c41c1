"""Equal to the authors' code, number by number: networks, targets, losses, logged values, gradients, a whole update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import FLOWS, NAMES, golden, replayed

from floq.networks.embeddings import histogram

CLOSE = {"rtol": 2e-5, "atol": 1e-6}


def vmapped(function, *arguments):
    return jax.jit(jax.vmap(function))(*arguments)


@pytest.fixture
def x64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.usefixtures("x64")
def test_velocity_fields(name):
    """At 16 points, in float64: values are up to 5, so what is seen is the authors' rounding and none of ours."""
    g = golden(name)
    agent = in_float64(g.agent())
    obs, act, z, t, *theirs = (
        in_float64(g[f"probe/{what}"]) for what in ("obs", "act", "z", "t", "velocity", "target_velocity")
    )
    at = lambda member, obs, act, z, t: member.at(obs, act, agent.scale)(z[0], t[0])  # noqa: E731
    of_member = lambda member, z: vmapped(lambda *x: at(member, *x), obs, act, z, t)  # noqa: E731
    for field, values in zip((agent.params.critic.velocity, agent.target.velocity), theirs, strict=True):
        ours = jax.vmap(of_member)(field, z)
        assert ours.dtype == float
        np.testing.assert_allclose(ours, values[..., 0], **CLOSE)


def in_float64(tree):
    return jax.tree.map(lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


@pytest.mark.parametrize("name", NAMES)
def test_networks(name):
    """Every other network at 16 points."""
    g = golden(name)
    agent, probe = g.agent(), lambda what: g[f"probe/{what}"]
    obs, act = probe("critic_obs"), probe("critic_act")
    critic = agent.params.critic
    if name in FLOWS:
        ours = vmapped(critic._distilled_members, obs, act)
    elif "iqn" in name:
        ours = vmapped(critic._members, obs, act, probe("critic_tau")[:, 0])
    else:
        ours = vmapped(lambda obs, act: critic.members(obs, act, agent.scale), obs, act)
    np.testing.assert_allclose(ours.T, probe("critic"), **CLOSE)
    actor, noise = agent.params.actor, 3 * act
    steps = g.config.actor.actor_flow_steps
    flow = vmapped(lambda obs, noise: actor.flow.act(obs, noise, steps), obs, noise)
    np.testing.assert_allclose(flow, probe("behaviour_flow_action"), **CLOSE)
    np.testing.assert_allclose(vmapped(actor._one_step, obs, noise), probe("one_step_action"), **CLOSE)


@pytest.mark.parametrize("name", FLOWS)
def test_noise_support_and_histogram(name):
    """Also of values far outside the support, up to the three standard deviations beyond which ours stays finite."""
    g = golden(name)
    c, scale = g.config.critic, g.agent().scale
    low, high = scale.support(c.reward_offset)
    ends = [*scale.noise(jnp.array([0.0, 1.0])), low, high]
    known = [g[f"value/{what}"] for what in ("noise_low", "noise_high", "support_low", "support_high")]
    np.testing.assert_allclose(ends, known, rtol=2e-5)
    z, theirs = g["value/histogram_z"], g["value/histogram"]
    std = c.sigma * (high - low) / (c.num_bins - 1)
    inside = (z > low - 3 * std) & (z < high + 3 * std)
    assert inside.sum() > 20
    ours = jax.jit(jax.vmap(lambda z: histogram(z, low, high, c.num_bins, c.sigma)))(z)
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=2e-4)  # far outside, erf cancels in both
    within = (z >= low) & (z <= high)
    np.testing.assert_allclose(ours[within], theirs[within], atol=1e-6)
    assert np.isfinite(ours).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_update(name, monkeypatch):
    """With their draws: TD targets, losses, gradients, everything logged, all networks after the step, and the target
    network, which follows the parameters from before it."""
    g = golden(name)
    agent = g.agent()
    with replayed(agent, g.draws, monkeypatch):
        target_key = jax.random.split(jax.random.fold_in(agent.key, 0), 3)[0]
        both = lambda agent, batch: (agent._targets(agent._prepare(batch), target_key), agent._step(batch))  # noqa: E731
        targets, (ours, info, _) = jax.jit(both)(agent, g.batch)
    if "value/td_target" in g.numbers:
        np.testing.assert_allclose(targets, g["value/td_target"], **CLOSE)
    logged = [key for key in g.numbers if key.startswith(("value/critic/", "value/actor/"))]
    assert len(logged) > 6
    for key in logged:
        assert float(info[key[6:]]) == pytest.approx(float(g.numbers[key]), rel=2e-5), key
    gradient = lambda state: jax.tree.map(lambda moment: 10 * moment, state.mu)  # noqa: E731  1 - b1 is a tenth
    critic_gradient, actor_gradient = g.networks("gradient_critic"), g.actor("gradient_actor")
    assert_close(gradient(ours.opt_state.critic), critic_gradient, 2e-5)
    assert_close(gradient(ours.opt_state.actor), actor_gradient, 2e-5)
    after = g.agent("after")
    for part in ("params", "target"):  # a step has length 3e-4
        assert_close(getattr(ours, part), getattr(after, part), 2e-7)


def assert_close(ours, theirs, tolerance):
    """Within `tolerance` of the largest number."""
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, other, atol=tolerance * max(1.0, float(jnp.abs(other).max())), rtol=0)


def test_quantiles_are_normalised_by_the_mean_of_their_magnitudes():
    """Where Z changes sign over quantiles, the mean of |Z| is far from |mean Z|; the authors take the former."""
    g = golden("fql_iqn")
    agent = g.agent()
    config = dataclasses.replace(agent.params.actor.config, normalize_q_loss=True)
    actor = dataclasses.replace(agent.params.actor, config=config)
    agent = dataclasses.replace(agent, params=agent.params._replace(actor=actor))
    agent = dataclasses.replace(agent, static=dataclasses.replace(agent.static, actor=config))
    batch, key = agent._prepare(g.batch), jax.random.key(3)
    _, info = agent._actor_loss(actor, batch, key)

    def values_of(obs, key):
        act_key, value_key = jax.random.split(key)
        noise = jax.random.normal(jax.random.split(act_key, 4)[2], (g.action_dim,))
        return agent.params.critic.actor_value(
            obs, jnp.clip(actor._one_step(obs, noise), -1, 1), agent.scale, value_key
        )

    values = vmapped(values_of, batch["observations"], jax.random.split(jax.random.key(3), 4))
    assert np.shape(values) == (4, 4)  # rows, quantiles
    assert np.abs(values).mean() > 1.05 * np.abs(np.mean(values, axis=1)).mean()
    assert float(info["actor/q_loss"]) == pytest.approx(float(-values.mean() / np.abs(values).mean()), rel=1e-4)
