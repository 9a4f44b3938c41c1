"""What `floq export` makes of a program: each operation is JAX's, in NumPy and in ONNX; random draws become inputs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq.export import exported
from floq.export.formats import Exportable, load_exported, write_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy
from floq.utils.errors import UserError

# --- operations, one by one ---

FUNCTIONS = {
    "arithmetic": lambda x: (x + 2) * x / (1.5 - x) - jnp.maximum(x, 0.2) + jnp.minimum(-x, jnp.abs(x)) * jnp.sign(x),
    "transcendental": lambda x: jnp.exp(x) + jnp.log(x * x + 1) + jnp.tanh(x) + jnp.cos(x) * jnp.sin(x),
    "roots": lambda x: jnp.sqrt(x * x) + jax.lax.rsqrt(x * x + 1) + x**3 + (x + 9) ** -2 + jax.nn.sigmoid(x),
    "erf": lambda x: jax.scipy.special.erf(4 * x),
    "log1p": lambda x: jnp.log1p(x * x),
    "logic": lambda x: jnp.where(~((x < 0.5) & (x != 0.1)) | (x >= 1), x, jnp.clip(x, -0.3, 0.3)),
    "comparisons": lambda x: jnp.where((x <= 0) | (x > 0.7), 1.0, 2.0) + (x == x[0]).astype(jnp.float32),
    "reductions": lambda x: x.reshape(2, 3).sum(0) + x.reshape(2, 3).max(0) * x.reshape(3, 2).min(1),
    "mean of one": lambda x: x + jnp.mean(x[2]),
    "shapes": lambda x: jnp.concatenate(
        [x.reshape(2, 3).T.reshape(6)[1:4], jnp.broadcast_to(x[2], 2), *jnp.split(x, 2)]
    ),
    "index": lambda x: x.reshape(3, 2)[jnp.argmax(x.reshape(3, 2).sum(1))],
    "clamped window": lambda x: jax.lax.dynamic_slice(x, (jnp.argmax(x) + jnp.int32(3),), (4,)),
    "softmax": lambda x: jax.nn.softmax(x.reshape(2, 3)) @ jnp.arange(3.0),
    "products": lambda x: jnp.einsum(
        "bij,bkj->kbi", x.reshape(1, 2, 3) + jnp.ones((2, 1, 1)), jnp.ones((2, 4, 3))
    ).ravel(),
    "stack": lambda x: jnp.stack([x[:2], x[4:]], axis=1).ravel(),
    "loop": lambda x: jax.lax.scan(lambda c, r: (c + r, c * r), x[0], x, reverse=True)[1],
    "nothing": lambda x: x,
    "constant": lambda x: jnp.ones(3) * 2,
}


def traced_function(function, size=6):
    program = jax.make_jaxpr(lambda leaves, obs, key: function(obs))([], jnp.zeros(size), jax.random.key(0))
    return TracedPolicy(program, [], [], (size,))


@pytest.mark.parametrize("form", ["numpy", "onnx"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_operation_is_that_of_jax(name, form, tmp_path):
    if form == "onnx":
        pytest.importorskip("onnxruntime", reason="needs floq[export]")
    function = FUNCTIONS[name]
    traced = traced_function(function)
    x = np.random.default_rng(3).normal(size=6).astype(np.float32)
    wanted = np.asarray(function(jnp.asarray(x)))
    sizes = {"observation_size": 6, "action_size": len(wanted), "action_chunk": 1}
    write_exported(
        form, Exportable(traced, translate(traced), {"about": {"task": "-", "step": 0, "floq": "0"}, **sizes}), tmp_path
    )
    np.testing.assert_allclose(load_exported(form, tmp_path)(x, []), wanted, rtol=2e-6, atol=2e-6)


def test_erf():
    x = np.linspace(-7, 7, 20_001).astype(np.float32)
    exact = np.array([math.erf(value) for value in x])
    assert np.abs(exported._erf(x) - exact).max() < 6e-8
    assert np.isnan(exported._erf(np.array([np.nan]))).all()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (jnp.sort, "computes 'sort'"),
        (lambda x: jax.lax.slice_in_dim(x, 0, 6, 2), "skips elements"),
        (lambda x: jax.lax.while_loop(lambda y: y[0] < 9, lambda y: y + 1, x), "computes 'while'"),
        (lambda x: x + jnp.arange(6, dtype=jnp.uint8)[jnp.argmax(x)], "of dtype uint8"),
        (lambda x: jnp.argmax(x).astype(jnp.uint8) + x, "computes 'convert_element_type' in a way"),
    ],
)
def test_what_has_no_operation_is_refused(function, says):
    with pytest.raises(UserError, match=says):
        translate(traced_function(function))


# --- noise ---


def traced_draws(function):
    program = jax.make_jaxpr(lambda leaves, obs, key: function(key) + obs)([], jnp.zeros(4), jax.random.key(0))
    return TracedPolicy(program, [], [], (4,))


@pytest.mark.parametrize(
    "function",
    [
        lambda key: jax.random.normal(key, (4,)),
        lambda key: jax.random.uniform(key, (4,), minval=-3.0, maxval=2.0),
        lambda key: jax.vmap(lambda key: jax.random.uniform(key, minval=1.0))(jax.random.split(key, 4)),
        lambda key: (
            jax.random.normal(jax.random.fold_in(key, 7), (2, 4)).sum(0) * jax.random.uniform(jax.random.key(1))
        ),
        lambda key: jax.lax.scan(lambda k, _: (jax.random.split(k)[0], jax.random.normal(k)), key, None, 4)[1],
        lambda key: jax.random.truncated_normal(key, -1.0, 2.0, (4,)),
    ],
    ids=["normal", "uniform", "vmapped", "two", "loop", "truncated"],
)
@pytest.mark.filterwarnings("ignore:.*key.*reuse")
def test_draws_become_inputs(function):
    """Given the noise that JAX draws, the program makes of it what JAX does."""
    with jax.debug_key_reuse(False):
        traced = traced_draws(function)
        key = jax.random.key(5)
        noise = traced.draw(key)
        np.testing.assert_allclose(traced.act(jnp.zeros(4), *noise), function(key), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function", [lambda key: 1.0 * jax.random.bits(key, (4,)), lambda key: jax.random.gamma(key, 2.0)]
)
def test_other_draws_are_refused(function):
    with pytest.raises(UserError, match=r"jax\.random\.normal or uniform"):
        translate(traced_draws(function))
