"""Outputs of a critic at one batch of transitions, as arrays: computed with the agent here, drawn in
`analysis.figures`. Three transitions serve as examples: one of low, one of medium and one of high value."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.analysis.figures.critic import FlowPaths, ValueDistribution
from floq.data.dataset import Batch, Dataset
from floq.flow import curvature, source_nodes
from floq.networks.precision import matmul_precision
from floq.utils.errors import UserError

TRANSITIONS = 256  # of a batch of probes
EXAMPLES = (("low value", 0.02), ("middling value", 0.5), ("high value", 0.98))  # name, and quantile of Q
TARGET_DRAWS = 8  # TD targets of each transition, each with fresh noise and actions
PATH_SAMPLES = 12  # source samples of each member in the picture of the flow
FIELD = (49, 81)  # points in t and z at which the velocity is drawn
ACCURATE_SAMPLES = 8  # source samples behind each Q_K
NOISE_SAMPLES = 65  # source samples of each member in the picture of the noise
TAUS = np.linspace(0.02, 0.98, 49)  # the quantiles that are drawn


class Probes(NamedTuple):
    """Transitions ordered by Q: batch, as `Dataset.sample` draws it; q: (transitions,), as read out; targets: (draws,
    transitions), TD targets."""

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
    """Draw transitions from `data`. Consumes `key`. Raises UserError if its observations are not the agent's."""
    own, given = agent.obs_spec, data.dims[0]
    if own != given.encoded_by(own.encoder):
        raise UserError(f"the data has {given} in an observation, this agent's networks read {own}")
    batch, q, targets = _probes(agent, replace(data, p_aug=0.0), key)
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


# --- Of a flow ---


def flow_paths(agent: Agent, probes: Probes) -> list[FlowPaths]:
    """Compute the trajectories of the three examples, and the velocity field around them."""
    names, rows = zip(*probes.examples, strict=True)
    noise, paths = np.asarray(agent.scale.noise(jnp.array([0.0, 1.0]))), _paths(agent, probes, PATH_SAMPLES, rows)
    targets = probes.targets[:, rows]
    z = value_grid(min(paths.min(), noise[0], targets.min()), max(paths.max(), noise[1], targets.max()))
    t = np.linspace(0.0, 1.0, FIELD[0])
    fields = _at_pairs(_velocities, agent, probes, rows, t=jnp.asarray(t), z=jnp.asarray(z, jnp.float32))
    bends = jax.vmap(jax.vmap(jax.vmap(curvature)))(jnp.asarray(paths)).mean(axis=(1, 2))
    each = zip(names, paths, map(float, bends), fields, targets.T, strict=True)
    return [FlowPaths(name, z_t, bend, t, z, v, (noise[0], noise[1]), draws) for name, z_t, bend, v, draws in each]


def value_grid(low: float, high: float) -> np.ndarray:
    """Return evenly spaced values from a little below `low` to a little above `high`, in 64 bits, since Matplotlib's
    streamplot refuses spacings that differ by more than 1e-5 of themselves."""
    low, high = float(low), float(high)
    margin = 0.06 * max(high - low, 1e-3, 1e-6 * abs(low), 1e-6 * abs(high))
    return np.linspace(low - margin, high + margin, FIELD[1])


def step_counts(trained: int) -> list[int]:
    """Return the K to compare: the trained K, and powers of two up to 64 or the first above the trained K."""
    return sorted({trained, *(2**i for i in range(max(7, trained.bit_length() + 1)))})


def values_by_steps(agent: Agent, probes: Probes, counts: list[int]) -> np.ndarray:
    """Compute Q_K of every probe for every K, from the same source samples: (transitions, counts)."""
    ends = [_paths(agent, probes, ACCURATE_SAMPLES, num_steps=count)[..., -1] for count in counts]
    return np.stack(ends).mean(axis=(2, 3)).T


def landings(agent: Agent, probes: Probes) -> tuple[np.ndarray, np.ndarray]:
    """Return source samples, the same for all, and their values z(1): (samples,), (transitions, members, samples)."""
    paths = _paths(agent, probes, NOISE_SAMPLES)
    return paths[0, 0, :, 0], paths[..., -1]


def _paths(
    agent: Agent, probes: Probes, samples: int, rows: Sequence[int] | None = None, num_steps: int | None = None
) -> np.ndarray:
    """Compute the trajectories of evenly spaced source samples: (transitions, members, samples, steps + 1)."""
    nodes = source_nodes(jax.random.key(0), samples, "midpoint")
    return _at_pairs(_trajectories, agent, probes, rows, num_steps, nodes=nodes)


def _trajectories(agent: Agent, obs, act, num_steps: int | None, nodes):
    return agent.params.critic.trajectories(agent.scale.noise(nodes), obs, act, agent.scale, num_steps)


def _velocities(agent: Agent, obs, act, _, t, z):
    """Compute the velocity on a grid, mean over members: (z, t)."""
    velocity = lambda z, t: jnp.mean(agent.params.critic.velocities(z, t, obs, act, agent.scale))  # noqa: E731
    return jax.vmap(jax.vmap(velocity, (None, 0)), (0, None))(z, t)


# --- Of any critic ---


def histograms(agent: Agent, probes: Probes) -> list[ValueDistribution]:
    """Compute the critic's histograms of the return at the three examples; empty if it has none."""
    return _distributions(_histogram, agent, probes)


def quantiles(agent: Agent, probes: Probes) -> list[ValueDistribution]:
    """Compute the critic's quantiles of the return at the three examples; empty if it has none."""
    return _distributions(_quantiles, agent, probes)


def _distributions(function: Callable, agent: Agent, probes: Probes) -> list[ValueDistribution]:
    found = _at_pairs(function, agent, probes, [row for _, row in probes.examples])
    if found is None:
        return []
    examples = zip(probes.examples, *found, strict=True)
    return [ValueDistribution(name, x, said, float(q), probes.targets[:, row]) for (name, row), x, said, q in examples]


def _histogram(agent: Agent, obs, act, _):
    found = agent.params.critic.histograms(obs, act, agent.scale)
    return found and (*found, jnp.mean(found[1] @ found[0]))


def _quantiles(agent: Agent, obs, act, _):
    taus = jnp.asarray(TAUS, jnp.float32)
    found = agent.params.critic.quantiles(obs, act, agent.scale, taus)
    return None if found is None else (taus, found, jnp.mean(found))


def members(agent: Agent, probes: Probes) -> np.ndarray:
    """Compute the value of every probe by each member of the critic: (transitions, members)."""
    return _at_pairs(_members, agent, probes)


def _members(agent: Agent, obs, act, _):
    return agent.params.critic.member_values(obs, act, agent.scale, jax.random.key(0))


def _at_pairs(
    function: Callable,
    agent: Agent,
    probes: Probes,
    rows: Sequence[int] | None = None,
    num_steps: int | None = None,
    **arrays: jax.Array,
) -> Any:
    """Compute `function(agent, obs, act, num_steps, **arrays)` at some of the probes, by default at all, as arrays of
    NumPy. The observations that it gets are normalized."""
    at = jnp.arange(len(probes.q)) if rows is None else jnp.asarray(rows)
    pairs = probes.batch["observations"][at], probes.batch["actions"][at]
    return jax.tree.map(np.asarray, _map_pairs(function, agent, pairs, num_steps, arrays))


@partial(jax.jit, static_argnums=(0, 3))
def _map_pairs(function: Callable, agent: Agent, pairs: Any, num_steps: int | None, arrays: dict[str, jax.Array]):
    at_pair = lambda pair: function(agent, agent.normalize(pair[0]), pair[1], num_steps, **arrays)  # noqa: E731
    with matmul_precision("f32"):
        return jax.lax.map(at_pair, pairs, batch_size=32)
