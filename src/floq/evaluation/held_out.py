"""Evaluation without an environment: the critic's TD error on held-out data, and its value of the policy.

Neither measures the performance of the policy: a small TD error means that the critic is self-consistent on transitions
it was not trained on, and offline critics overestimate values; compare with the data's return from the same states.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.data.arrays import bounds
from floq.data.dataset import Dataset
from floq.data.description import discounted_returns

TRANSITIONS = 4096  # held-out transitions whose TD error is averaged, the same at every evaluation
MAX_INITIAL_STATES = 1000
ACTIONS = 8  # draws of the policy in each initial state
STATE_BATCH_SIZE = 100  # bounds memory


class HeldOutEvaluation(NamedTuple):
    """Results at a training step, all in units of (scaled) return.

    td_error: mean |target - Q| of held-out transitions. initial_value: mean Q of the policy's actions in the first
    states of held-out episodes. data_return: mean discounted return of the data from these states; a truncated episode
    counts the rewards that it has.
    """

    step: int
    td_error: float
    initial_value: float
    data_return: float

    def summary(self) -> dict[str, float]:
        """Return the results as metrics."""
        names = ("evaluation/td_error", "evaluation/initial_value", "evaluation/data_return")
        return dict(zip(names, self[1:], strict=True))


class HeldOutEvaluator:
    """Replacement of `Evaluator` where there is no environment."""

    def __init__(self, validation: Dataset):
        self._data = validation
        self._trajectories = validation.on_host()
        first, last = bounds(self._trajectories)
        first = first[last > first]
        self._initial = first[np.linspace(0, len(first) - 1, min(len(first), MAX_INITIAL_STATES)).astype(int)]

    def __call__(
        self, agent: Agent, seed: int, step: int, should_stop: Callable[[], bool] = lambda: False
    ) -> HeldOutEvaluation | None:
        """Evaluate `agent`, with the same transitions, states and random numbers at every step, so that steps are
        comparable. Return None if `should_stop` returned True before the end."""
        td_key, value_key = jax.random.split(Keys.of(seed).evaluation)
        value_keys = jax.random.split(value_key, (len(self._initial), ACTIONS))
        states = self._data.observations_at(self._initial)
        td_error, values = held_out_td_error(agent, self._data, td_key, should_stop), []
        for first in range(0, len(states), STATE_BATCH_SIZE):
            if td_error is None or should_stop():
                return None
            batch = slice(first, first + STATE_BATCH_SIZE)
            values.append(np.asarray(_policy_values(agent, states[batch], value_keys[batch])))
        returns = discounted_returns(self._trajectories, float(agent.hypers.discount))[self._initial]
        data_return = float(returns.mean() * agent.hypers.reward_scale)
        assert td_error is not None  # there is an initial state
        return HeldOutEvaluation(step, td_error, float(np.concatenate(values).mean()), data_return)


HeldOut: TypeAlias = Callable[..., HeldOutEvaluation | None]
"""What evaluates an agent without an environment: a `HeldOutEvaluator`, or one with its parameters."""


def held_out_td_error(agent: Agent, data: Dataset, key, should_stop: Callable[[], bool]) -> float | None:
    """Return the mean TD error of `TRANSITIONS` transitions, drawn with `key`; None if `should_stop` returned True."""
    found = []
    for batch_key in jax.random.split(key, -(-TRANSITIONS // agent.static.batch_size)):
        if should_stop():
            return None
        found.append(float(_td_error(agent, data, batch_key)))
    return float(np.mean(found))


@jax.jit
def _td_error(agent: Agent, data: Dataset, key):
    static = agent.static
    batch_key, loss_key = jax.random.split(key)
    batch = data.sample(batch_key, static.batch_size, static.n_step, agent.hypers.discount, static.action_chunk)
    return agent.evaluate_loss(batch, loss_key)["critic/abs_td_error"]


@jax.jit
def _policy_values(agent: Agent, observations, keys):
    def value(obs, key):
        act_key, value_key = jax.random.split(key)
        return agent.value(obs, agent.act(obs, act_key), value_key)

    return jax.vmap(jax.vmap(value, (None, 0)))(observations, keys)
