"""Closed forms of the integrator, the flow-matching loss and the source nodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq.flow import curvature, flow_matching_loss, integrate, source_nodes, trajectory


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_constant_velocity_integrates_exactly(steps):
    assert integrate(lambda z, t: jnp.float32(-3.0), jnp.float32(5.0), steps) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_euler_steps_from_the_left(steps):
    """dz/dt = t gives the left Riemann sum (K - 1) / 2K; the right one would give (K + 1) / 2K."""
    assert integrate(lambda z, t: t, jnp.float32(0.0), steps) == pytest.approx((steps - 1) / (2 * steps), abs=1e-6)


def test_euler_converges_with_order_one():
    """dz/dt = z reaches (1 + 1/K)^K, whose distance from e halves when K doubles."""
    errors = [np.e - float(integrate(lambda z, t: z, jnp.float32(1.0), k)) for k in (16, 32, 64)]
    assert float(integrate(lambda z, t: z, jnp.float32(1.0), 16)) == pytest.approx((1 + 1 / 16) ** 16, rel=1e-5)
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2.0, atol=0.1)


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_the_ideal_velocity_lands_on_the_target_for_every_number_of_steps(steps):
    """v = (y - z) / (1 - t) has straight paths; it is singular at t = 1, where Euler never looks."""
    z = integrate(lambda z, t: (7.0 - z) / (1 - t), jnp.float32(-2.0), steps)
    assert z == pytest.approx(7.0, abs=1e-5)


def test_integrate_is_the_end_of_the_trajectory():
    velocity = lambda z, t: jnp.sin(3 * z) - t  # noqa: E731
    path = trajectory(velocity, jnp.float32(0.3), 6)
    assert path.shape == (7,)
    assert path[0] == jnp.float32(0.3)
    assert path[-1] == integrate(velocity, jnp.float32(0.3), 6)


def test_integrate_takes_vectors():
    """The same integrator carries actions of the behaviour flow."""
    x = integrate(lambda x, t: -x, jnp.array([1.0, -2.0]), 2)
    np.testing.assert_allclose(x, [0.25, -0.5])


def test_flow_matching_loss_by_hand():
    """z_0 = 1, y = 5, t = 1/4: z_t = 2 and the straight velocity is 4; a field of z + t gives 2.25."""
    loss = flow_matching_loss(lambda z, t: z + t, jnp.float32(1.0), jnp.float32(5.0), jnp.float32(0.25))
    assert loss == pytest.approx(1.75**2)


def test_the_ideal_velocity_has_no_loss():
    loss = flow_matching_loss(lambda z, t: (5.0 - z) / (1 - t), jnp.float32(1.0), jnp.float32(5.0), jnp.float32(0.625))
    assert loss == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("scheme", ["iid", "stratified", "midpoint"])
def test_source_nodes_lie_in_the_unit_interval(scheme):
    nodes = source_nodes(jax.random.key(0), 1000, scheme)
    assert nodes.shape == (1000,)
    assert nodes.min() >= 0
    assert nodes.max() <= 1
    assert nodes.mean() == pytest.approx(0.5, abs=0.03)


def test_stratified_nodes_have_one_in_each_cell():
    nodes = source_nodes(jax.random.key(1), 8, "stratified")
    np.testing.assert_array_equal(np.floor(np.asarray(nodes) * 8), np.arange(8))


def test_stratified_nodes_estimate_a_mean_far_better_than_independent_ones():
    """The variance of the mean of z^2 over 4 nodes; stratification leaves it O(1/n^3) instead of O(1/n)."""
    spread = {}
    for seed, scheme in enumerate(("iid", "stratified")):
        keys = jax.random.split(jax.random.key(seed), 2000)
        spread[scheme] = float(jnp.var(jax.vmap(lambda k, s=scheme: jnp.mean(source_nodes(k, 4, s) ** 2))(keys)))
    assert spread["iid"] == pytest.approx((1 / 5 - 1 / 9) / 4, rel=0.15)
    assert spread["stratified"] < spread["iid"] / 10


def test_midpoints_do_not_depend_on_the_key():
    np.testing.assert_allclose(source_nodes(jax.random.key(3), 4, "midpoint"), [0.125, 0.375, 0.625, 0.875])


def test_unknown_scheme_is_refused():
    with pytest.raises(Exception, match="sobol"):
        source_nodes(jax.random.key(0), 4, "sobol")  # pyright: ignore[reportArgumentType]


def test_curvature_of_a_line_and_of_a_triangle():
    assert curvature(jnp.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.0, abs=1e-6)
    assert curvature(jnp.array([0.0, 3.0, 0.0])) == pytest.approx(1.0)
