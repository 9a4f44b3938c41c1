"""Critics against the NumPy oracle, with the random draws passed in; and where gradients may not go."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from helpers import ACT, CATEGORICAL, FLOQ, OBS, QUANTILE, SCALAR, scale

from floq.agent.config import AgentConfig
from floq.critics import (
    CategoricalCritic,
    FloqConfig,
    FloqCritic,
    LoopedConfig,
    LoopedCritic,
    QuantileCritic,
    ScalarConfig,
    ScalarCritic,
)
from floq.critics.base import aggregate
from floq.flow import source_nodes
from floq.networks.mlp import ResidualBody
from floq.utils.errors import UserError

RNG = np.random.default_rng(0)
LOW, HIGH = oracle.support(-1.0, 0.0, 0.99)


def uniform(*shape) -> jax.Array:
    return jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32)


def floq_critic(seed=0, **changes) -> FloqCritic:
    """A critic whose norms and biases have left their initial values, so that a mistake in them shows."""
    critic = FloqCritic.init(jax.random.key(seed), OBS, ACT, dataclasses.replace(FLOQ, **changes))
    leaves, structure = jax.tree.flatten(critic)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    return jax.tree.unflatten(
        structure, [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    )


target_at, loss_at = jax.jit(FloqCritic.target_at), jax.jit(FloqCritic.loss_at)


def test_the_scale_of_returns():
    """r in [-2, 1], g = 0.9, c = 0.1: noise in [-2, 1], support [-20.1, 10.1]."""
    s = scale(-2.0, 1.0, 0.9, 0.1)
    np.testing.assert_allclose(s.noise(jnp.array([0.0, 0.5, 1.0])), [-2.0, -0.5, 1.0], rtol=1e-5)
    np.testing.assert_allclose(s.support(0.01), [-20.1, 10.1], rtol=1e-5)


@pytest.mark.parametrize("how", ["mean", "min"])
@pytest.mark.parametrize("integration", ["plain", "folded"])
@pytest.mark.parametrize("steps", [1, 4])
def test_target_against_the_oracle(how, steps, integration):
    critic = floq_critic(q_agg=how, critic_flow_steps=steps, integration=integration)
    next_obs, next_acts, z_0 = uniform(OBS), uniform(3, ACT), jnp.array([-9.0, -4.0, -0.5])
    ours = target_at(critic.target_network(), jnp.float32(-1.0), jnp.float32(0.99), next_obs, next_acts, scale(), z_0)
    reduce = {"mean": np.mean, "min": np.min}[how]
    theirs = oracle.target(critic.velocity, -1.0, 0.99, next_obs, next_acts, z_0, steps, reduce, LOW, HIGH)
    assert float(ours) == pytest.approx(theirs, rel=2e-4)


def test_minimum_is_taken_per_sample_before_the_mean_over_samples():
    """Members cross each other between samples, so min-then-mean differs from mean-then-min."""
    critic = floq_critic(q_agg="min")
    args = (uniform(OBS), uniform(3, ACT), scale(), jnp.array([-9.0, -4.0, -0.5]))
    members = np.array([
        [oracle.integrate(critic.velocity, e, args[0], act, float(z), 4, LOW, HIGH) for e in range(2)]
        for act, z in zip(args[1], args[3], strict=True)
    ])  # fmt: skip
    ours = float(target_at(critic, jnp.float32(0.0), jnp.float32(1.0), *args))
    assert ours == pytest.approx(members.min(axis=1).mean(), rel=2e-4)


@pytest.mark.parametrize("steps", [1, 4])
def test_loss_and_distillation_against_the_oracle(steps):
    critic = floq_critic(critic_flow_steps=steps)
    obs, act, y = uniform(OBS), uniform(ACT), jnp.float32(-42.0)
    z_0, t = jnp.array([-9.0, -4.0, -0.5]), jnp.array([0.1, 0.9, 0.4])
    total, info = loss_at(critic, obs, act, y, scale(), z_0, t, z_0)
    flow, distilled = oracle.losses(critic, obs, act, float(y), z_0, t, steps, LOW, HIGH)
    assert float(info["floq_loss"]) == pytest.approx(flow, rel=2e-4)
    assert float(info["distilled_critic_loss"]) == pytest.approx(distilled, rel=2e-4)
    assert float(total) == pytest.approx(flow + distilled, rel=2e-4)


def test_drawn_and_given_are_the_same_mathematics():
    """`target` and `loss` only add draws to `target_at` and `loss_at`, a fresh action for each source sample."""
    critic = floq_critic(noise_scheme="midpoint", train_at_zero_only=True)
    obs, act, z_0 = uniform(OBS), uniform(ACT), scale().noise(source_nodes(jax.random.key(0), 3, "midpoint"))
    policy = lambda obs, key: jax.random.uniform(key, (ACT,), minval=-1.0)  # noqa: E731
    key = jax.random.key(5)
    acts = jax.vmap(policy, (None, 0))(obs, jax.random.split(jax.random.split(key)[0], 3))
    assert len(np.unique(np.asarray(acts), axis=0)) == 3
    reward, bootstrap = jnp.float32(-1.0), jnp.float32(0.5)
    given = target_at(critic, reward, bootstrap, obs, acts, scale(), z_0)
    drawn = critic.target(reward, bootstrap, obs, policy, scale(), jax.random.key(5))
    np.testing.assert_allclose(drawn, given, rtol=1e-5)
    given = loss_at(critic, obs, act, reward, scale(), z_0, jnp.zeros(3), z_0)[0]
    np.testing.assert_allclose(critic.loss(obs, act, reward, scale(), jax.random.key(6))[0], given, rtol=1e-5)


def test_separate_numbers_of_samples_for_loss_target_and_distillation():
    critic = floq_critic(noise_scheme="midpoint", noise_samples=4, target_noise_samples=2, distill_noise_samples=1)
    obs, act, y, policy = uniform(OBS), uniform(ACT), jnp.float32(-5.0), lambda obs, key: jnp.zeros(ACT)
    one, two, four = (scale().noise(source_nodes(jax.random.key(n), n, "midpoint")) for n in (1, 2, 4))
    given = target_at(critic, y, y / 10, obs, jnp.zeros((2, ACT)), scale(), two)
    np.testing.assert_allclose(critic.target(y, y / 10, obs, policy, scale(), jax.random.key(0)), given, rtol=1e-5)
    drawn = critic.loss(obs, act, y, scale(), jax.random.key(1))[1]
    given = loss_at(critic, obs, act, y, scale(), four, jnp.zeros(4), one)[1]
    assert float(drawn["distilled_critic_loss"]) == pytest.approx(float(given["distilled_critic_loss"]), rel=1e-4)
    assert float(drawn["flow_q"]) == pytest.approx(float(given["flow_q"]), rel=1e-4)


def test_read_out_is_the_mean_over_noise_and_members_with_any_number_of_steps():
    critic = floq_critic(noise_scheme="midpoint")
    obs, act = uniform(OBS), uniform(ACT)
    z_0 = np.asarray(scale().noise(source_nodes(jax.random.key(0), 3, "midpoint")))
    for steps in (None, 1, 7):
        ours = float(critic.read_out(obs, act, scale(), jax.random.key(1), steps))
        values = [
            oracle.integrate(critic.velocity, e, obs, act, float(z), steps or 4, LOW, HIGH)
            for e in range(2)
            for z in z_0
        ]
        assert ours == pytest.approx(np.mean(values), rel=2e-4)
        paths = critic.trajectories(jnp.asarray(z_0), obs, act, scale(), steps)
        assert paths.shape == (2, 3, (steps or 4) + 1)
        assert float(paths[..., -1].mean()) == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize("changes", [{"time_embedding": "fourier"}, {"embed_time": False}, {"use_prob_embed": False}])
def test_embedding_options_change_the_function(changes):
    obs, act, key = uniform(OBS), uniform(ACT), jax.random.key(1)
    value = FloqCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(FLOQ, **changes)).read_out(
        obs, act, scale(), key
    )
    assert np.isfinite(value)
    plain = FloqCritic.init(jax.random.key(0), OBS, ACT, FLOQ).read_out(obs, act, scale(), jax.random.key(1))
    assert abs(float(value - plain)) > 1e-4


@pytest.mark.parametrize("norm_last", [True, False])
def test_a_residual_velocity_field_against_the_oracle(norm_last):
    critic = floq_critic(use_resnets=True, num_transformations=3, activate_before_layernorm=norm_last)
    assert isinstance(critic.velocity.body, ResidualBody)
    assert len(critic.velocity.body.blocks) == 3
    obs, act, z_0 = uniform(OBS), uniform(ACT), jnp.array([-9.0, -4.0, -0.5])
    ours = target_at(critic, jnp.float32(-1.0), jnp.float32(0.9), obs, jnp.stack([act] * 3), scale(), z_0)
    theirs = oracle.target(critic.velocity, -1.0, 0.9, obs, [act] * 3, z_0, 4, np.mean, LOW, HIGH)
    assert float(ours) == pytest.approx(theirs, rel=2e-4)


def test_nothing_derived_from_data_is_a_leaf():
    """A histogram support stored in the module would be trained; it is an argument."""
    leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(floq_critic())]
    assert all(name.endswith(("weight", "weight_x", "weight_y", "bias", "scale", "shift")) for name in leaves), leaves


def test_distillation_teaches_the_distilled_critic_alone():
    """The velocity field's gradient is that of the flow-matching loss: it does not change when distillation is exact,
    and none crosses the integration."""
    critic = floq_critic()
    obs, act, z_0, t = uniform(OBS), uniform(ACT), jnp.array([-9.0, -4.0, -0.5]), jnp.array([0.1, 0.9, 0.4])

    def part(critic, name):
        return loss_at(critic, obs, act, jnp.float32(-40.0), scale(), z_0, t, z_0)[1][name]

    gradient = jax.jit(jax.grad(part), static_argnums=1)
    distill = gradient(critic, "distilled_critic_loss")
    assert all(not leaf.any() for leaf in jax.tree.leaves(distill.velocity))
    assert any(leaf.any() for leaf in jax.tree.leaves(distill.distilled))
    flow = gradient(critic, "floq_loss")
    assert all(not leaf.any() for leaf in jax.tree.leaves(flow.distilled))
    assert any(leaf.any() for leaf in jax.tree.leaves(flow.velocity))


def test_folding_needs_layer_norms():
    with pytest.raises(UserError, match=r"integration=folded: .* use plain"):
        dataclasses.replace(FLOQ, integration="folded", layer_norm=False)


def test_the_targets_integration_may_have_its_own_number_of_steps():
    critic = floq_critic(critic_flow_steps=4, target_flow_steps=2)
    obs, acts, z_0 = uniform(OBS), uniform(3, ACT), jnp.array([-9.0, -4.0, -0.5])
    low, high = oracle.support(-1.0, 0.0, 0.99)
    y = target_at(critic, jnp.float32(-1.0), jnp.float32(0.9), obs, acts, scale(), z_0)
    draws = obs, acts, np.asarray(z_0)
    expected = {k: oracle.target(critic.velocity, -1.0, 0.9, *draws, k, np.mean, low, high) for k in (2, 4)}
    assert float(y) == pytest.approx(expected[2], rel=1e-4)
    assert abs(expected[2] - expected[4]) > 1e-3


@pytest.mark.parametrize("what", ["one_pass", "td"])
def test_what_else_the_distilled_critic_may_learn(what):
    critic = floq_critic(distill_target=what)
    obs, act, z_0, t = uniform(OBS), uniform(ACT), jnp.array([-9.0, -4.0, -0.5]), jnp.array([0.1, 0.9, 0.4])
    low, high = oracle.support(-1.0, 0.0, 0.99)
    _, info = loss_at(critic, obs, act, jnp.float32(-40.0), scale(), z_0, t, z_0)
    one_pass = [
        float(z) + oracle.velocity(critic.velocity, e, obs, act, float(z), 0.0, low, high)
        for e in range(2)
        for z in z_0
    ]
    learned = np.mean(one_pass) if what == "one_pass" else -40.0
    entry, x = critic.distilled.entry, np.concatenate([obs, act])
    heads = [
        oracle.body(critic.distilled, m, x @ np.asarray(entry.weight)[m] + np.asarray(entry.bias)[m]) for m in range(2)
    ]
    assert float(info["distilled_critic_loss"]) == pytest.approx(np.mean((np.array(heads) - learned) ** 2), rel=1e-4)
    assert float(info["q"]) == pytest.approx(np.mean(heads), rel=1e-4)
    value = np.mean(one_pass if what == "one_pass" else heads)
    assert float(info["abs_td_error"]) == pytest.approx(abs(-40.0 - value), rel=1e-4)
    assert float(info["td_error"]) == pytest.approx((-40.0 - value) ** 2, rel=1e-4)
    assert float(info["flow_q"]) == pytest.approx(value if what == "one_pass" else np.nan, rel=1e-4, nan_ok=True)


def test_the_actor_climbs_the_distilled_critic_alone():
    critic = floq_critic()
    obs, act = uniform(OBS), uniform(ACT)
    grads = jax.grad(lambda c: c.actor_value(obs, act, scale(), jax.random.key(0)))(critic)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads.velocity))
    inputs = np.concatenate([obs, act])
    entry = critic.distilled.entry
    members = [
        oracle.body(critic.distilled, m, inputs @ np.asarray(entry.weight)[m] + np.asarray(entry.bias)[m])
        for m in range(2)
    ]
    ours = critic.actor_value(obs, act, scale(), jax.random.key(0))
    assert float(ours) == pytest.approx(np.mean(members), rel=1e-4)


def test_a_target_network_is_the_velocity_field_alone():
    critic = floq_critic()
    assert critic.target_network().distilled is None
    with pytest.raises(AssertionError):
        critic.target_network().actor_value(uniform(OBS), uniform(ACT), scale(), jax.random.key(0))


def test_a_vmapped_initialisation_equals_a_looped_one():
    keys = jax.random.split(jax.random.key(3), 2)
    stacked = jax.vmap(lambda k: FloqCritic.init(k, OBS, ACT, FLOQ))(keys)
    for i, key in enumerate(jax.random.split(jax.random.key(3), 2)):
        single = FloqCritic.init(key, OBS, ACT, FLOQ)
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(single), strict=True):
            np.testing.assert_array_equal(a[i], b)


@pytest.mark.parametrize("how", ["mean", "min"])
def test_scalar_target_and_loss_by_hand(how):
    critic = ScalarCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(SCALAR, q_agg=how))
    obs, act, next_act = uniform(OBS), uniform(ACT), uniform(ACT)

    def members(obs, act):
        entry = critic.net.entry
        x = np.concatenate([obs, act])
        return [
            oracle.body(critic.net, m, x @ np.asarray(entry.weight)[m] + np.asarray(entry.bias)[m]) for m in range(2)
        ]

    y = critic.target(
        jnp.float32(-1.0), jnp.float32(0.9), obs, lambda obs, key: jnp.asarray(next_act), scale(), jax.random.key(0)
    )
    expected = -1.0 + 0.9 * {"mean": np.mean, "min": np.min}[how](members(obs, next_act))
    assert float(y) == pytest.approx(expected, rel=1e-4)
    loss, info = critic.loss(obs, act, jnp.float32(-3.0), scale(), jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean((np.array(members(obs, act)) + 3.0) ** 2), rel=1e-4)
    assert float(info["q"]) == pytest.approx(np.mean(members(obs, act)), rel=1e-4)


def test_a_scalar_critic_has_no_number_of_steps():
    critic = ScalarCritic.init(jax.random.key(0), OBS, ACT, SCALAR)
    with pytest.raises(ValueError, match="not integrated"):
        critic.read_out(uniform(OBS), uniform(ACT), scale(), jax.random.key(0), 4)


def test_residual_scalar_critic():
    config = dataclasses.replace(SCALAR, use_resnets=True, block_width=16, block_depth=2, num_transformations=2)
    critic = ScalarCritic.init(jax.random.key(0), OBS, ACT, config)
    assert isinstance(critic.net.body, ResidualBody)
    obs, act = uniform(OBS), uniform(ACT)
    inputs, entry = np.concatenate([obs, act]), critic.net.entry
    members = [oracle.body(critic.net, m, inputs @ entry.weight[m] + entry.bias[m]) for m in range(2)]
    assert float(critic.read_out(obs, act, scale(), jax.random.key(0))) == pytest.approx(np.mean(members), rel=1e-4)


def test_blocks_size_a_plain_scalar_critic_unless_its_layers_are_listed():
    """The published FQL: `block_depth` x `block_width`."""
    blocks = ScalarConfig(block_width=12, block_depth=3)
    listed = dataclasses.replace(blocks, value_hidden_dims=(12, 12, 12))
    shapes = [jax.eval_shape(lambda c=c: ScalarCritic.init(jax.random.key(0), OBS, ACT, c)) for c in (blocks, listed)]
    assert blocks.hidden_dims == (12, 12, 12)
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])
    assert ScalarConfig().hidden_dims == (512,) * 4
    assert ScalarConfig(value_hidden_dims=(7,)).hidden_dims == (7,)


@pytest.mark.parametrize("how", ["mean", "min"])
def test_quantile_target_loss_and_value_against_the_oracle(how):
    critic = QuantileCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(QUANTILE, q_agg=how, kappa=2.0))
    obs, act, next_acts, taus = uniform(OBS), uniform(ACT), uniform(3, ACT), jnp.array([0.1, 0.5, 0.8])
    targets = critic.target_at(jnp.float32(-1.0), jnp.float32(0.9), obs, next_acts, taus)
    reduce = {"mean": np.mean, "min": np.min}[how]
    expected = [
        -1.0 + 0.9 * reduce([oracle.quantile(critic, e, obs, a, float(tau)) for e in range(2)])
        for a, tau in zip(next_acts, taus, strict=True)
    ]
    np.testing.assert_allclose(targets, expected, rtol=1e-4)
    values = [oracle.quantile(critic, e, obs, act, float(tau)) for e in range(2) for tau in taus]
    y = np.mean(values) + jnp.array([-0.3, 0.2])  # on both sides, so that both weights count
    loss, info = critic.loss_at(obs, act, y, taus)
    assert float(loss) == pytest.approx(float(oracle.quantile_loss(critic, obs, act, np.asarray(y), taus)), rel=1e-4)
    assert float(info["q"]) == pytest.approx(np.mean(values), rel=1e-4)


def test_a_quantile_critic_draws_an_action_per_quantile_and_reads_out_the_mean():
    critic = QuantileCritic.init(jax.random.key(0), OBS, ACT, QUANTILE)
    obs, act, key = uniform(OBS), uniform(ACT), jax.random.key(1)
    policy = lambda obs, key: jax.random.uniform(key, (ACT,), minval=-1.0)  # noqa: E731
    assert critic.target(jnp.float32(0.0), jnp.float32(0.9), obs, policy, scale(), key).shape == (3,)
    taus = critic._taus(jax.random.key(2))
    expected = np.mean([oracle.quantile(critic, e, obs, act, float(tau)) for e in range(2) for tau in taus])
    assert float(critic.read_out(obs, act, scale(), jax.random.key(2))) == pytest.approx(expected, rel=1e-4)
    assert float(critic.actor_value(obs, act, scale(), jax.random.key(2)).mean()) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="not integrated"):
        critic.read_out(obs, act, scale(), jax.random.key(0), 4)
    plain = QuantileCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(QUANTILE, embed_quantile=False))
    assert plain.net.entry.weight.shape == (2, OBS + ACT + 1, 16)


def test_aggregation():
    values = jnp.array([1.0, 4.0])
    assert aggregate(values, "mean") == 2.5
    assert aggregate(values, "min") == 1.0
    with pytest.raises(ValueError, match="choose mean, min, lcb, min_pair"):
        aggregate(values, "max")
    with pytest.raises(ValueError, match="give the pair"):
        aggregate(values, "min_pair")


def test_the_minimum_of_a_random_pair():
    """Of members 0 to 4, with values 10 to 14, ten pairs are as likely as each other: the minimum is 10 in four of ten
    cases, 13 in one, and never 14."""
    config = ScalarConfig(value_num_ensembles=5, q_agg="min_pair")

    def draw(key):
        _, pair = config.random_pair(key)
        assert pair is not None
        return aggregate(jnp.arange(10.0, 15.0), "min_pair", pair=pair)

    minima = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(0), 2000)))
    shares = [np.mean(minima == value) for value in range(10, 15)]
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1, 0.0], atol=0.04)
    with pytest.raises(UserError, match="an ensemble of one has no pairs"):
        ScalarConfig(value_num_ensembles=1, q_agg="min_pair")
    with pytest.raises(UserError, match="an ensemble of one has no pairs"):
        FloqConfig(flow_num_ensembles=1, q_agg="min_pair")


@pytest.mark.parametrize("kind", [ScalarCritic, CategoricalCritic])
def test_a_target_is_the_mean_over_actions_of_the_aggregate_over_members(kind):
    config = dataclasses.replace({ScalarCritic: SCALAR, CategoricalCritic: CATEGORICAL}[kind], q_agg="min")
    critic = kind.init(jax.random.key(0), OBS, ACT, dataclasses.replace(config, target_action_samples=3))
    next_obs = uniform(OBS)
    policy = lambda obs, key: jax.random.uniform(key, (ACT,), minval=-1.0)  # noqa: E731
    drawn = [policy(next_obs, key) for key in jax.random.split(jax.random.key(5), 3)]
    expected = -1 + 0.9 * np.mean([critic.members(next_obs, act, scale()).min() for act in drawn])
    found = critic.target(jnp.float32(-1.0), jnp.float32(0.9), next_obs, policy, scale(), jax.random.key(5))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def looped_critic(**changes) -> LoopedCritic:
    """The networks of `floq_critic`, looped."""
    flow = floq_critic(**changes)
    config = LoopedConfig(**{f.name: getattr(flow.config, f.name) for f in dataclasses.fields(LoopedConfig)})
    return LoopedCritic(dataclasses.replace(flow.velocity, config=config), flow.distilled, config)


def test_looped_iterates_and_losses_against_the_oracle():
    critic, (obs, act), y = looped_critic(critic_flow_steps=3), (uniform(OBS), uniform(ACT)), -42.0
    middle, ends, loop_loss = -5.0, [], []  # of the noise interval [-10, 0]
    paths = np.asarray(critic.trajectories(jnp.array([middle]), obs, act, scale()))
    for member in range(2):
        path = [middle]
        for i in range(3):
            step = oracle.velocity(critic.velocity, member, obs, act, path[-1], i / 3, LOW, HIGH)
            path.append(path[-1] + step)
        np.testing.assert_allclose(paths[member, 0], path, rtol=2e-4)
        ends.append(path[-1])
        loop_loss.append(sum((z - y) ** 2 for z in path[1:]))
    key = jax.random.key(0)
    _, info = jax.jit(LoopedCritic.loss)(critic, obs, act, jnp.float32(y), scale(), key)
    assert float(info["floq_loss"]) == pytest.approx(np.mean(loop_loss), rel=2e-4)
    assert float(info["flow_q"]) == pytest.approx(np.mean(ends), rel=2e-4)
    distilled = np.asarray(critic._distilled_members(obs, act), np.float64)
    expected = np.mean((distilled - np.mean(ends)) ** 2)
    assert float(info["distilled_critic_loss"]) == pytest.approx(expected, rel=1e-3)
    assert float(critic.read_out(obs, act, scale(), key)) == pytest.approx(np.mean(ends), rel=2e-4)
    act_in = lambda obs, key: act  # noqa: E731
    target = critic.target_network().target(jnp.float32(-1.0), jnp.float32(0.9), obs, act_in, scale(), key)
    assert float(target) == pytest.approx(-1 + 0.9 * np.mean(ends), rel=2e-4)


def test_no_gradient_passes_from_one_iterate_to_the_next():
    """The gradient is that of the same loss with every z_i held fixed."""
    critic, (obs, act), y = looped_critic(critic_flow_steps=3), (uniform(OBS), uniform(ACT)), jnp.float32(-42.0)
    path = critic.trajectories(jnp.array([-5.0]), obs, act, scale())[:, 0]

    def held(velocity):
        def of_member(member, z):
            steps = jax.vmap(member.at(obs, act, scale()))(z[:-1], jnp.arange(3) / 3)
            return jnp.sum(jnp.square(z[:-1] + steps - y))

        return jnp.mean(jax.vmap(of_member)(velocity, path))

    own = lambda v: dataclasses.replace(critic, velocity=v).loss(obs, act, y, scale(), jax.random.key(0))[0]  # noqa: E731
    found, expected = jax.jit(jax.grad(own))(critic.velocity), jax.jit(jax.grad(held))(critic.velocity)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-2)


def test_an_actor_climbs_all_iterates_of_a_looped_critic():
    """The gradient of the last iterate by the action, against finite differences: it passes through those before."""
    critic, obs, act = looped_critic(critic_flow_steps=3, actor_climbs="flow"), uniform(OBS), uniform(ACT)
    value = jax.jit(lambda act: critic.actor_value(obs, act, scale(), jax.random.key(0)))
    found = jax.jit(jax.grad(value))(act)
    for axis in range(ACT):
        step = 1e-2 * jnp.eye(ACT)[axis]
        difference = float(value(act + step) - value(act - step)) / 2e-2
        assert float(found[axis]) == pytest.approx(difference, rel=0.05, abs=0.02)


@pytest.mark.parametrize(
    ("setting", "value"), [("noise_scheme", "midpoint"), ("solver", "midpoint"), ("integration", "fused")]
)
def test_a_looped_critic_refuses_what_belongs_to_a_flow(setting, value):
    with pytest.raises(UserError, match=f"--agent.{setting}"):
        AgentConfig.from_flat("looped", "fql", {setting: value})


def test_critics_have_only_array_leaves():
    scalar = ScalarCritic.init(jax.random.key(0), OBS, ACT, SCALAR)
    for critic in (floq_critic(), scalar, QuantileCritic.init(jax.random.key(0), OBS, ACT, QUANTILE)):
        assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(critic))


def test_pessimism_by_hand():
    """Members 1 and 4: mean 2.5, standard deviation 1.5."""
    assert float(aggregate(jnp.array([1.0, 4.0]), "lcb", 0.5)) == pytest.approx(2.5 - 0.75)
    critic = floq_critic(q_agg="lcb", rho=2.0)
    next_obs, next_acts, z_0 = uniform(OBS), uniform(3, ACT), jnp.array([-9.0, -4.0, -0.5])
    ours = target_at(critic.target_network(), jnp.float32(-1.0), jnp.float32(0.99), next_obs, next_acts, scale(), z_0)
    how = lambda values: np.mean(values) - 2.0 * np.std(values)  # noqa: E731
    theirs = oracle.target(critic.velocity, -1.0, 0.99, next_obs, next_acts, z_0, 4, how, LOW, HIGH)
    assert float(ours) == pytest.approx(theirs, rel=2e-4)


# --- categorical ---


def categorical(**changes) -> CategoricalCritic:
    return CategoricalCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(CATEGORICAL, **changes))


def categorical_members(critic, obs, act, low, high):
    """The masses of each member's histogram, and the mean of each."""
    entry, x = critic.net.entry, np.concatenate([obs, act])
    pick = lambda leaf, m: np.asarray(leaf)[m].astype(np.float64)  # noqa: E731
    masses = []
    for m in range(entry.bias.shape[0]):
        y = x @ pick(entry.weight, m) + pick(entry.bias, m)
        for activation, linear in zip(critic.net.body.activations, critic.net.body.linears, strict=True):
            y = oracle.layer_norm(oracle.gelu(y), pick(activation.norm.scale, m), pick(activation.norm.shift, m))
            y = y @ pick(linear.weight, m) + pick(linear.bias, m)
        masses.append(np.exp(y) / np.exp(y).sum())
    edges = np.linspace(low, high, critic.config.num_bins)
    return np.array(masses), np.array(masses) @ ((edges[1:] + edges[:-1]) / 2)


@pytest.mark.parametrize("how", ["mean", "min"])
def test_categorical_target_loss_and_value_against_numpy(how):
    critic, low, high = categorical(q_agg=how), (-1.0 - 0.05) / 0.01, 0.05 / 0.01
    obs, act, next_act = uniform(OBS), uniform(ACT), uniform(ACT)
    y = critic.target(jnp.float32(-1.0), jnp.float32(0.9), obs, lambda *_: next_act, scale(), jax.random.key(0))
    reduce = {"mean": np.mean, "min": np.min}[how]
    assert float(y) == pytest.approx(
        -1 + 0.9 * reduce(categorical_members(critic, obs, next_act, low, high)[1]), rel=1e-4
    )
    masses, values = categorical_members(critic, obs, act, low, high)
    wanted = oracle.histogram(-40.0, low, high, 51, 0.75)
    loss, info = critic.loss(obs, act, jnp.float32(-40.0), scale(), jax.random.key(0))
    assert float(loss) == pytest.approx(-np.mean(np.log(masses) @ wanted), rel=1e-4)
    assert float(info["q"]) == pytest.approx(values.mean(), rel=1e-4)
    assert float(critic.read_out(obs, act, scale(), jax.random.key(0))) == pytest.approx(values.mean(), rel=1e-4)
    assert float(critic.actor_value(obs, act, scale(), jax.random.key(0))) == pytest.approx(values.mean(), rel=1e-4)
    with pytest.raises(ValueError, match="not integrated"):
        critic.read_out(obs, act, scale(), jax.random.key(0), 4)
    found = critic.diagnose(obs, act, scale(), jax.random.key(0))
    assert float(found["member_spread"]) == pytest.approx(values.std(), rel=1e-3)
    assert float(found["mass_at_ends"]) == pytest.approx((masses[:, 0] + masses[:, -1]).mean(), rel=1e-3)
    edges = np.linspace(low, high, 51)
    spread = np.sqrt((masses * ((edges[1:] + edges[:-1]) / 2 - values[:, None]) ** 2).sum(axis=1))
    assert float(found["return_spread"]) == pytest.approx(spread.mean(), rel=1e-2)


@pytest.mark.parametrize("value", [-100.0, -37.2, 0.0])
def test_a_smoothed_target_keeps_its_mean(value):
    """With the default smoothing and support: within a hundredth of the range even at its ends."""
    low, high = scale().support(0.05)
    edges = np.linspace(float(low), float(high), 51)
    assert oracle.histogram(value, low, high, 51, 0.75) @ ((edges[1:] + edges[:-1]) / 2) == pytest.approx(
        value, abs=0.1
    )


# --- floq's dials ---


def test_the_midpoint_rule_in_targets_and_read_outs():
    critic = floq_critic(solver="midpoint", noise_scheme="midpoint", noise_samples=1, critic_flow_steps=3)
    obs, act, z = uniform(OBS), uniform(ACT), float(scale().noise(jnp.float32(0.5)))
    expected = []
    for e in range(2):
        path = z
        for i in range(3):
            v = lambda z, t, e=e: oracle.velocity(critic.velocity, e, obs, act, z, t, LOW, HIGH)  # noqa: E731
            path += v(path + v(path, i / 3) / 6, (i + 0.5) / 3) / 3
        expected.append(path)
    ours = critic.read_out(obs, act, scale(), jax.random.key(0))
    assert float(ours) == pytest.approx(np.mean(expected), rel=2e-4)
    y = target_at(critic, jnp.float32(0.0), jnp.float32(1.0), obs, act[None], scale(), jnp.array([z]))
    assert float(y) == pytest.approx(np.mean(expected), rel=2e-4)


@pytest.mark.parametrize(("climbs", "steps"), [("flow", 4), ("flow", 7), ("one_pass", 1)])
def test_the_actor_may_climb_the_flow_itself(climbs, steps):
    """Then there is no distilled critic, and the gradient with respect to the action is that of the integration."""
    acting = steps if climbs == "flow" and steps != 4 else None
    critic = floq_critic(actor_climbs=climbs, acting_flow_steps=acting, actor_noise_samples=2, noise_scheme="midpoint")
    assert critic.distilled is None
    obs, act = uniform(OBS), uniform(ACT)
    z_0 = np.asarray(scale().noise(jnp.array([0.25, 0.75])))

    def expected(act):
        values = [oracle.integrate(critic.velocity, e, obs, act, z, steps, LOW, HIGH) for e in range(2) for z in z_0]
        return np.mean(values)

    value = lambda act: critic.actor_value(obs, act, scale(), jax.random.key(0))  # noqa: E731
    assert float(value(act)) == pytest.approx(expected(np.asarray(act, np.float64)), rel=2e-4)
    numeric = [
        (expected(np.asarray(act, np.float64) + h) - expected(np.asarray(act, np.float64) - h)) / 2e-4
        for h in 1e-4 * np.eye(ACT)
    ]
    np.testing.assert_allclose(jax.grad(value)(act), numeric, rtol=2e-2, atol=1e-3)


def test_without_a_distilled_critic_the_loss_is_that_of_the_flow():
    obs, act, z_0, t = uniform(OBS), uniform(ACT), jnp.array([-9.0, -4.0, -0.5]), jnp.array([0.1, 0.9, 0.4])
    total, info = loss_at(floq_critic(actor_climbs="flow"), obs, act, jnp.float32(-40.0), scale(), z_0, t, z_0)
    published = loss_at(floq_critic(), obs, act, jnp.float32(-40.0), scale(), z_0, t, z_0)[1]
    assert set(published) - set(info) == {"distilled_critic_loss"}
    assert float(total) == float(info["floq_loss"]) == float(info["critic_loss"])


def test_what_a_flow_shows_about_itself_against_the_oracle():
    critic = floq_critic(noise_scheme="midpoint")
    obs, act = uniform(OBS), uniform(ACT)
    z_0 = np.asarray(scale().noise(source_nodes(jax.random.key(0), 3, "midpoint")), np.float64)
    found = {
        name: float(x) for name, x in jax.jit(FloqCritic.diagnose)(critic, obs, act, scale(), jax.random.key(1)).items()
    }
    paths, slopes, one_pass = np.zeros((2, 3, 5)), np.zeros((2, 3, 4)), np.zeros((2, 3))
    for e in range(2):
        v = lambda z, t, e=e: oracle.velocity(critic.velocity, e, obs, act, z, t, LOW, HIGH)  # noqa: E731
        for j, z in enumerate(z_0):
            one_pass[e, j] = z + v(z, 0.0)
            paths[e, j, 0] = z
            for i in range(4):
                slopes[e, j, i] = (v(z + 1e-3, i / 4) - v(z - 1e-3, i / 4)) / 2e-3
                z = paths[e, j, i + 1] = z + v(z, i / 4) / 4
    ends = paths[..., -1]
    chord = paths[..., :1] + np.linspace(0, 1, 5) * (ends[..., None] - paths[..., :1])
    expected = {
        "z0_spread": ends.std(axis=1).mean(),
        "member_spread": ends.mean(axis=1).std(),
        "curvature": np.abs(paths - chord).mean(),
        "contraction": slopes.mean(),
        "one_pass_gap": np.abs(one_pass - ends).mean(),
        "outside_histogram": ((paths < LOW) | (paths > HIGH)).mean(),
        **{f"value_after_{i}": paths[..., i].mean() for i in range(5)},
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=5e-3, abs=2e-4), name


def test_features_are_what_the_last_layer_reads():
    obs, act, quantile = uniform(OBS), uniform(ACT), QuantileCritic.init(jax.random.key(0), OBS, ACT, QUANTILE)
    scalar = ScalarCritic.init(jax.random.key(0), OBS, ACT, SCALAR)
    flow = floq_critic()
    z = scale().noise(jnp.float32(0.5))
    for critic, values in (
        (scalar, scalar.members(obs, act, scale())),
        (quantile, quantile._members(obs, act, jnp.float32(0.5))),
        (flow, jax.vmap(lambda m: m.at(obs, act, scale())(z, jnp.float32(0.0)))(flow.velocity)),
    ):
        head = (critic.velocity if critic is flow else critic.net).body.linears[-1]
        features = critic.features(obs, act, scale())
        again = jnp.einsum("mf,mfo->mo", features, head.weight)[:, 0] + head.bias[:, 0]
        np.testing.assert_allclose(again, values, rtol=1e-4, atol=1e-5)
    assert categorical().features(obs, act, scale()).shape == (2, 16)
    spread = scalar.diagnose(obs, act, scale(), jax.random.key(0))["member_spread"]
    assert float(spread) == pytest.approx(float(scalar.members(obs, act, scale()).std()), rel=1e-4)
    assert set(quantile.diagnose(obs, act, scale(), jax.random.key(0))) == {"quantile_spread", "member_spread"}


def test_dials_that_do_not_fit_together():
    with pytest.raises(UserError, match="fused makes Euler steps"):
        FloqConfig(solver="midpoint", integration="fused")
    with pytest.raises(UserError, match="only q_agg=lcb"):
        AgentConfig(critic=dataclasses.replace(FLOQ, rho=1.0))
