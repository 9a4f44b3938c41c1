"""Environments that make new experience: what a tick brings, seeds, and failures."""

import itertools
import re

import gymnasium
import numpy as np
import pytest

from floq.envs.environments import EnvFactory
from floq.envs.vector import MAX_FAILURES, EnvSpec, ExploringEnvs


class Counter(gymnasium.Env):
    """Shows the number of steps since the reset and what it drew in it. After `length` steps the episode terminates;
    in step `wrong` of the first `failing` environments that were made something goes wrong."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))
    made = itertools.count()

    def __init__(self, length=3, wrong=None, what="raises", failing=1):
        self.length, self.wrong, self.what = length, wrong, what
        self.sound = next(Counter.made) >= failing

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.drawn = 0, float(self.np_random.uniform())
        return np.array([0.0, self.drawn], np.float32), {}

    def step(self, action):
        self.t += 1
        obs, reward = np.array([self.t, self.drawn], np.float32), float(action[0])
        if self.t == self.wrong and not self.sound:
            if self.what == "raises":
                raise RuntimeError("a joint\nbroke")
            if self.what == "success":
                return obs, reward, True, False, {"success": "yes"}
            obs = {"nan": np.full(2, np.nan), "shape": np.zeros(3), "reward": obs}[self.what]
            reward = np.inf if self.what == "reward" else reward
        return obs, reward, self.t == self.length, False, {"success": self.t == self.length}


@pytest.fixture
def counter():
    """Registers `Counter` with settings."""

    def register(**settings):
        Counter.made = itertools.count()
        gymnasium.registry.pop("Counter-v0", None)
        gymnasium.register("Counter-v0", entry_point=Counter, kwargs=settings, max_episode_steps=5)
        return "Counter-v0"

    yield register
    gymnasium.registry.pop("Counter-v0", None)


def ticks(envs, count, first=0):
    act = np.full((len(envs._sites), 1), 0.5, np.float32)
    return [envs.step(first + i, act) for i in range(count)]


@pytest.mark.parametrize(("length", "mask"), [(3, 0.0), (9, 1.0)])
def test_an_episode_begins_with_a_reset_and_its_end_is_followed_by_one(counter, length, mask):
    """Ended by itself after three steps, or cut off by its time limit after five."""
    envs = ExploringEnvs([EnvSpec((0, 0), EnvFactory(counter(length=length)), 7)], False)
    steps = min(length, 5)
    found = ticks(envs, steps + 3)
    assert [bool(tick.stepped[0]) for tick in found] == [False, *[True] * steps, False, True]
    assert [tick.observations[0, 0] for tick in found] == [0, *range(1, steps + 1), 0, 1]
    assert [tick.masks[0] for tick in found[1 : steps + 1]] == [*[1.0] * (steps - 1), mask]
    assert [len(tick.finished) for tick in found] == [*[0] * steps, 1, 0, 0]
    slot, result = found[steps].finished[0]
    assert (slot, result) == ((0, 0), (float(length == 3), 0.5 * steps, steps))


def test_episodes_are_seeded_by_run_environment_and_tick(counter):
    name = EnvFactory(counter())
    sites = [EnvSpec((0, 0), name, 7), EnvSpec((0, 1), name, 7), EnvSpec((1, 0), name, 8)]
    drawn = lambda found: np.array([tick.observations[:, 1] for tick in found])  # noqa: E731
    together = drawn(ticks(ExploringEnvs(sites, False), 6))
    assert len(np.unique(together)) == 6  # two episodes of each
    for i, site in enumerate(sites):
        np.testing.assert_array_equal(drawn(ticks(ExploringEnvs([site], False), 6))[:, 0], together[:, i])
    later = drawn(ticks(ExploringEnvs(sites[:1], False), 1, first=6))
    assert later[0, 0] not in together


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("raises", "RuntimeError: a joint broke"),
        ("nan", "its observation was not finite, in number 0"),
        ("shape", r"its observation had the shape \(3,\), and not \(2,\)"),
        ("reward", "its reward was inf"),
        ("success", r"its info\['success'\] was 'yes', and neither true nor false"),
    ],
)
def test_a_failure_is_told_in_one_line_and_may_be_survived(counter, what, words):
    """In step 2 of the first environment; the other one goes on beside it."""
    sites = [
        EnvSpec((0, 0), EnvFactory(counter(wrong=2, what=what)), 7),
        EnvSpec((0, 1), EnvFactory("Counter-v0"), 7),
    ]
    envs = ExploringEnvs(sites, True)
    found = ticks(envs, 6)
    (failure,) = found[2].failures
    assert failure.slot == (0, 0)
    assert failure.goes_on
    assert re.search(words, failure.what)
    assert failure.what.startswith("environment 0 of Counter-v0 (seed 7) failed: ")
    assert "\n" not in failure.what
    assert [bool(tick.stepped[0]) for tick in found] == [False, True, False, False, True, True]
    assert [bool(tick.stepped[1]) for tick in found] == [False, True, True, True, False, True]
    assert np.isfinite([tick.observations for tick in found]).all()
    assert not any(tick.failures for tick in found[3:])


def test_an_environment_that_keeps_failing_is_given_up(counter):
    envs = ExploringEnvs([EnvSpec((0, 0), EnvFactory(counter(wrong=1, failing=99)), 7)], True)
    failures = [failure for tick in ticks(envs, 2 * MAX_FAILURES) for failure in tick.failures]
    assert [failure.goes_on for failure in failures] == [True] * (MAX_FAILURES - 1) + [False]
    stubborn = ExploringEnvs([EnvSpec((0, 0), EnvFactory(counter(wrong=1)), 7)], False)
    assert [f.goes_on for tick in ticks(stubborn, 2) for f in tick.failures] == [False]
