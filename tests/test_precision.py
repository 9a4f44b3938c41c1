"""What `--precision` changes: the type that products are computed in. What is stored and what is learned stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, FLOQ, OBS, QUANTILE, SCALAR, agent_config, make_batch

from floq.agent.agent import Agent
from floq.networks.mlp import MLP
from floq.networks.precision import cast_for_compute, matmul_precision

CRITICS = {"floq": FLOQ, "scalar": SCALAR, "quantile": QUANTILE}


def agent_in(precision, critic="floq"):
    return Agent.init(jax.random.key(0), OBS, ACT, agent_config(CRITICS[critic]), precision=precision)


def product_types(jaxpr):
    """The types of the operands of every matrix product of a program, those in loops included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield {variable.aval.dtype.name for variable in equation.invars}
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(parameter, "jaxpr"):
                yield from product_types(parameter.jaxpr)


@pytest.mark.parametrize("critic", CRITICS)
def test_bf16_reaches_every_product_of_an_update_and_nothing_that_is_kept(critic):
    agent = agent_in("bf16", critic)
    program = jax.make_jaxpr(lambda agent, batch: agent.update(batch))(agent, make_batch())
    types = list(product_types(program.jaxpr))
    assert len(types) > 20
    # The gradient of a head's float32 output meets its bfloat16 matrix: the only products with two types.
    assert all("bfloat16" in found for found in types)
    assert sum(found == {"bfloat16"} for found in types) > 0.6 * len(types)
    after, info = jax.eval_shape(agent.update, make_batch())
    kept = jax.tree.leaves((after.params, after.target, [(state.mu, state.nu) for state in after.opt_state], info))
    assert {leaf.dtype.name for leaf in kept} == {"float32"}


@pytest.mark.parametrize("critic", [pytest.param("floq", marks=pytest.mark.slow), "scalar"])
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
    (value,) = cast_for_compute(network, "bf16")(jnp.ones(4))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, far, rtol=1e-6)


def test_acting_and_values_do_not_depend_on_it():
    obs, act, key = jnp.ones(OBS), jnp.zeros(ACT), lambda: jax.random.key(1)
    exact, rough = agent_in("f32", "scalar"), agent_in("bf16", "scalar")
    np.testing.assert_array_equal(exact.act(obs, key()), rough.act(obs, key()))
    np.testing.assert_array_equal(exact.value(obs, act, key()), rough.value(obs, act, key()))
