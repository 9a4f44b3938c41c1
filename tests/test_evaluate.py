"""Evaluation depends on seed, step and policy, and on nothing else. On a task whose returns show every difference."""

import os
import signal

import jax
import numpy as np
import pytest
from helpers import SCALAR, agent_config

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.envs.environments import EnvFactory, EpisodeResult, make
from floq.evaluation import rollouts
from floq.evaluation.rollouts import Evaluation, Evaluator, Rollout

EPISODES = 13  # more than there are slots, so that slots play several


@pytest.fixture(scope="module")
def results():
    """Evaluations of one agent on the pendulum, by (workers, seed, step), the first repeated."""
    policy = Agent.init(jax.random.key(0), 3, 1, agent_config(SCALAR)).policy
    found = {}
    for workers in (1, 2):
        with Evaluator(EnvFactory("Pendulum-v1"), EPISODES, workers) as evaluator:
            for seed, step in ((0, 5), (1, 5), (0, 6)):
                found[workers, seed, step] = evaluator(policy, seed, step)
            found[workers, "again"] = evaluator(policy, 0, 5)
    return found


def test_two_calls_give_the_same_number(results):
    assert [e.episode_return for e in results[1, "again"].episodes] == [
        e.episode_return for e in results[1, 0, 5].episodes
    ]


def test_one_and_two_workers_give_the_same_numbers(results):
    for seed, step in ((0, 5), (1, 5), (0, 6)):
        one, two = (results[workers, seed, step].episodes for workers in (1, 2))
        assert [e.episode_return for e in one] == [e.episode_return for e in two]


def test_seed_step_and_episode_matter(results):
    returns = [
        tuple(e.episode_return for e in results[1, seed, step].episodes) for seed, step in ((0, 5), (1, 5), (0, 6))
    ]
    assert len(set(returns)) == 3
    assert all(len(set(episodes)) == EPISODES for episodes in returns)


def test_every_episode_is_played_to_its_end(results):
    assert [e.length for e in results[1, 0, 5].episodes] == [200] * EPISODES


CHUNK = 3  # does not divide the 200 steps of an episode


@pytest.fixture(scope="module")
def chunks():
    """A policy that decides on three torques at once, and its episodes with one worker."""
    policy = Agent.init(jax.random.key(0), 3, CHUNK, agent_config(SCALAR, action_chunk=CHUNK)).policy
    with Evaluator(EnvFactory("Pendulum-v1"), EPISODES, 1, CHUNK) as evaluator:
        return policy, evaluator(policy, 0, 5).episodes


def test_a_chunk_is_executed_to_its_end(chunks):
    """Against a walk in plain Python, for the first episode and for one that a slot plays after another."""
    policy, episodes = chunks
    env, key = make("Pendulum-v1"), jax.random.fold_in(Keys.of(0).evaluation, 5)
    act = jax.jit(
        lambda obs, episode, step: policy.act(obs, jax.random.fold_in(jax.random.fold_in(key, episode), step))
    )
    for episode in (0, EPISODES - 1):
        obs, total = env.reset_with((0, 5, episode)), 0.0
        for start in range(0, 200, CHUNK):
            for torque in np.asarray(act(np.asarray(obs, np.float32), episode, start))[: 200 - start]:
                obs, reward, *_ = env.step(np.array([torque]))
                total += float(reward)
        assert episodes[episode].episode_return == pytest.approx(total, rel=1e-3)


@pytest.mark.processes
def test_chunks_do_not_depend_on_workers_or_their_deaths(chunks):
    policy, episodes = chunks
    calls = []
    with Evaluator(EnvFactory("Pendulum-v1"), EPISODES, 2, CHUNK) as evaluator:
        two = evaluator(policy, 0, 5).episodes
        assert [e.episode_return for e in two] == [e.episode_return for e in episodes]

        def kill_late():
            calls.append(0)
            if len(calls) == 251:  # in the midst of a chunk of the second episodes
                os.kill(evaluator._workers._processes[0].pid, signal.SIGKILL)
                evaluator._workers._processes[0].join()
            return False

        again = evaluator(policy, 0, 5, should_stop=kill_late)
    assert [e.episode_return for e in again.episodes] == [e.episode_return for e in episodes]


@pytest.mark.parametrize("chunk", [pytest.param(1, marks=pytest.mark.slow), CHUNK])
def test_players_evaluated_together_get_what_each_gets_alone(chunk):
    """Also where a group has fewer of them than another, and where some end sooner than others."""
    fresh = lambda number: Agent.init(jax.random.key(number), 3, chunk, agent_config(SCALAR, action_chunk=chunk)).policy  # noqa: E731
    rollouts = [Rollout(fresh(number), number, 5, "Pendulum-v1") for number in range(3)]
    with Evaluator(EnvFactory("Pendulum-v1"), EPISODES, 2, chunk, rollouts=3) as together:
        found = returns(together.rollout(rollouts))
        assert together.groups(rollouts) == [rollouts]
        assert returns(together.rollout(rollouts[1:])) == found[1:]
        assert found == returns(together(policy, seed, step) for policy, seed, step, _ in rollouts)
    with Evaluator(EnvFactory("Pendulum-v1"), EPISODES, 1, chunk) as alone:
        assert alone.groups(rollouts) == [[player] for player in rollouts]
        assert found == returns(alone(policy, seed, step) for policy, seed, step, _ in rollouts)


def returns(evaluations):
    return [[episode.episode_return for episode in evaluation.episodes] for evaluation in evaluations]


def test_players_divide_evenly_into_groups_and_manipulation_plays_alone(monkeypatch):
    monkeypatch.setattr(rollouts, "Workers", lambda *_: None)
    monkeypatch.setattr(rollouts, "cores", lambda: 2)
    sizes = lambda task, episodes, rollouts: [  # noqa: E731
        len(group) for group in Evaluator(EnvFactory(task, "post"), episodes, rollouts=rollouts).groups(range(rollouts))
    ]
    assert sizes("pointmaze-medium-navigate-singletask-v0", 50, 8) == [4, 4]  # ten slots for each of them
    assert sizes("pointmaze-medium-navigate-singletask-v0", 5, 10) == [10]
    assert sizes("pointmaze-medium-navigate-singletask-v0", 50, 7) == [4, 3]
    assert sizes("cube-single-play-singletask-v0", 5, 3) == [1, 1, 1]


def test_an_evaluation_can_be_abandoned():
    policy = Agent.init(jax.random.key(0), 3, 1, agent_config(SCALAR)).policy
    with Evaluator(EnvFactory("Pendulum-v1"), 2, 1) as evaluator:
        assert evaluator(policy, 0, 0, should_stop=lambda: True) is None


def test_summary_is_the_mean_over_episodes():
    evaluation = Evaluation(3, (EpisodeResult(1.0, -10.0, 11), EpisodeResult(0.0, -30.0, 30)))
    assert evaluation.summary() == {
        "evaluation/success": 0.5, "evaluation/episode.return": -20.0, "evaluation/episode.length": 20.5
    }  # fmt: skip


def test_an_episode_without_a_flag_fails_only_where_others_have_one():
    nan = float("nan")
    some = Evaluation(3, (EpisodeResult(1.0, 0.0, 1), EpisodeResult(nan, 0.0, 1)))
    none = Evaluation(3, (EpisodeResult(nan, 0.0, 1), EpisodeResult(nan, 0.0, 1)))
    assert some.summary()["evaluation/success"] == 0.5
    assert np.isnan(none.summary()["evaluation/success"])
    assert list(some.summary()) == list(none.summary())  # a CSV's columns are those of its first row
