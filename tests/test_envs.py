"""Environments reproduce from their seed alone, whatever happened before and beside them."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from floq.envs import environments, ogbench
from floq.envs.environments import EnvFactory, probe
from floq.envs.vector import EnvSlots
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec

MAZE = "pointmaze-medium-navigate-singletask-v0"
PUZZLE = "puzzle-3x3-play-singletask-v0"
DIRECTED = "online-ant-xy-v0"


def roll_out(env, seed, steps=5):
    obs = [env.reset_with(seed)]
    for _ in range(steps):
        obs.append(env.step(np.full(env.action_space.shape, 0.3))[0])
    return np.array(obs)


@pytest.mark.parametrize("name", [MAZE, "pointmaze-teleport-navigate-singletask-v0", PUZZLE, DIRECTED])
def test_an_episode_depends_on_its_seed_alone(name):
    env, other = environments.make(name), environments.make(name)
    first = roll_out(env, (3, 7))
    roll_out(env, (4, 4))
    np.random.seed(123)
    np.random.uniform(size=10)
    other.reset_with((9,))
    np.testing.assert_array_equal(roll_out(env, (3, 7)), first)
    np.testing.assert_array_equal(roll_out(other, (3, 7)), first)
    assert np.abs(roll_out(env, (3, 8)) - first).max() > 1e-6


def test_a_directed_walker_is_paid_for_its_way_in_the_direction_it_sees():
    """OGBench's task for its ant: the direction, of length 1, ends the observation and changes after 100 steps."""
    env = environments.make(DIRECTED)
    obs, base = env.reset_with((0, 1)), env.unwrapped
    directions = [obs[-2:]]
    for _ in range(101):
        before = base.data.qpos[:2].copy()
        obs, reward, terminated, truncated, _ = env.step(np.zeros(8))
        assert reward == pytest.approx(float((base.data.qpos[:2] - before) @ directions[-1]))
        assert not terminated
        assert not truncated
        directions.append(obs[-2:])
    assert len(obs) == 29
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0)
    changes = [i for i in range(101) if (directions[i] != directions[i + 1]).any()]
    assert changes == [99]


def test_the_callers_global_generator_is_left_alone():
    env = environments.make(MAZE)
    np.random.seed(5)
    expected = np.random.uniform(size=3)
    np.random.seed(5)
    got = [np.random.uniform()]
    env.reset_with((0,))
    got.append(np.random.uniform())
    env.step(np.zeros(2))
    got.append(np.random.uniform())
    np.testing.assert_array_equal(got, expected)


def test_manipulation_environments_get_one_seeded_action_space():
    env = environments.make(PUZZLE)
    assert env.unwrapped.action_space is env.unwrapped.action_space
    env.reset_with((1,))
    drawn = env.unwrapped.action_space.sample()
    env.reset_with((1,))
    np.testing.assert_array_equal(env.unwrapped.action_space.sample(), drawn)
    assert type(environments.make(PUZZLE).unwrapped) is not type(env.unwrapped)


@pytest.mark.parametrize(("timing", "first"), [("post", True), ("pre", False)])
def test_success_timing_of_a_manipulation_task(timing, first):
    """A cube put on its target: `post` sees it after this step; `pre` after the next, since this one began unsolved."""
    env = environments.make("cube-single-play-singletask-v0", timing)
    env.reset_with((0,))
    base: Any = env.unwrapped
    base._data.joint("object_joint_0").qpos[:3] = base._data.mocap_pos[0]
    steps = [env.step(np.zeros(5)) for _ in range(2)]
    assert [step[4]["success"] for step in steps] == [first, True]
    assert [step[2] for step in steps] == [first, True]


def test_success_timing_reaches_the_environment():
    assert environments.make(MAZE, "post").unwrapped._success_timing == "post"  # type: ignore[attr-defined]
    assert environments.make(MAZE, "pre").unwrapped._success_timing == "pre"  # type: ignore[attr-defined]


def test_names():
    assert ogbench.is_dataset(MAZE)
    assert not ogbench.is_dataset("Hopper-v5")
    assert ogbench.is_singletask(MAZE)
    assert not ogbench.is_singletask("pointmaze-medium-navigate-v0")
    assert ogbench.dataset_name("cube-double-play-singletask-task2-v0") == "cube-double-play-v0"
    assert ogbench.dataset_name(MAZE) == "pointmaze-medium-navigate-v0"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pointmaze-medum-navigate-singletask-v0", "did you mean 'pointmaze-medium-navigate-singletask-v0'"),
        ("Hoper-v5", "unknown environment 'Hoper-v5'; did you mean 'Hopper-v"),
        ("CartPole-v1", "bounded, one-dimensional Box"),
    ],
)
def test_unusable_environments_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        environments.make(name)


def test_actions_are_rescaled_to_the_unit_box():
    """The pendulum takes torques in [-2, 2]."""
    env = environments.make("Pendulum-v1")
    assert (env.action_space.low, env.action_space.high) == (-1, 1)  # type: ignore[attr-defined]
    env.reset_with((0,))
    env.step(np.array([0.5], np.float32))
    assert env.unwrapped.last_u == pytest.approx(1.0)  # type: ignore[attr-defined]


class Drawn(gymnasium.Env):
    """Shows a dictionary, and calls its success as the robotics environments do."""

    observation_space = gymnasium.spaces.Dict(
        {"b": gymnasium.spaces.Box(-1, 1, (2,)), "a": gymnasium.spaces.Box(-1, 1, (1,))}
    )
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._look(), {}

    def step(self, action):
        return self._look(), 0.0, True, False, {"is_success": 1.0}

    def _look(self):
        return {"b": np.array([0.25, 0.5], np.float32), "a": np.array([1.0], np.float32)}


class Picture(Drawn):
    """Shows an image."""

    observation_space = gymnasium.spaces.Box(0, 1, (4, 4, 3))


def test_a_missing_dependency_is_named_as_it_is():
    pytest.importorskip("gymnasium")
    with pytest.raises(UserError, match=r"BipedalWalker-v3: .*[bB]ox2[dD].* is not installed"):
        environments.make("BipedalWalker-v3")


def test_dictionaries_are_laid_end_to_end_and_is_success_counts(monkeypatch):
    gymnasium.register("test/Drawn-v0", Drawn)
    gymnasium.register("test/Picture-v0", Picture)
    try:
        assert probe(environments.make("test/Drawn-v0")) == (ObsSpec.of(3), 1)
        slots = EnvSlots(EnvFactory("test/Drawn-v0"), [(0, 0)], num_slots=1)
        np.testing.assert_array_equal(slots.start([("test/Drawn-v0", (0,))], 1), [[1.0, 0.25, 0.5]])
        assert slots.step(np.zeros((1, 1)))[1] == [((0, 0), environments.EpisodeResult(1.0, 0.0, 1))]
        with pytest.raises(UserError, match="floq needs a vector of observations"):
            environments.make("test/Picture-v0")
        assert environments.make("test/Drawn-v0").env.env._max_episode_steps == environments.TIME_LIMIT  # type: ignore[attr-defined]
    finally:
        del gymnasium.registry["test/Drawn-v0"], gymnasium.registry["test/Picture-v0"]


@pytest.mark.filterwarnings("ignore:.*Using the latest versioned environment")
def test_what_gymnasium_has_registered_is_gymnasiums(monkeypatch):
    """A name such as OGBench gives its datasets does not make it OGBench's."""
    gymnasium.register("robot-play-v0", Drawn)
    try:
        for spelling in ("robot-play-v0", "robot-play", "test_envs:robot-play-v0"):
            assert not ogbench.is_dataset(spelling)
            assert not EnvFactory(spelling).is_heavy
            assert probe(environments.make(spelling)) == (ObsSpec.of(3), 1)
        assert ogbench.is_dataset("cube-single-play-v0")
        assert ogbench.is_dataset("robot-noisy-v0")
    finally:
        del gymnasium.registry["robot-play-v0"]


class Countdown(gymnasium.Env):
    """Ends after as many steps as its first observation says; success if that is even."""

    observation_space = gymnasium.spaces.Box(-1e3, 1e3, (1,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._first = self._left = int(self.np_random.integers(2, 6))
        return np.array([self._left], np.float32), {}

    def step(self, action):
        self._left -= 1
        info = {"success": float(self._first % 2 == 0)}
        return np.array([self._left], np.float32), 1.0, self._left == 0, False, info


@pytest.fixture
def countdown(monkeypatch):
    monkeypatch.setattr(
        environments, "make", lambda name, timing: environments.SeededEnv(Countdown(), EnvFactory(name))
    )


def test_slots_play_every_episode_of_every_player_once_and_report_it(countdown):
    """Two rollouts with a seed each; a third, for whom there are slots, does not play."""
    places = [(player, slot) for player in range(3) for slot in range(2)]
    slots = EnvSlots(EnvFactory("any"), places, num_slots=2)
    obs, results, episode = slots.start([("any", (0,)), ("any", (1,))], 5), {}, {(p, s): s for p, s in places}
    lengths = {(player, slot): first for (player, slot), first in zip(places, obs[:, 0], strict=True)}
    while len(results) < 10:
        obs, finished = slots.step(np.zeros((6, 1)))
        for place, result in finished:
            player = place[0]
            results[player, episode[place]] = result
            episode[place] += 2
            if episode[place] < 5:
                lengths[player, episode[place]] = obs[places.index(place), 0]
    for episode, result in results.items():
        assert result.length == result.episode_return == lengths[episode]
        assert result.success == float(lengths[episode] % 2 == 0)
    for player, number in results:
        assert (
            lengths[player, number]
            == environments.SeededEnv(Countdown(), EnvFactory("any")).reset_with((player, number))[0]
        )
    assert not any(player == 2 for player, _ in results)
