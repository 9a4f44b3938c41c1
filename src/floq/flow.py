"""Flow matching: a value is the end point of a learned velocity field, integrated from random noise.

Every function takes one scalar z (or one action vector) and is independent of reinforcement learning. Batch with
`jax.vmap`. Source: floq (arXiv 2509.06863), sections 3 and 4; t = 0 is noise, t = 1 is the return.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

NoiseScheme: TypeAlias = Literal["iid", "stratified", "midpoint"]
Solver: TypeAlias = Literal["euler", "midpoint"]
Velocity: TypeAlias = Callable[[Float[Array, "*z"], Float[Array, ""]], Float[Array, "*z"]]


def integrate(
    velocity: Velocity, z_0: Float[Array, "*z"], num_steps: int, solver: Solver = "euler"
) -> Float[Array, "*z"]:
    """Integrate `velocity(z, t)` from t = 0 to t = 1 in `num_steps` forward Euler steps (eq. 4).

    The velocity is evaluated at t = 0, 1/K, ..., (K-1)/K; the midpoint rule, at twice the cost, evaluates it in the
    middle of each step as well. Neither evaluates it at t = 1, where the ideal velocity is singular.
    """

    def step(z: Float[Array, "*z"], i: Array):
        return z + slope(velocity, z, i, num_steps, solver) / num_steps, None

    return jax.lax.scan(step, z_0, jnp.arange(num_steps))[0]


def trajectory(
    velocity: Velocity, z_0: Float[Array, "*z"], num_steps: int, solver: Solver = "euler"
) -> Float[Array, " steps *z"]:
    """Integrate as `integrate` does, but return z at all times t = 0, 1/K, ..., 1, shape (K + 1, *z)."""

    def step(z: Float[Array, "*z"], i: Array):
        z = z + slope(velocity, z, i, num_steps, solver) / num_steps
        return z, z

    return jnp.concatenate([z_0[None], jax.lax.scan(step, z_0, jnp.arange(num_steps))[1]])


def slope(
    velocity: Velocity, z: Float[Array, "*z"], i: Array, num_steps: int, solver: Solver = "euler"
) -> Float[Array, "*z"]:
    """Return the velocity of step i of `num_steps` from z."""
    first = velocity(z, i / num_steps)
    if solver == "euler":
        return first
    return velocity(z + first / (2 * num_steps), (i + 0.5) / num_steps)


def flow_matching_loss(
    velocity: Velocity, z_0: Float[Array, ""], target: Float[Array, ""], t: Float[Array, ""]
) -> Float[Array, ""]:
    """Return the velocity's squared error on the straight path from the noise `z_0` to the return `target` (eq. 6)."""
    z_t = (1 - t) * z_0 + t * target
    return jnp.square(velocity(z_t, t) - (target - z_0))


def source_nodes(key: PRNGKeyArray, num: int, scheme: NoiseScheme = "iid") -> Float[Array, " num"]:
    """Return `num` points of the unit interval at which the flow starts.

    iid: independent uniform draws, as published. stratified: one uniform draw in each of `num` equal cells, which
    keeps the mean unbiased and removes most of its variance, since z is one-dimensional. midpoint: the cells' centres,
    no randomness. Consumes `key`.

    Raises:
        ValueError: unknown scheme.
    """
    if scheme == "iid":
        return jax.random.uniform(key, (num,))
    cells = jnp.arange(num, dtype=jnp.float32)
    if scheme == "stratified":
        return (cells + jax.random.uniform(key, (num,))) / num
    if scheme == "midpoint":
        return (cells + 0.5) / num
    raise ValueError(f"noise scheme {scheme!r}: choose iid, stratified or midpoint")


def curvature(path: Float[Array, " steps"]) -> Float[Array, ""]:
    """Return a trajectory's mean distance from its chord, in units of z: 0 for the straight path of an ideal flow."""
    t = jnp.linspace(0.0, 1.0, path.shape[0])
    return jnp.mean(jnp.abs(path - (path[0] + t * (path[-1] - path[0]))))
