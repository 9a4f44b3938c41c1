"""Evaluation of fixed policies: their actions in the states of data, the values of states where episodes begin, and
what they earn in the environment from there. `training/fitted_q.py` trains the critics that know the values."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from floq.agent.agent import Agent
from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.data.arrays import bounds
from floq.data.dataset import Dataset
from floq.data.description import discounted_returns
from floq.envs.environments import EnvFactory
from floq.evaluation.held_out import STATE_BATCH_SIZE, HeldOutEvaluation, held_out_td_error
from floq.evaluation.rollouts import Evaluator, on_cpu, play_episode
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec

SEED = 0  # all policies act with the same random numbers, and in the environment begin in the same states
DRAW_BATCH = 512  # states whose actions are drawn at a time, to limit memory

HostPolicy: TypeAlias = Callable[[np.ndarray, np.random.Generator], Any]
"""A function of NumPy arrays from states, one a row, to actions in [-1, 1], one a row."""


class FixedPolicy(NamedTuple):
    """A policy that does not change, and its name; and the agent that it is of, if it is one's."""

    name: str
    act: Policy | HostPolicy
    agent: Agent | None = None

    def draw(
        self, states: Shaped[Array, "n size"] | Dataset, samples: int, width: int, obs_spec: ObsSpec
    ) -> Float[Array, "n samples act"]:
        """Draw `samples` actions of `width` numbers in each state, or of a dataset in that of each row. Raises
        UserError if they have another shape or are not finite."""
        count = len(states.ends) if isinstance(states, Dataset) else len(states)
        if isinstance(self.act, Policy):
            drawn = _draw(self.act, states, jax.random.key(SEED), count, samples)
        else:
            all_states = states.stacked_on_host() if isinstance(states, Dataset) else np.asarray(states)
            rng, host = np.random.default_rng(SEED), obs_spec.read(all_states)
            drawn = jnp.stack([jnp.asarray(self.act(host, rng), jnp.float32) for _ in range(samples)], axis=1)
        if drawn.shape != (wanted := (count, samples, width)):
            shape = drawn.shape[:1] + drawn.shape[2:]
            raise UserError(
                f"the policy {self.name} returns actions of shape {shape}, not {wanted[::2]} as the data has"
            )
        if not bool(jnp.isfinite(drawn).all()):
            raise UserError(f"the policy {self.name} returns actions that are not finite")
        return jnp.clip(drawn, -1.0, 1.0)


@partial(jax.jit, static_argnums=(3, 4))
def _draw(policy: Policy, states: Array | Dataset, key: PRNGKeyArray, count: int, samples: int) -> Array:
    state = states.observation if isinstance(states, Dataset) else lambda row: states[row]
    act = lambda row, keys: jax.vmap(policy.act, (None, 0))(state(row), keys)  # noqa: E731
    each = jnp.arange(count), jax.random.split(key, (count, samples))
    return jax.lax.map(lambda each: act(*each), each, batch_size=DRAW_BATCH)


class Episodes(NamedTuple):
    """Episodes of the data in which transitions start: their first and last rows, the discounted return between them,
    and the discount of what follows the last state, which is 0 after a termination."""

    first: np.ndarray
    last: np.ndarray
    returns: np.ndarray
    carry: np.ndarray

    @classmethod
    def of(cls, data: Dataset, discount: float) -> "Episodes":
        """Find the episodes of a dataset."""
        rows, starts = data.on_host(), np.asarray(data.starts)
        pairs = np.stack(bounds(rows), axis=1)
        pairs = pairs[np.unique(np.searchsorted(pairs[:, 1], starts))]
        carry = [0.0 if (rows.masks[a:b] == 0).any() else discount ** int(b - a) for a, b in pairs]
        return cls(pairs[:, 0], pairs[:, 1], discounted_returns(rows, discount)[pairs[:, 0]], np.array(carry))

    def resample(self, seed: int) -> "Episodes":
        """Draw as many episodes as there are, with replacement."""
        drawn = np.random.default_rng(seed).integers(0, len(self.first), len(self.first))
        return Episodes(*(values[drawn] for values in self))

    def transitions(self, data: Dataset) -> np.ndarray:
        """Return the rows of the dataset at which transitions of these episodes start, repeated as the episodes are."""
        starts = np.asarray(data.starts)
        ends = zip(np.searchsorted(starts, self.first), np.searchsorted(starts, self.last), strict=True)
        return np.concatenate([starts[begin:end] for begin, end in ends])


class States(NamedTuple):
    """States, and actions of a policy there."""

    observations: Shaped[Array, "n size"]
    actions: Float[Array, "n draws act"]

    def values(self, agent: Agent, key: PRNGKeyArray) -> np.ndarray:
        """Return the value of each state by the agent's critic, the mean over the actions. Consumes `key`."""
        return np.asarray(_values(agent, *self, key), np.float64)


@jax.jit
def _values(agent: Agent, observations: Array, actions: Array, key: PRNGKeyArray) -> Array:
    def value(state: tuple[Array, Array, PRNGKeyArray]) -> Array:
        obs, acts, key = state
        return jnp.mean(jax.vmap(lambda act, key: agent.value(obs, act, key))(acts, jax.random.split(key, len(acts))))

    states = observations, actions, jax.random.split(key, len(observations))
    return jax.lax.map(value, states, batch_size=STATE_BATCH_SIZE)


class FixedPolicyEvaluator(NamedTuple):
    """Evaluates an agent as `HeldOutEvaluator` does: the TD error on validation data, the value of a fixed policy at
    the starts, and what the data earned in some episodes, where what is cut off has the value of the last state."""

    validation: Dataset
    starts: States
    episodes: Episodes
    last: States  # of the episodes

    def __call__(
        self, agent: Agent, seed: int, step: int, should_stop: Callable[[], bool] = lambda: False
    ) -> HeldOutEvaluation | None:
        """Evaluate the agent, with the same random numbers at every step. None if `should_stop` returned True."""
        td_key, start_key, last_key = jax.random.split(Keys.of(seed).evaluation, 3)
        td_error = held_out_td_error(agent, self.validation, td_key, should_stop)
        if td_error is None or should_stop():
            return None
        earned = float(agent.hypers.reward_scale) * self.episodes.returns
        if self.episodes.carry.any():
            earned = earned + self.episodes.carry * self.last.values(agent, last_key)
        return HeldOutEvaluation(
            step, td_error, float(self.starts.values(agent, start_key).mean()), float(earned.mean())
        )


# --- In the environment ---


def first_observations(make_env: EnvFactory, count: int) -> Shaped[np.ndarray, "count size"]:
    """Return the observations in which the first `count` episodes begin."""
    env = make_env()
    try:
        return np.stack([env.begin_episode((SEED, 0, number)) for number in range(count)])
    finally:
        env.close()


def measured_returns(
    policies: Sequence[FixedPolicy],
    make_env: EnvFactory,
    count: int,
    action_chunk: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[float, ...]]:
    """Return for each policy the returns of its first `count` episodes, which begin in `first_observations`."""
    found: list[tuple[float, ...]] = []
    with contextlib.ExitStack() as stack:
        evaluator = None
        for number, policy in enumerate(policies):
            progress = lambda done, before=number * count: on_progress(before + done)  # noqa: E731
            if isinstance(policy.act, Policy):
                evaluator = evaluator or stack.enter_context(Evaluator(make_env, count, action_chunk=action_chunk))
                evaluation = evaluator(on_cpu(policy.act), SEED, 0, progress)
                assert evaluation is not None
                found.append(tuple(episode.episode_return for episode in evaluation.episodes))
            else:
                found.append(tuple(_played(policy.act, make_env, count, action_chunk, progress)))
    return found


def _played(
    act: HostPolicy, make_env: EnvFactory, count: int, action_chunk: int, on_progress: Callable[[int], None]
) -> Iterator[float]:
    """Play the episodes one after another, in this process."""
    env, rng = make_env(), np.random.default_rng(SEED)
    decide = lambda obs, _: act(env.obs_spec.read(obs[None]), rng)[0]  # noqa: E731
    for number in range(count):
        for _, _, step in play_episode(env, (SEED, 0, number), decide, action_chunk):
            if step.result is not None:
                yield step.result.episode_return
        on_progress(number + 1)
    env.close()
