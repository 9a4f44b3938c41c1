"""Initialisation as published, layer order, and the split first layer."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from floq.networks.cpu import row_mean
from floq.networks.mlp import (
    MLP,
    Activation,
    FoldedBody,
    LayerNorm,
    Linear,
    PlainBody,
    ResidualBody,
    SplitLinear,
    ensemble,
)


def key():
    return jax.random.key(0)


def test_kernels_are_fan_average_uniform_and_biases_zero():
    linear = Linear.init(key(), 300, 500)
    limit = np.sqrt(3 / ((300 + 500) / 2))
    assert np.abs(linear.weight).max() <= limit
    assert np.abs(linear.weight).max() > 0.99 * limit
    assert float(jnp.std(linear.weight)) == pytest.approx(limit / np.sqrt(3), rel=0.02)
    assert not linear.bias.any()


def test_every_bias_of_every_network_starts_at_zero_and_every_norm_at_one():
    plain = MLP.init(key(), 3, (8, 8), 2, layer_norm=True)
    residual = ResidualBody.init(key(), 8, 2, 3, True, True)
    for net in (plain, residual):
        for path, leaf in jax.tree_util.tree_leaves_with_path(net):
            name = jax.tree_util.keystr(path)
            if name.endswith(("bias", "shift")):
                assert not leaf.any(), name
            if name.endswith("scale"):
                assert (leaf == 1).all(), name


def test_a_split_layer_is_the_layer_over_the_concatenation():
    """The hoisted product and the rest add up to W [x, y] + b, with the fan of the whole layer."""
    split = SplitLinear.init(key(), 3, 5, 7)
    whole = Linear.init(key(), 8, 7)
    np.testing.assert_array_equal(jnp.concatenate([split.weight_x, split.weight_y]), whole.weight)
    x, y = jnp.arange(3.0), jnp.arange(5.0) - 2
    np.testing.assert_allclose(split.fixed(x) + split.varying(y), whole(jnp.concatenate([x, y])), rtol=1e-5)


def test_layer_norm_against_numpy():
    x = np.random.default_rng(0).normal(3.0, 2.0, 16).astype(np.float32)
    norm = LayerNorm(jnp.linspace(0.5, 2.0, 16), jnp.linspace(-1.0, 1.0, 16))
    np.testing.assert_allclose(
        norm(jnp.asarray(x)), oracle.layer_norm(x, np.linspace(0.5, 2, 16), np.linspace(-1, 1, 16)), atol=2e-6
    )


def test_the_epsilon_of_layer_norm_is_1e_6():
    """x = +-1e-3: variance 1e-6, so half of the scale is lost to an epsilon of 1e-6, and 70% to one of 1e-5."""
    x = jnp.array([1e-3, -1e-3])
    np.testing.assert_allclose(LayerNorm.init(2)(x), [1 / np.sqrt(2), -1 / np.sqrt(2)], rtol=1e-4)


def test_gelu_is_the_tanh_form_and_comes_before_the_norm():
    x = jnp.array([-2.0, 0.3, 1.7])
    np.testing.assert_allclose(Activation.init(3, layer_norm=False)(x), oracle.gelu(np.asarray(x)), rtol=1e-5)
    exact = jax.nn.gelu(x, approximate=False)
    assert np.abs(Activation.init(3, layer_norm=False)(x) - exact).max() > 1e-5
    normed = Activation.init(3, layer_norm=True)(x)
    np.testing.assert_allclose(normed, oracle.layer_norm(oracle.gelu(np.asarray(x)), 1, 0), atol=1e-5)
    first = Activation.init(3, layer_norm=True, norm_last=False)(x)
    np.testing.assert_allclose(first, oracle.gelu(oracle.layer_norm(np.asarray(x), 1, 0)), atol=1e-5)


def test_residual_blocks_add_to_their_input():
    """With the last norm of each block silenced the blocks vanish, and the head sees the activated entry."""
    body = ResidualBody.init(key(), 4, 2, 3, True, True)
    silent = eqx.tree_at(lambda b: [block[-1][1].norm.scale for block in b.blocks], body, [jnp.zeros(4)] * 3)
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    entry = oracle.layer_norm(oracle.gelu(np.asarray(x)), 1.0, 0.0)
    np.testing.assert_allclose(silent(x), body.head(jnp.asarray(entry, jnp.float32)), rtol=1e-4)
    assert np.abs(body(x) - silent(x)).max() > 0.1


def test_layers_and_sizes():
    net = MLP.init(key(), 3, (8, 16), 2, layer_norm=True)
    assert net(jnp.ones(3)).shape == (2,)
    assert [linear.weight.shape for linear in (net.entry, *net.body.linears)] == [(3, 8), (8, 16), (16, 2)]
    assert all(a.norm is None for a in MLP.init(key(), 3, (8, 16), 2, layer_norm=False).body.activations)


def test_a_vmapped_ensemble_equals_a_looped_one():
    init = lambda k: PlainBody.init(k, (8, 8), 1, True)  # noqa: E731
    stacked = ensemble(init, key(), 3)
    for i, member_key in enumerate(jax.random.split(key(), 3)):
        single = init(member_key)
        for a, b in zip(jax.tree.leaves(stacked), jax.tree.leaves(single), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_all_leaves_are_arrays():
    for net in (MLP.init(key(), 3, (8,), 2, layer_norm=True), ResidualBody.init(key(), 8, 2, 1, True, False)):
        assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(net))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_row_means_under_vmap_and_grad(axis):
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    mean = jax.vmap(jax.vmap(row_mean, min(axis, 1)), axis)
    wanted = jnp.mean(jnp.moveaxis(jnp.moveaxis(x, axis, 0), 1 + min(axis, 1), 1), axis=-1)
    np.testing.assert_allclose(mean(x), wanted, rtol=1e-5, atol=1e-6)
    of_mean, of_wanted = (jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (row_mean, lambda x: x.mean(-1)))
    np.testing.assert_allclose(of_mean, of_wanted, rtol=1e-5, atol=1e-6)


def test_folded_layer_norms_compute_the_same():
    body = PlainBody.init(jax.random.key(0), (16, 12, 8), 2, layer_norm=True)
    leaves, structure = jax.tree.flatten(body)
    rng = np.random.default_rng(0)
    body = jax.tree.unflatten(structure, [leaf + rng.normal(0, 0.3, leaf.shape) for leaf in leaves])
    x = jnp.asarray(rng.normal(0.5, 2.0, (20, 16)), jnp.float32)
    np.testing.assert_allclose(jax.vmap(FoldedBody.of(body))(x), jax.vmap(body)(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no LayerNorm"):
        FoldedBody.of(PlainBody.init(jax.random.key(0), (8,), 1, layer_norm=False))
