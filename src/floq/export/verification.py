"""Is an exported policy the policy? Its actions beside the agent's, for the same observations and noise; its speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from floq.agent.policy import Policy, select_action
from floq.export.formats import Acting
from floq.export.trace import Traced
from floq.networks.precision import matmul_precision
from floq.utils.errors import Failed

OBSERVATIONS, TOLERANCE, CALLS = 200, 1e-5, 300


class Sample(NamedTuple):
    """An observation, the agent's own noise, and its action."""

    obs: np.ndarray
    key: PRNGKeyArray
    noise: list[np.ndarray]
    action: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How far exported actions are from the agent's, but for `ties`: there another one was taken of candidates that the
    critic likes equally well, up to rounding."""

    largest: float
    ties: int
    count: int


def samples(policy: Policy, traced: Traced, explore: bool = False, count: int = OBSERVATIONS) -> list[Sample]:
    """What the agent does for random observations, drawn as wide as those of the data where their spread is known."""
    rng, draw = np.random.default_rng(0), jax.jit(traced.draw)
    mean, std = np.asarray(policy.obs_stats.mean), np.asarray(policy.obs_stats.std)
    found = []
    for number in range(count):
        obs = (mean + std * rng.standard_normal(traced.obs_size)).astype(np.float32)
        key = jax.random.key(number)
        act = policy.explore if explore else policy.act
        noise = [np.asarray(x) for x in draw(jax.random.clone(key))]
        found.append(Sample(obs, jax.random.clone(key), noise, np.asarray(act(jnp.asarray(obs), key))))
    return found


def compare(policy: Policy, acting: Acting, expected: Sequence[Sample], tolerance: float = TOLERANCE) -> Agreement:
    """Ask for the same actions.

    Raises:
        Failed: one is further than `tolerance` from the agent's, and is no tie.
    """
    largest, ties = 0.0, 0
    for sample in expected:
        action = acting(sample.obs, sample.noise)
        distance = float(np.max(np.abs(action - sample.action)))
        if distance <= tolerance:
            largest = max(largest, distance)
        elif policy.critic is not None and _equally_good(policy, sample, action):
            ties += 1
        else:
            raise Failed(
                f"an exported action is {distance:.2g} from the agent's, more than {tolerance:g}, nothing was written: "
                "give --tolerance if that is near enough; if it cannot be rounding, please report it"
            )
    return Agreement(largest, ties, len(expected))


def _equally_good(policy: Policy, sample: Sample, action: np.ndarray) -> bool:
    values = [float(_value(policy, sample.obs, act, jax.random.clone(sample.key))) for act in (action, sample.action)]
    return abs(values[0] - values[1]) <= TOLERANCE * max(1.0, *map(abs, values))


@jax.jit
def _value(policy: Policy, obs: Float[Array, " obs"], act: Float[Array, " act"], key: PRNGKeyArray) -> Float[Array, ""]:
    """What the policy thinks of an action when it acts with this key."""
    normalised = (obs - policy.obs_stats.mean) / policy.obs_stats.std
    with matmul_precision("f32"):
        return select_action(lambda obs, value, _: value(act)[None], policy.critic, policy.scale, normalised, key)[0]


def milliseconds(act: Callable[[Sample], object], expected: Sequence[Sample], calls: int = CALLS) -> float:
    """The median time of an action, one after another, after ten that are not counted."""
    taken = []
    for number in range(-10, calls):
        sample = expected[number % len(expected)]
        begin = time.perf_counter()
        act(sample)
        taken.append(time.perf_counter() - begin)
    return 1000 * float(np.median(taken[10:]))
