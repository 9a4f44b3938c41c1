"""Outputs of a critic at some transitions, as arrays: computed with the agent here, drawn in `analysis.figures`.

All functions use one batch of transitions, ordered by Q. Three of them serve as examples: one of low, one of medium and
one of high value.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.analysis.figures.flow import FlowPaths
from floq.analysis.figures.value_distributions import ValueDistribution
from floq.data.dataset import Batch, Dataset
from floq.flow import curvature, source_nodes
from floq.networks.precision import matmul_precision
from floq.utils.errors import UserError

T = TypeVar("T")

TRANSITIONS = 256  # of a batch of probes
EXAMPLES = (("low value", 0.02), ("middling value", 0.5), ("high value", 0.98))  # name, and quantile of Q
TARGET_DRAWS = 8  # TD targets of each transition, each with fresh noise and actions
PATH_SAMPLES = 12  # source samples of each member in the picture of the flow
FIELD = (49, 81)  # points in t and z at which the velocity is drawn
ACCURATE_SAMPLES = 8  # source samples behind each Q_K
NOISE_SAMPLES = 65  # source samples of each member in the picture of the noise
MIN_FINEST = 64  # minimum number of steps that counts as exact integration
TAUS = np.linspace(0.02, 0.98, 49)  # the quantiles that are drawn


class Probes(NamedTuple):
    """Transitions ordered by Q.

    batch: as `Dataset.sample` draws it. q: (transitions,), as read out. targets: (draws, transitions), TD targets.
    """

    batch: Batch
    q: np.ndarray
    targets: np.ndarray

    @property
    def examples(self) -> list[tuple[str, int]]:
        """Example transitions: a name and a row of the batch for each."""
        return [(name, int(share * len(self.q))) for name, share in EXAMPLES]


def diverged(agent: Agent) -> bool:
    """Return whether any weight is not finite."""
    return not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(agent.params))


def check_finite(agent: Agent, run_dir: str, step: int) -> None:
    """Raise UserError if the agent of this checkpoint diverged."""
    if diverged(agent):
        raise UserError(f"{run_dir} diverged before step {step}, its weights are no numbers: give an earlier --step")


def take_probes(agent: Agent, data: Dataset, key) -> Probes:
    """Draw transitions from `data`, which must have the agent's observation dimension. Consumes `key`.

    Raises:
        UserError: the observation dimension of the data is another.
    """
    expected, found = agent.obs_stats.mean.shape[0], data.observations.shape[1]
    if expected != found:
        raise UserError(f"the data has {found} numbers in an observation, this agent's networks read {expected}")
    batch, q, targets = _probes(agent, data, key)
    return Probes(batch, np.asarray(q), np.asarray(targets))


@jax.jit
def _probes(agent: Agent, data: Dataset, key):
    static, hypers = agent.static, agent.hypers
    batch_key, value_key, target_key = jax.random.split(key, 3)
    batch = data.sample(batch_key, TRANSITIONS, static.n_step, hypers.discount, static.action_chunk)
    keys = jax.random.split(value_key, TRANSITIONS)
    q = jax.vmap(agent.value)(batch["observations"], batch["actions"], keys)
    order = jnp.argsort(q)
    batch = jax.tree.map(lambda x: x[order], batch)
    targets = jax.lax.map(lambda key: agent.td_targets(batch, key), jax.random.split(target_key, TARGET_DRAWS))
    return batch, q[order], targets.reshape(TARGET_DRAWS, TRANSITIONS, -1).mean(axis=-1)


def noise_width(agent: Agent) -> float:
    """Return the width of the interval of source noise, in units of return."""
    low, high = np.asarray(agent.scale.noise(jnp.array([0.0, 1.0])))
    return float(high - low)


def flow_paths(agent: Agent, probes: Probes) -> list[FlowPaths]:
    """Compute the trajectories of the three examples, and the velocity field around them."""
    rows = [row for _, row in probes.examples]
    paths, curvatures = _flow_paths(agent, _pairs(agent, probes, rows))
    noise = np.asarray(agent.scale.noise(jnp.array([0.0, 1.0])))
    targets = probes.targets[:, rows]
    z = value_grid(min(paths.min(), noise[0], targets.min()), max(paths.max(), noise[1], targets.max()))
    t = np.linspace(0.0, 1.0, FIELD[0])
    fields = np.asarray(
        _fields(agent, _pairs(agent, probes, rows), jnp.asarray(t, jnp.float32), jnp.asarray(z, jnp.float32))
    )
    return [
        FlowPaths(
            name,
            np.asarray(paths[i]),
            float(curvatures[i]),
            t,
            z,
            fields[i],
            (float(noise[0]), float(noise[1])),
            targets[:, i],
        )
        for i, (name, _) in enumerate(probes.examples)
    ]


def value_grid(low: float, high: float) -> np.ndarray:
    """Return evenly spaced values from a little below `low` to a little above `high`. They are in 64 bits: Matplotlib's
    streamplot refuses spacings that differ by more than 1e-5 of themselves."""
    low, high = float(low), float(high)
    margin = 0.06 * max(high - low, 1e-3, 1e-6 * abs(low), 1e-6 * abs(high))
    return np.linspace(low - margin, high + margin, FIELD[1])


@jax.jit
def _flow_paths(agent: Agent, pairs):
    z_0 = agent.scale.noise(source_nodes(jax.random.key(0), PATH_SAMPLES, "midpoint"))
    with matmul_precision("f32"):
        paths = jax.vmap(lambda obs, act: agent.params.critic.trajectories(z_0, obs, act, agent.scale))(*pairs)
    return paths, jnp.mean(jax.vmap(jax.vmap(jax.vmap(curvature)))(paths), axis=(1, 2))


@jax.jit
def _fields(agent: Agent, pairs, t, z):
    """Compute the velocity on a grid, mean over members: (transitions, z, t)."""

    def of_pair(obs, act):
        velocity = lambda z, t: jnp.mean(agent.params.critic.velocities(z, t, obs, act, agent.scale))  # noqa: E731
        return jax.vmap(jax.vmap(velocity, (None, 0)), (0, None))(z, t)

    with matmul_precision("f32"):
        return jax.lax.map(lambda pair: of_pair(*pair), pairs)


def step_counts(trained: int) -> list[int]:
    """Return the K to compare: the trained K, and powers of two up to the first that is at least `MIN_FINEST` and above
    the trained K."""
    finest = MIN_FINEST
    while finest <= trained:
        finest *= 2
    return sorted({trained, *(2**i for i in range(finest.bit_length()))})


def values_by_steps(agent: Agent, probes: Probes, counts: list[int]) -> np.ndarray:
    """Compute Q_K of every probe for every K: (transitions, counts). The source samples are the same for all, so that
    only the integration differs."""
    pairs = _pairs(agent, probes)
    return np.stack([np.asarray(_values_in(agent, pairs, count)) for count in counts], axis=1)


@partial(jax.jit, static_argnums=2)
def _values_in(agent: Agent, pairs, num_steps: int):
    z_0 = agent.scale.noise(source_nodes(jax.random.key(0), ACCURATE_SAMPLES, "midpoint"))

    def value(pair):
        obs, act = pair
        return jnp.mean(agent.params.critic.trajectories(z_0, obs, act, agent.scale, num_steps)[..., -1])

    with matmul_precision("f32"):
        return jax.lax.map(value, pairs, batch_size=32)


def landings(agent: Agent, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
    """Return source samples, the same for all, and their values z(1): (samples,), (transitions, members, samples)."""
    z_0, ends = _landings(agent, _pairs(agent, probes))
    return np.asarray(z_0), np.asarray(ends)


@jax.jit
def _landings(agent: Agent, pairs):
    z_0 = agent.scale.noise(source_nodes(jax.random.key(0), NOISE_SAMPLES, "midpoint"))
    end = lambda pair: agent.params.critic.trajectories(z_0, pair[0], pair[1], agent.scale)[..., -1]  # noqa: E731
    with matmul_precision("f32"):
        return z_0, jax.lax.map(end, pairs, batch_size=32)


def histograms(agent: Agent, probes: Probes) -> list[ValueDistribution]:
    """Compute the critic's histograms of the return at the three examples; empty if it has none."""

    def histogram(obs, act):
        found = agent.params.critic.histograms(obs, act, agent.scale)
        return found and (*found, jnp.mean(found[1] @ found[0]))

    return _distributions(agent, probes, histogram)


def quantiles(agent: Agent, probes: Probes) -> list[ValueDistribution]:
    """Compute the critic's quantiles of the return at the three examples; empty if it has none."""

    def quantile_function(obs, act):
        taus = jnp.asarray(TAUS, jnp.float32)
        found = agent.params.critic.quantiles(obs, act, agent.scale, taus)
        return None if found is None else (taus, found, jnp.mean(found))

    return _distributions(agent, probes, quantile_function)


def _distributions(agent: Agent, probes: Probes, distribution: Callable) -> list[ValueDistribution]:
    rows = [row for _, row in probes.examples]
    with matmul_precision("f32"):
        found = jax.jit(jax.vmap(distribution))(*_pairs(agent, probes, rows))
    if found is None:
        return []
    return [
        ValueDistribution(name, np.asarray(x), np.asarray(said), float(q), probes.targets[:, row])
        for (name, row), x, said, q in zip(probes.examples, *found, strict=True)
    ]


def members(agent: Agent, probes: Probes) -> np.ndarray:
    """Compute the value of every probe by each member of the critic: (transitions, members)."""
    return np.asarray(_members(agent, _pairs(agent, probes)))


@jax.jit
def _members(agent: Agent, pairs):
    key = jax.random.key(0)
    with matmul_precision("f32"):
        return jax.lax.map(
            lambda pair: agent.params.critic.member_values(pair[0], pair[1], agent.scale, key), pairs, batch_size=32
        )


def evenly_spaced(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` of the items, evenly spread, with the first and the last."""
    at = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[i] for i in at]


def _pairs(agent: Agent, probes: Probes, rows: list[int] | None = None):
    """Return the normalized observations and the actions of some of the probes, by default of all."""
    at = jnp.arange(len(probes.q)) if rows is None else jnp.asarray(rows)
    return jax.vmap(agent.normalize)(probes.batch["observations"][at]), probes.batch["actions"][at]
