"""What `--precision` changes: the type that products are computed in. What is stored and what is learned stay."""

import dataclasses
import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, CATEGORICAL, FLOQ, OBS, QUANTILE, SCALAR, agent_config, make_batch

from floq.agent.agent import Agent
from floq.networks import precision as precisions
from floq.networks.mlp import MLP
from floq.networks.precision import PUBLISHED, fast_precision, matmul_precision, product

CRITICS = {"floq": FLOQ, "scalar": SCALAR, "quantile": QUANTILE, "categorical": CATEGORICAL}


def agent_in(precision, critic="floq"):
    return Agent.init(jax.random.key(0), OBS, ACT, agent_config(CRITICS[critic]), precision=precision)


def operations(jaxpr):
    """By primitive, the multiplications of the products of a program, one for each in a loop."""
    found = Counter()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "bf16_product"):
            shape, out = equation.invars[0].aval.shape, equation.outvars[0].aval
            if name == "dot_general":
                summed = [shape[i] for i in equation.params["dimension_numbers"][0][0]]
            else:
                of_x, _, of_out = equation.params["indices"]
                summed = [size for i, size in zip(of_x, shape, strict=True) if i not in of_out]
            found[name] += out.size * math.prod(summed)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(parameter, "jaxpr"):
                found += operations(parameter.jaxpr)
    return found


@pytest.mark.parametrize("critic", CRITICS)
def test_bf16_reaches_the_hidden_layers_of_an_update_and_nothing_that_is_kept(critic):
    wide = {"value_hidden_dims": (64, 64)} | ({"block_width": 64} if critic == "floq" else {})
    settings = dataclasses.replace(CRITICS[critic], **wide)
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(settings), precision="bf16")
    program = jax.make_jaxpr(lambda agent, batch: agent.update(batch))(agent, make_batch(32))
    found = operations(program.jaxpr)
    # The rest: heads, those of the categorical critic as wide as a hidden layer here, and folded biases.
    assert found["bf16_product"] > (1 if critic == "categorical" else 10) * found["dot_general"]
    after, info = jax.eval_shape(agent.update, make_batch())
    kept = jax.tree.leaves((after.params, after.target, [(state.mu, state.nu) for state in after.opt_state], info))
    assert {leaf.dtype.name for leaf in kept} == {"float32"}


def rounded(x, precision):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16 if precision == "bf16" else jnp.float32), np.float64)


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("sizes", [(5, 3, 8, 6), (64, 1, 4, 32), (1, 1, 1, 7)], ids=str)
def test_products_and_their_gradients(precision, sizes):
    """Nested vmaps over a batch, members with weights of their own and samples, against einsum in float64."""
    batch, samples, size_in, size_out = sizes
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, 2, samples, size_in))
    weight = jax.random.normal(keys[1], (2, size_in, size_out))
    ct = jax.random.normal(keys[2], (batch, 2, samples, size_out))

    def products(x, weight):
        with matmul_precision(precision):
            return jax.vmap(lambda x: jax.vmap(jax.vmap(product, (0, None)))(x, weight))(x)

    for transform in (lambda f: f, jax.jit):
        y, pullback = jax.vjp(transform(products), x, weight)
        of_x, of_weight = pullback(ct)
        assert {leaf.dtype.name for leaf in (y, of_x, of_weight)} == {"float32"}
        a, w, g = (rounded(value, precision) for value in (x, weight, ct))
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(y, np.einsum("bemi,eio->bemo", a, w), **close)
        np.testing.assert_allclose(of_x, np.einsum("bemo,eio->bemi", g, w), **close)
        np.testing.assert_allclose(of_weight, np.einsum("bemi,bemo->eio", a, g), **close)


def test_products_of_two_gradients_and_of_one_input_for_many_weights():
    """A gradient inside of vmap, as of the slopes of a field; and weights that differ where the input does not."""
    x, weights = jnp.arange(3.0), jax.random.normal(jax.random.key(0), (4, 3, 3))
    with matmul_precision("bf16"):
        slope = lambda weight: jax.grad(lambda x: jnp.sum(jnp.square(product(x, weight))))(x)  # noqa: E731
        found = jax.vmap(slope)(weights)
    wanted = 2 * np.einsum("wij,wj->wi", *(rounded(a, "bf16") for a in (weights, np.einsum("i,wij->wj", x, weights))))
    np.testing.assert_allclose(found, wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("critic", [pytest.param("floq", marks=pytest.mark.slow), "scalar", "categorical", "quantile"])
def test_bf16_computes_the_same_to_three_digits(critic):
    exact, rough = (agent_in(precision, critic) for precision in ("f32", "bf16"))
    batch = make_batch(64)
    (exact_after, exact_info), (rough_after, rough_info) = exact.update(batch), rough.update(batch)
    for name in exact_info:
        np.testing.assert_allclose(rough_info[name], exact_info[name], rtol=0.02, atol=0.01, err_msg=name)
    for gradient, other in zip(
        *(jax.tree.leaves([s.mu for s in a.opt_state]) for a in (exact_after, rough_after)), strict=True
    ):
        gradient, other = np.ravel(gradient), np.ravel(other)
        assert gradient @ other >= 0.98 * np.linalg.norm(gradient) * np.linalg.norm(other)


def test_tf32_is_f32_on_a_processor_without_it():
    states = [agent_in(precision, "scalar").update(make_batch(64))[0].params for precision in ("tf32", "f32")]
    for a, b in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_f32_and_tf32_ask_for_different_products():
    x = jnp.ones((2, 2))

    def asked(precision):
        with matmul_precision(precision):
            return str(jax.make_jaxpr(jnp.matmul)(x, x))

    assert "HIGHEST" in asked("f32")
    assert "HIGHEST" not in asked("tf32")


def test_a_network_in_bf16_puts_out_float32():
    network = MLP.init(jax.random.key(0), 4, (8, 8), 1, layer_norm=True)
    far = -150.3  # in bfloat16 this would be -150
    network = jax.tree.map(lambda leaf: leaf, network)
    head = network.body.linears[-1]
    object.__setattr__(head, "bias", jnp.array([far]))
    object.__setattr__(head, "weight", jnp.zeros_like(head.weight))
    with matmul_precision("bf16"):
        (value,) = network(jnp.ones(4))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, far, rtol=1e-6)


def test_auto_is_bf16_where_the_processor_multiplies_it_faster(monkeypatch):
    def chosen(flags, width):
        monkeypatch.setattr(precisions, "cpu_flags", lambda: frozenset(flags))
        return fast_precision(width)

    assert chosen(set(), 4096) == PUBLISHED
    for flag, width in precisions.FAST_WIDTHS.items():
        assert chosen({flag}, width) == "bf16"
        assert chosen({flag}, width - 1) == PUBLISHED
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert chosen(set(precisions.FAST_WIDTHS), 4096) == PUBLISHED


def test_acting_and_values_do_not_depend_on_it():
    obs, act, key = jnp.ones(OBS), jnp.zeros(ACT), lambda: jax.random.key(1)
    exact, rough = agent_in("f32", "scalar"), agent_in("bf16", "scalar")
    np.testing.assert_array_equal(exact.act(obs, key()), rough.act(obs, key()))
    np.testing.assert_array_equal(exact.value(obs, act, key()), rough.value(obs, act, key()))
