"""Evaluation depends on seed, step and policy, and on nothing else. On a task whose returns show every difference."""

import jax
import numpy as np
import pytest
from helpers import agent_config

from floq.agent import Agent
from floq.envs import EpisodeResult
from floq.evaluate import Evaluation, Evaluator

EPISODES = 13  # more than there are slots, so that slots play several


@pytest.fixture(scope="module")
def results():
    """Evaluations of one agent on the pendulum, by (workers, seed, step), the first repeated."""
    policy = Agent.init(jax.random.key(0), 3, 1, agent_config()).policy
    found = {}
    for workers in (1, 2):
        with Evaluator("Pendulum-v1", None, EPISODES, workers) as evaluate:
            for seed, step in ((0, 5), (1, 5), (0, 6)):
                found[workers, seed, step] = evaluate(policy, seed, step)
            found[workers, "again"] = evaluate(policy, 0, 5)
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


def test_an_evaluation_can_be_abandoned():
    policy = Agent.init(jax.random.key(0), 3, 1, agent_config()).policy
    with Evaluator("Pendulum-v1", None, 2, 1) as evaluate:
        assert evaluate(policy, 0, 0, should_stop=lambda: True) is None


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
