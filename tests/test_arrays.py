"""Readers: the same transitions, whichever way they enter; no next observation crosses a boundary."""

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floq.data import d4rl, minari
from floq.data.arrays import Trajectories, from_arrays, from_episodes, read_folder
from floq.data.transitions import Dataset
from floq.errors import UserError

LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=6)  # (transitions, terminates)


def make_episodes(structure):
    """Episodes whose every number is unique, with T + 1 observations each."""
    episodes, count = [], 0
    for length, terminates in structure:
        states = np.arange(count, count + length + 1, dtype=np.float64)
        count += length + 1
        episodes.append(
            {
                "observations": np.stack([states, -states], axis=1),
                "actions": np.cos(states[:length])[:, None],
                "rewards": states[:length] / 7,
                "terminations": np.arange(length) == (length - 1 if terminates else length),
            }
        )
    return episodes


def expected(episodes, keeps_last=True):
    """(obs, action, reward, mask, next obs) of each transition, by a walk in plain Python. Where the last state is not
    known, the last transition is there only if it terminates, and its next observation does not matter."""
    found = []
    for e in episodes:
        for t, act in enumerate(e["actions"]):
            last, terminated = t + 1 == len(e["actions"]), bool(e["terminations"][t])
            if keeps_last or not last or terminated:
                known = keeps_last or not last
                next_obs = e["observations"][t + 1][0] if known else None
                found.append((e["observations"][t][0], act[0], e["rewards"][t], 1.0 - terminated, next_obs))
    return found


def transitions(data: Trajectories):
    rows = np.flatnonzero(~data.ends)
    assert data.ends[-1]
    return [
        (data.observations[r][0], data.actions[r][0], data.rewards[r], data.masks[r], data.observations[r + 1][0])
        for r in rows
    ]


def same(found, wanted):
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours[:4] == theirs[:4]
        assert theirs[4] is None or ours[4] == theirs[4]


def flat(episodes, *, with_next):
    joined = {key: np.concatenate([e[key] for e in episodes]) for key in ("actions", "rewards")}
    joined["observations"] = np.concatenate([e["observations"][:-1] for e in episodes])
    joined["terminals"] = np.concatenate([e["terminations"] for e in episodes])
    last = np.concatenate([np.arange(len(e["actions"])) + 1 == len(e["actions"]) for e in episodes])
    joined["timeouts"] = last & ~joined["terminals"]
    if with_next:
        joined["next_observations"] = np.concatenate([e["observations"][1:] for e in episodes])
    return joined


@given(LENGTHS)
@settings(max_examples=60, deadline=None)
def test_every_way_in_gives_the_same_transitions(structure):
    episodes = make_episodes(structure)
    same(transitions(from_episodes(episodes)), expected(episodes))
    same(transitions(from_arrays(**flat(episodes, with_next=True))), expected(episodes))
    shorter = [e | {"observations": e["observations"][:-1]} for e in episodes]
    for data in (from_episodes(shorter), from_arrays(**flat(episodes, with_next=False))):
        same(transitions(data), expected(episodes, keeps_last=False))


@given(LENGTHS, st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_transitions_in_any_order_keep_their_next_observations(structure, random):
    arrays = flat(make_episodes(structure), with_next=True)
    order = list(range(len(arrays["rewards"])))
    random.shuffle(order)
    shuffled = {key: x[order] for key, x in arrays.items()}
    wanted = [expected(make_episodes(structure))[i] for i in order]
    same(transitions(from_arrays(**shuffled)), wanted)
    same(transitions(from_arrays(**{k: x for k, x in shuffled.items() if k != "timeouts"})), wanted)


def test_a_dataset_from_either():
    episodes = make_episodes([(3, True), (2, False)])
    one = Dataset.from_episodes(episodes)
    other = Dataset.from_arrays(**flat(episodes, with_next=True))
    assert len(one) == len(other) == 5
    assert one.fingerprint() == other.fingerprint()
    np.testing.assert_array_equal(np.asarray(one.ends), [0, 0, 0, 1, 0, 0, 1])


def test_one_truth_value_for_the_whole_episode():
    episode = make_episodes([(3, True)])[0]
    assert from_episodes([episode | {"terminations": True}]).masks.tolist() == [1, 1, 0, 0]
    del episode["terminations"]
    assert from_episodes([episode]).masks[:3].tolist() == [1, 1, 1]


def change(**arrays):
    return lambda episode: episode | arrays


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(actions=np.zeros((0, 1))), "the dataset, episode 1 is empty: leave it out"),
        (change(actions=np.zeros((5, 1))), "episode 1 has 4 observations for 5 actions: it needs 6"),
        (
            change(actions=np.full((3, 1), 1.5)),
            r"episode 1: actions lie outside \[-1, 1\] in 3 of 3 rows.*row 0 \(1.5\)",
        ),
        (change(actions=np.zeros((3, 1), int)), "episode 1: actions holds int64; floq needs continuous actions"),
        (change(actions=np.zeros((3, 2))), "actions have 1 numbers in episode 0 and 2 in episode 1"),
        (
            change(rewards=np.array([0.0, np.nan, 0.0])),
            "episode 1: rewards is not finite in 1 of 3 rows, the first is row 1",
        ),
        (change(rewards=np.zeros(2)), "episode 1: all arrays must have equally many rows"),
        (change(terminations=np.zeros(2)), "episode 1 has 2 terminations for 3 actions"),
        (lambda e: {k: x for k, x in e.items() if k != "rewards"}, "episode 1 lacks rewards"),
    ],
)
def test_wrong_episodes_are_named(changed, message):
    first, second = make_episodes([(2, True), (3, False)])
    with pytest.raises(UserError, match=message):
        from_episodes([first, changed(second)])


def test_nothing_at_all():
    with pytest.raises(UserError, match="has no episodes"):
        from_episodes([])


def write_hdf5(path, arrays):
    with h5py.File(path, "w") as file:
        for key, x in arrays.items():
            file[key] = x
    return path


def test_d4rl_files(tmp_path):
    episodes = make_episodes([(3, True), (4, False), (1, True)])
    for with_next in (True, False):
        path = write_hdf5(tmp_path / f"hopper-{with_next}.hdf5", flat(episodes, with_next=with_next))
        same(transitions(d4rl.read(path)), expected(episodes, keeps_last=with_next))
    arrays = flat(episodes, with_next=False)
    column = write_hdf5(tmp_path / "antmaze.hdf5", arrays | {"rewards": arrays["rewards"][:, None]})
    rewards = d4rl.read(column).rewards
    np.testing.assert_array_equal(rewards[:3], arrays["rewards"][:3] - 1)


def test_d4rl_files_that_are_none(tmp_path):
    arrays = flat(make_episodes([(2, True)]), with_next=False)
    del arrays["rewards"]
    with pytest.raises(UserError, match="lacks rewards: it is not a D4RL dataset"):
        d4rl.read(write_hdf5(tmp_path / "a.hdf5", arrays))
    whole = write_hdf5(tmp_path / "b.hdf5", flat(make_episodes([(2, True)]), with_next=False)).read_bytes()
    (tmp_path / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    for path in (tmp_path / "b.hdf5", tmp_path / "none.hdf5"):
        with pytest.raises(UserError, match="cannot be read"):
            d4rl.read(path)


def test_a_folder_of_episodes(tmp_path):
    episodes = make_episodes([(3, True), (2, False)])
    for number, episode in enumerate(episodes):
        np.savez(tmp_path / f"{number}.npz", **episode)
    same(transitions(read_folder(tmp_path)), expected(episodes))
    (tmp_path / "0.npz").write_bytes(b"not a zip file")
    with pytest.raises(UserError, match=r"0\.npz cannot be read"):
        read_folder(tmp_path)
    with pytest.raises(UserError, match=r"holds no \.npz files"):
        read_folder(tmp_path / "none")


@pytest.mark.filterwarnings("ignore")  # Minari's own
def test_minari_datasets_by_id_and_by_path(tmp_path, monkeypatch):
    import gymnasium
    import minari as package
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = make_episodes([(3, True), (2, False)])
    box = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    buffers = [
        EpisodeBuffer(
            observations={"b": e["observations"][:, 1:], "a": e["observations"][:, :1]},
            actions=e["actions"],
            rewards=e["rewards"].tolist(),
            terminations=e["terminations"].tolist(),
            truncations=(np.arange(len(e["actions"])) + 1 == len(e["actions"])).tolist(),
        )
        for e in episodes
    ]
    package.create_dataset_from_buffers(
        "test/tiny-v0",
        buffers,
        observation_space=gymnasium.spaces.Dict({"a": box, "b": box}),
        action_space=gymnasium.spaces.Box(-1, 1, (1,), np.float64),
    )
    for name in ("test/tiny-v0", str(tmp_path / "test" / "tiny-v0")):
        data = minari.read(name)
        same(transitions(data), expected(episodes))
        assert (data.observations[:, 1] == -data.observations[:, 0]).all()
    with pytest.raises(UserError, match="no such Minari dataset in the local store"):
        minari.read("test/none-v0")
