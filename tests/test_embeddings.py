"""The histogram of z against SciPy, the embeddings of t against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from floq.networks.embeddings import embed_time, histogram, scale_to_unit, time_embedding_size

LOW, HIGH = -101.0, 1.0


@pytest.mark.parametrize("z", [-101.0, -100.0, -37.3, 0.0, 1.0, 3.0])
@pytest.mark.parametrize(("edges", "sigma"), [(51, 16.0), (101, 2.0), (11, 0.75)])
def test_histogram_agrees_with_scipy(z, edges, sigma):
    ours = histogram(jnp.float32(z), jnp.float32(LOW), jnp.float32(HIGH), edges, sigma)
    np.testing.assert_allclose(ours, oracle.histogram(z, LOW, HIGH, edges, sigma), atol=1e-5)


@pytest.mark.parametrize("z", [-150.0, 60.0])
def test_histogram_agrees_with_scipy_well_outside_the_support(z):
    ours = histogram(jnp.float32(z), jnp.float32(LOW), jnp.float32(HIGH), 51, 16.0)
    np.testing.assert_allclose(ours, oracle.histogram(z, LOW, HIGH, 51, 16.0), atol=3e-5)


def test_masses_are_a_distribution_and_move_with_z():
    z = jnp.linspace(LOW, HIGH, 7)
    masses = jax.vmap(lambda z: histogram(z, jnp.float32(LOW), jnp.float32(HIGH), 51, 4.0))(z)
    assert masses.shape == (7, 50)
    assert masses.min() > -1e-6  # erf is not monotone to the last bit
    np.testing.assert_allclose(masses.sum(axis=1), 1.0, rtol=1e-5)
    means = masses @ jnp.arange(50.0)
    assert np.all(np.diff(means) > 0)


@pytest.mark.parametrize("sigma", [0.75, 16.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_z_far_outside_stays_finite_and_is_embedded_as_three_deviations_away(sigma, sign):
    low, high = jnp.float32(LOW), jnp.float32(HIGH)
    far, edge = (HIGH if sign > 0 else LOW) + sign * np.array([1e6, 3 * sigma * (HIGH - LOW) / 50])
    masses = histogram(jnp.float32(far), low, high, 51, sigma)
    np.testing.assert_allclose(masses, histogram(jnp.float32(edge), low, high, 51, sigma), atol=1e-4)
    assert masses.sum() == pytest.approx(1.0, rel=1e-4)


def test_scaled_maps_the_support_to_the_unit_interval():
    low, high = jnp.float32(LOW), jnp.float32(HIGH)
    values = [float(scale_to_unit(jnp.float32(z), low, high)[0]) for z in (LOW, -50.0, HIGH)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0], atol=1e-6)


def test_time_embeddings():
    t = jnp.float32(0.3)
    np.testing.assert_allclose(embed_time(t, "cos", 64), [np.cos(0.3)], rtol=1e-6)
    np.testing.assert_allclose(embed_time(t, "raw", 64), [0.3], rtol=1e-6)
    frequencies = np.pi * np.arange(1, 4)
    expected = np.concatenate([np.cos(frequencies * 0.3), np.sin(frequencies * 0.3)])
    np.testing.assert_allclose(embed_time(t, "fourier", 6), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["cos", "raw", "fourier"])
def test_the_announced_size_is_the_size(kind):
    assert embed_time(jnp.float32(0.5), kind, 8).shape == (time_embedding_size(kind, 8),)


def test_an_odd_fourier_embedding_is_refused():
    with pytest.raises(ValueError, match="choose an even one"):
        embed_time(jnp.float32(0.5), "fourier", 7)
