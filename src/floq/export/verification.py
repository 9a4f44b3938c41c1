"""Verification of an exported policy: its actions and the agent's for the same observations and noise; its speed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from floq.agent.policy import Policy, select_action
from floq.export.formats import ActFunction
from floq.export.trace import TracedPolicy
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
    """Largest distance of exported actions from the agent's, except for `ties`: in these, another action was chosen
    among candidates whose values are equal up to rounding."""

    largest: float
    ties: int
    count: int


def samples(policy: Policy, traced: TracedPolicy, explore: bool = False, count: int = OBSERVATIONS) -> list[Sample]:
    """Return the agent's actions for random observations, drawn with the mean and spread of the data if known."""
    rng, draw = np.random.default_rng(0), jax.jit(traced.draw)
    mean, std = np.asarray(policy.obs_stats.mean), np.asarray(policy.obs_stats.std)
    found = []
    for number in range(count):
        obs = (mean + std * rng.standard_normal(traced.obs_spec.shape)).astype(np.float32)
        key = jax.random.key(number)
        act = policy.explore if explore else policy.act
        noise = [np.asarray(x) for x in draw(jax.random.clone(key))]
        found.append(Sample(obs, jax.random.clone(key), noise, np.asarray(act(jnp.asarray(obs), key))))
    return found


def compare_with_agent(
    policy: Policy, acting: ActFunction, expected: Sequence[Sample], tolerance: float = TOLERANCE
) -> Agreement:
    """Compare the exported policy's actions with the agent's.

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
    """Return the value of an action according to the policy's critic when it acts with `key`. Consumes `key`."""
    normalised = (obs - policy.obs_stats.mean) / policy.obs_stats.std
    with matmul_precision("f32"):
        return select_action(lambda obs, value, _: value(act)[None], policy.critic, policy.scale, normalised, key)[0]


def milliseconds(act: Callable[[Sample], object], expected: Sequence[Sample], calls: int = CALLS) -> float:
    """Measure the median time of sequential actions in milliseconds, after ten that are not counted."""
    times = []
    for number in range(-10, calls):
        sample = expected[number % len(expected)]
        begin = time.perf_counter()
        act(sample)
        times.append(time.perf_counter() - begin)
    return 1000 * float(np.median(times[10:]))
