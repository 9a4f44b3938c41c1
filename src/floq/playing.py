"""Episodes of a trained agent, looked at step by step: those that the evaluation of its step begins with."""

from collections.abc import Callable

import jax
import numpy as np

from floq import envs
from floq.agent import Agent
from floq.analysis.episodes import Played
from floq.keys import Keys
from floq.run import Run

NEVER: Callable[[int], None] = lambda done: None  # noqa: E731


def play(run: Run, agent: Agent, step: int, count: int, on_progress: Callable[[int], None] = NEVER) -> list[Played]:
    """Play the first `count` episodes of the evaluation that (the run's seed, `step`) names. `on_progress` is told how
    many are over."""
    env = envs.make(run.config.env_name or "", run.config.success_timing)
    key = jax.random.fold_in(Keys.of(run.config.seed).evaluation, step)
    played = []
    for number in range(count):
        played.append(_play(run, agent, env, seed_of(run, step, number), jax.random.fold_in(key, number)))
        on_progress(number + 1)
    env.close()
    return played


def seed_of(run: Run, step: int, number: int) -> envs.Seed:
    """What seeds an episode of that evaluation."""
    return run.config.seed, step, number


def _play(run: Run, agent: Agent, env: envs.SeededEnv, seed: envs.Seed, key) -> Played:
    chunk, policy = agent.static.action_chunk, agent.policy
    value_key = jax.random.fold_in(Keys.of(run.config.seed).pictures, 3)
    obs, elapsed, terminated, truncated = env.reset_with(seed), 0, False, False
    decided, values, actions, rewards, flags = [], [], [], [], []
    plan: list[np.ndarray] = []
    while not (terminated or truncated):
        if elapsed % chunk == 0:
            chosen, value = _decide(agent, policy, np.asarray(obs, np.float32), key, value_key, elapsed)
            plan = np.split(np.asarray(chosen), chunk)
            decided.append(elapsed)
            values.append(float(value))
        actions.append(plan[elapsed % chunk])
        obs, reward, terminated, truncated, info = env.step(actions[-1])
        rewards.append(float(reward))
        flags.append(info.get("success", info.get("is_success")))
        elapsed += 1
    tail = 0.0
    if not terminated:
        tail = float(_decide(agent, policy, np.asarray(obs, np.float32), key, value_key, elapsed)[1])
    discount, scale = float(agent.hypers.discount), float(agent.hypers.reward_scale)
    succeeded = next((at + 1 for at, flag in enumerate(flags) if flag), None)
    return Played(
        seed[-1],
        np.array(decided),
        np.array(actions),
        np.array(values),
        np.array(rewards),
        earned(np.array(rewards) * scale, discount, tail),
        succeeded,
        any(flag is not None for flag in flags),
        not terminated,
    )


def earned(rewards: np.ndarray, discount: float, tail: float) -> np.ndarray:
    """The discounted sum of the rewards from each step on, where `tail` is what comes after the last one."""
    sums, after = np.empty(len(rewards)), tail
    for at in reversed(range(len(rewards))):
        sums[at] = after = rewards[at] + discount * after
    return sums


@jax.jit
def _decide(agent: Agent, policy, obs, key, value_key, elapsed):
    """What the policy does at a step of an episode, as in its evaluation, and its Q."""
    chosen = policy.act(obs, jax.random.fold_in(key, elapsed))
    return chosen, agent.value(obs, chosen, jax.random.fold_in(value_key, elapsed))
