"""Arrays and episodes from memory: the same transitions, whichever way they enter; no next observation crosses a
boundary."""

import numpy as np
import pytest
from episodes import STRUCTURES, expected, flat, make_episodes, same, transitions
from hypothesis import given, settings
from hypothesis import strategies as st

from floq.data.arrays import from_arrays, from_episodes, hold_out
from floq.data.dataset import Dataset
from floq.data.description import ReturnRange, discounted_returns
from floq.utils.errors import UserError


@given(STRUCTURES)
@settings(max_examples=60, deadline=None)
def test_every_way_in_gives_the_same_transitions(structure):
    episodes = make_episodes(structure)
    same(transitions(from_episodes(episodes)), expected(episodes))
    same(transitions(from_arrays(**flat(episodes, with_next=True))), expected(episodes))
    shorter = [e | {"observations": e["observations"][:-1]} for e in episodes]
    for make in (lambda: from_episodes(shorter), lambda: from_arrays(**flat(episodes, with_next=False))):
        if wanted := expected(episodes, keeps_last=False):
            same(transitions(make()), wanted)
        else:
            with pytest.raises(UserError, match="has no transition whose next state is known"):
                make()


@given(STRUCTURES, st.randoms(use_true_random=False))
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


def test_an_episode_that_goes_on_after_a_termination_stays_whole():
    (episode,) = make_episodes([(4, False)])
    episode["terminations"] = np.array([False, True, True, False])
    data = from_episodes([episode])
    assert data.ends.tolist() == [False] * 4 + [True]
    same(transitions(data), expected([episode]))
    del episode["terminations"]
    with pytest.raises(UserError, match="episode 0 has 'dones' but no 'terminations': rename it"):
        from_episodes([episode | {"dones": np.zeros(4)}])


@given(STRUCTURES)
@settings(max_examples=60, deadline=None)
def test_holding_out_divides_the_transitions(structure):
    data = from_episodes(make_episodes(structure))
    if len(transitions(data)) == 1:
        with pytest.raises(UserError, match="the dataset has a single transition"):
            hold_out(data)
        return
    train, held, _ = hold_out(data)
    assert transitions(train)
    assert transitions(held)
    assert sorted(transitions(train) + transitions(held)) == sorted(transitions(data))


def test_every_twentieth_episode_is_held_out():
    data = from_episodes(make_episodes([(2, False)] * 41))
    train, held, how = hold_out(data)
    assert how == "every 20th episode held out"
    assert [int(x) for x in held.observations[:, 0]] == [57, 58, 59, 117, 118, 119]
    assert train.ends.sum() == 39
    one = from_episodes(make_episodes([(100, False)]))
    *parts, how = hold_out(one)
    assert how == "its last twentieth held out"
    assert [len(transitions(part)) for part in parts] == [95, 5]


@given(STRUCTURES, st.floats(0, 0.999))
@settings(max_examples=60, deadline=None)
def test_discounted_returns_equal_a_backward_walk(structure, discount):
    data = from_episodes(make_episodes(structure))
    wanted, value = np.zeros(len(data.ends)), 0.0
    for row in reversed(range(len(data.ends))):
        value = 0.0 if data.ends[row] else data.rewards[row] + discount * data.masks[row] * value
        wanted[row] = value
    np.testing.assert_allclose(discounted_returns(data, discount), wanted, rtol=1e-9)


def test_discounted_returns_of_a_long_trajectory():
    """Ten thousand rewards of 1: a geometric series."""
    n, discount = 10_000, 0.999
    (episode,) = make_episodes([(n, False)])
    data = from_episodes([episode | {"rewards": np.ones(n)}])
    wanted = (1 - discount ** np.arange(n, -1, -1)) / (1 - discount)
    np.testing.assert_allclose(discounted_returns(data, discount), wanted, rtol=1e-9)


def test_the_value_range_and_what_it_says_of_returns():
    values = ReturnRange.of((-1.0, -0.5), 0.99, 0.1)
    np.testing.assert_allclose(values, (-100, 0, -10, 0, 1))
    assert values.complaint(np.array([-100.9, 0.0])) is None  # the histogram reaches so far
    assert values.complaint(np.array([-90.0, 0.0])) is None
    assert "50.00% of the discounted returns lie outside the values [-100, 0]" in str(
        values.complaint(np.array([-101.1, 0.0]))
    )
    assert "returns fill 1.0% of the values [-100, 0]" in str(values.complaint(np.array([-1.0, 0.0])))


def change(**arrays):
    return lambda episode: episode | arrays


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change(actions=np.zeros((0, 1))), "the dataset, episode 1 is empty: leave it out"),
        (change(actions=np.zeros((5, 1))), "episode 1 has 4 observations for 5 actions: it needs 6"),
        (
            change(actions=np.full((3, 1), 1.5)),
            r"episode 1: actions lie outside \[-1, 1\] in 3 of 3 rows.*row 0 \(1.5\), .*or rescale them",
        ),
        (
            change(actions=np.full((3, 1), 1.000002)),
            r"row 0 \(1.000002\), the largest 1.000002: clip them \(--clip_actions\)$",
        ),
        (change(actions=np.zeros((3, 1), int)), "episode 1: actions holds int64; floq needs continuous actions"),
        (change(actions=np.zeros((3, 2))), "actions have 1 numbers in episode 0 and 2 numbers in episode 1"),
        (
            change(rewards=np.array([0.0, np.nan, 0.0])),
            "episode 1: rewards is not finite in 1 of 3 rows, the first is row 1",
        ),
        (change(rewards=np.zeros(2)), "episode 1: all arrays must have equally many rows"),
        (change(terminations=np.zeros(2)), "episode 1: all arrays must have equally many rows, .*terminations 2"),
        (change(terminations=np.zeros((3, 2))), r"episode 1: terminations has shape \(3, 2\), it must be \(rows,\)"),
        (
            lambda e: {"obs": e["observations"], **e},
            "episode 1 has observations twice, the second time as 'observations'",
        ),
        (
            lambda e: {("dones" if k == "terminations" else k): x for k, x in e.items()},
            "episode 1 has 'dones' but no 'terminations': rename it if it marks true terminations only",
        ),
        (change(terminations=np.array([0, np.nan, 0])), "episode 1: terminations is not finite in 1 of 3 rows"),
        (change(actions=[[0.0], [0.0, 1.0], [0.0]]), "episode 1: actions is not an array of numbers"),
        (change(actions=0.5), "episode 1 is empty"),
        (change(observations=np.array([{}] * 4)), "episode 1: observations holds object, not numbers"),
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


def test_flat_arrays_must_say_where_episodes_end():
    arrays = flat(make_episodes([(3, False), (2, True)]), with_next=False)
    del arrays["timeouts"]
    with pytest.raises(UserError, match="has neither timeouts nor next_observations"):
        from_arrays(**arrays)


def test_next_observations_of_another_precision_do_not_cut_episodes():
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(6, 2))
    data = from_arrays(
        obs[:5], np.zeros((5, 1)), np.zeros(5), np.zeros(5), next_observations=obs[1:].astype(np.float32)
    )
    assert data.ends.tolist() == [False] * 5 + [True]
