"""`floq data inspect`: the numbers by hand, and that it points at what is wrong."""

import numpy as np
import pytest

from floq import cli
from floq.data.arrays import Trajectories, from_episodes
from floq.data.description import inspect, reward_over_time, summarise_episodes
from floq.utils.errors import UserError

MAZE = "pointmaze-medium-navigate-v0"


def episodes(lengths, terminates=(), **changes):
    """Episodes of random numbers; reward t at time t."""
    rng = np.random.default_rng(0)
    for number, length in enumerate(lengths):
        yield {
            "observations": rng.normal(size=(length + 1, 3)),
            "actions": rng.uniform(-0.9, 0.9, (length, 2)),
            "rewards": np.arange(length, dtype=float),
            "terminations": number in terminates,
        } | {key: change(length) for key, change in changes.items()}


def test_episodes_by_hand():
    data = from_episodes(episodes([3, 1, 4], terminates={1}))
    found = summarise_episodes(data)
    assert found.lengths.tolist() == [3, 1, 4]
    assert found.returns.tolist() == [0 + 1 + 2, 0, 0 + 1 + 2 + 3]
    assert found.terminated.tolist() == [False, True, False]
    np.testing.assert_array_equal(reward_over_time(data), [0, 1, 2, 3])


def test_the_table_by_hand():
    table = inspect(from_episodes(episodes([3, 1, 4], terminates={1})), discount=0.9).table
    assert table["transitions"] == "8"
    assert table["episodes"] == "3, 1 to 4 transitions each"
    assert table["returns"].startswith("0 to 6, mean 3,")
    assert table["terminations"] == "1 transitions, in 1 episodes (33.3%)"
    assert table["discounted"] == "0 to 5.23, returns from each state on, at discount 0.9"  # 1 + .9 (2 + .9 * 3)
    assert table["values"] == "[0, 30]; source noise [0, 3]"


def test_memory_is_about_half_of_pairs_for_wide_observations():
    wide = [{"observations": np.ones((1001, 200)), "actions": np.zeros((1000, 5)), "rewards": np.zeros(1000)}]
    assert "51% of storing pairs" in inspect(from_episodes(wide)).table["memory"]


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"rewards": lambda n: np.full(n, -1.0)}, "all rewards are -1: there is nothing to learn"),
        ({}, "no transition terminates"),
        ({"rewards": lambda n: 0.1 * (np.arange(n) == n - 1)}, "discounted returns fill 0.0% of the values [0, 10]"),
        ({"terminations": lambda n: True}, "all terminations come after 5 transitions: are they time-outs?"),
        ({"observations": lambda n: np.ones((n + 1, 3))}, "columns that never change: 0, 1, 2"),
        (
            {"observations": lambda n: np.arange(2.0 * n + 2).reshape(-1, 2)[:, [0, 1, 0]]},
            "columns that are equal: 0 and 2",
        ),
        ({"actions": lambda n: np.sign(np.arange(n)[:, None] - 2.5)}, "action columns that take two values, as a"),
    ],
)
def test_what_would_hurt_training_is_pointed_at(changes, warning):
    found = inspect(from_episodes(episodes([5] * 12, **changes)))
    assert any(warning in line for line in found.warnings), found.warnings


def test_sound_data_has_no_warnings():
    assert inspect(from_episodes(episodes([5, 6, 7], terminates={1})), discount=0.5).warnings == []


def test_single_transitions_and_actions_outside_are_counted():
    data = from_episodes(episodes([1, 5], terminates={0}))
    found = inspect(data._replace(actions=data.actions * 2))
    assert any("1 episodes have a single transition" in line for line in found.warnings)
    assert any("actions lie outside [-1, 1]" in line for line in found.warnings)


def test_many_columns_and_small_floats():
    wide = {"observations": np.tile(np.random.default_rng(0).normal(size=(4, 2500)), 2)}  # each column twice
    found = inspect(from_episodes([wide | {"actions": np.zeros((3, 1)), "rewards": np.full(3, 60_000, np.float16)}]))
    assert any("columns that are equal: 0 and 2500, 1 and 2501" in line for line in found.warnings)
    assert found.table["returns"] == "1.8e+05, mean 1.8e+05, undiscounted"
    huge = np.array([[1e300], [0], [0], [0]])
    with pytest.raises(UserError, match="the dataset, as 32-bit floats: observations is not finite in 1 of 4 rows"):
        inspect(from_episodes([{"observations": huge, "actions": np.zeros((3, 1)), "rewards": np.zeros(3)}]))


def test_the_command_on_every_kind_of_source(dataset_dir, tmp_path, capsys):
    task = MAZE.replace("-v0", "-singletask-task3-v0")
    for number, episode in enumerate(episodes([3, 4])):
        np.savez(tmp_path / f"{number}.npz", **episode)
    sources = {
        task: "source noise [-10, 0]",
        MAZE: "no rewards: name a task",
        str(dataset_dir / f"{MAZE}-val.npz"): "1,000",
    }
    for name, shown in (sources | {str(tmp_path): "2, 3 to 4 transitions each"}).items():
        picture = tmp_path / "picture.png"
        assert cli.run(["data", "inspect", name, f"--dataset_dir={dataset_dir}", f"--out={picture}"]) == 0
        printed = capsys.readouterr().out
        assert shown in printed
        assert picture.stat().st_size > 10_000
        picture.unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scene-play-v0", "is missing: collect it with `floq data collect scene-play-v0`"),
        ("nothing/here-v0", "no such Minari dataset in the local store"),
        ("none.npz", "there is no file none.npz"),
        ("none.hdf5", "there is no file none.hdf5"),
    ],
)
def test_what_is_not_there(tmp_path, capsys, name, message):
    assert cli.run(["data", "inspect", name, f"--dataset_dir={tmp_path}", f"--out={tmp_path}/p.png"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_returns_of_16_bit_rewards_are_sums_in_64():
    """The picture sums them itself; 65,504 is the largest number of 16 bits."""
    rows, rewards = 1001, np.full(1001, 100, np.float16)
    zeros, ends = np.zeros((rows, 1), np.float32), np.arange(rows) == rows - 1
    data = Trajectories(zeros, zeros, rewards, np.ones(rows), ends)
    assert summarise_episodes(data).returns == [100_000]
