"""The dataset: which transitions exist, what n steps of one sum up to, and what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from floq.data.arrays import Trajectories
from floq.data.dataset import Dataset
from floq.training.fleet import FleetData
from floq.utils.errors import UserError

G, ROWS = 0.9, 80


def dataset(lengths, rewards=None, masks=None) -> Dataset:
    """Trajectories with these many rows; row i shows the observation i and the action -i."""
    rows = sum(lengths)
    ends = np.zeros(rows, bool)
    ends[np.cumsum(lengths) - 1] = True
    numbers = np.arange(rows, dtype=np.float32)[:, None]
    rewards = np.arange(rows) * 1.0 if rewards is None else rewards
    return Dataset.from_rows(numbers, -numbers, rewards, np.ones(rows) if masks is None else masks, ends)


def all_transitions(data, n_step=1):
    """Of a dataset that is filled up to one size for all, so that one program serves them."""
    filled = {name: np.asarray(getattr(data, name)) for name in Trajectories._fields}
    filled = {name: np.pad(x, [(0, ROWS - len(x))] + [(0, 0)] * (x.ndim - 1)) for name, x in filled.items()}
    starts = np.pad(data.starts, (0, ROWS - len(data)))
    found = transitions(dataclasses.replace(data, **filled, starts=starts), n_step)
    return {name: x[: len(data)] for name, x in found.items()}


@partial(jax.jit, static_argnums=1)
def transitions(data, n_step):
    return jax.vmap(lambda row: data.transition(row, n_step, G))(data.starts)


sample = jax.jit(Dataset.sample, static_argnums=(2, 3, 5))


def test_a_transition_never_crosses_the_end_of_a_trajectory():
    batch = all_transitions(dataset([3, 2, 4]))
    np.testing.assert_array_equal(batch["observations"][:, 0], [0, 1, 3, 5, 6, 7])
    np.testing.assert_array_equal(batch["next_observations"][:, 0], [1, 2, 4, 6, 7, 8])
    np.testing.assert_array_equal(batch["actions"], -batch["observations"])
    np.testing.assert_array_equal(batch["rewards"], [0, 1, 3, 5, 6, 7])
    np.testing.assert_array_equal(batch["terminals"], [0, 1, 1, 0, 0, 1])
    np.testing.assert_array_equal(batch["masks"], 1)


def test_three_steps_by_hand():
    """Rows 0..4 of one trajectory: from row 0 the sum is r0 + g r1 + g^2 r2 and the walk ends at row 3; from row 2 two
    steps are left, from row 3 one."""
    batch = all_transitions(dataset([5]), 3)
    np.testing.assert_allclose(batch["rewards"], [0 + G + 2 * G**2, 1 + 2 * G + 3 * G**2, 2 + 3 * G, 3], rtol=1e-6)
    np.testing.assert_array_equal(batch["next_observations"][:, 0], [3, 4, 4, 4])
    np.testing.assert_allclose(batch["masks"], [G**2, G**2, G, 1], rtol=1e-6)


def test_a_termination_stops_the_walk_though_the_trajectory_goes_on():
    """Mask 0 in row 1: navigate data goes on after the goal, but no reward from beyond it may count."""
    batch = all_transitions(dataset([5], masks=np.array([1, 0, 1, 1, 1])), 3)
    np.testing.assert_allclose(batch["rewards"][:2], [0 + G * 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(batch["masks"][:2], [0, 0])


@settings(max_examples=20, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5), n_step=st.sampled_from([1, 3, 7]))
def test_n_steps_equal_a_walk_in_plain_python(data, lengths, n_step):
    rows = sum(lengths)
    if rows == len(lengths):
        return  # no transition at all; see the error test
    masks = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=rows, max_size=rows)))
    tested = dataset(lengths, masks=masks)
    ends = np.asarray(tested.ends)
    batch = all_transitions(tested, n_step)
    for i, start in enumerate(np.asarray(tested.starts)):
        total, row, power = 0.0, start, 1.0
        for taken in range(1, n_step + 1):
            total += power * row
            last, row = row, row + 1
            if masks[last] == 0 or ends[row] or taken == n_step:
                break
            power *= G
        assert float(batch["rewards"][i]) == pytest.approx(total, rel=1e-4, abs=1e-5)
        assert float(batch["next_observations"][i, 0]) == row
        assert float(batch["masks"][i]) == pytest.approx(power * masks[last], rel=1e-4)


def test_sampling_is_uniform_over_transitions_and_follows_its_key():
    data = dataset([3, 2, 4])
    batch = sample(data, jax.random.key(0), 6000)
    counts = np.unique(np.asarray(batch["observations"][:, 0]), return_counts=True)
    np.testing.assert_array_equal(counts[0], [0, 1, 3, 5, 6, 7])
    assert counts[1].min() > 850
    again = sample(data, jax.random.key(0), 6000)
    np.testing.assert_array_equal(batch["observations"], again["observations"])


def test_old_data_has_its_share_of_every_batch():
    both = dataset([3], rewards=np.full(3, 9.0)).append_to(dataset([4, 3]))
    batch = FleetData.of([both], 0.25).source(jnp.int32(0)).sample(jax.random.key(0), 4000)
    starts, counts = np.unique(np.asarray(batch["observations"][:1000, 0]), return_counts=True)
    np.testing.assert_array_equal(starts, [0, 1, 2, 4, 5])
    assert counts.min() > 150
    np.testing.assert_array_equal(batch["rewards"][1000:], 9)  # which new transitions have alone
    np.testing.assert_array_equal(np.unique(batch["observations"][1000:, 0]), [0, 1])
    chunked = FleetData.of([both.for_chunks(2)] * 2, 0.25)
    np.testing.assert_array_equal(chunked.num_old, [3, 3])  # of rows 0, 1 and 4, and row 7 of the new one
    batch = chunked.source(jnp.int32(1)).sample(jax.random.key(0), 400, action_chunk=2)
    np.testing.assert_array_equal(np.unique(batch["observations"][:100, 0]), [0, 1, 4])
    np.testing.assert_array_equal(np.unique(batch["rewards"][100:]), 18)


def test_old_data_of_another_size_is_refused():
    wide = Dataset.from_rows(np.zeros((3, 2)), np.zeros((3, 1)), np.zeros(3), np.ones(3), np.array([0, 0, 1]))
    with pytest.raises(UserError, match="the data of --restore_path: observations has 2 numbers per row, the new data"):
        dataset([3]).append_to(wide)


# --- chunks of actions ---


@pytest.fixture(scope="module")
def short():
    """Three trajectories, rows 0 to 4, 5 to 7 and 8 to 11: the first is cut off, the second terminates with its last
    transition, the third in row 9 and goes on. No row's action may be read that is the last of its trajectory."""
    masks = np.ones(12)
    masks[[6, 9]] = 0
    rows, ends = np.arange(12.0)[:, None], np.isin(np.arange(12), (4, 7, 11))
    return Dataset.from_rows(rows, np.where(ends[:, None], 99, -rows), np.arange(12.0), masks, ends).for_chunks(3)


def test_chunks_by_hand(short):
    batch = all_transitions(short)
    np.testing.assert_array_equal(short.starts, [0, 1, 5, 6, 8, 9])
    chunks = [[0, 1, 2], [1, 2, 3], [5, 6, 6], [6, 6, 6], [8, 9, 10], [9, 10, 10]]
    np.testing.assert_array_equal(batch["actions"], -np.array(chunks))
    rewards = [0 + G + 2 * G**2, 1 + 2 * G + 3 * G**2, 5 + 6 * G, 6, 8 + 9 * G, 9]
    np.testing.assert_allclose(batch["rewards"], rewards, rtol=1e-6)
    np.testing.assert_array_equal(batch["next_observations"][:, 0], [3, 4, 7, 7, 10, 10])
    np.testing.assert_allclose(batch["masks"], [G**2, G**2, 0, 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(batch["terminals"], [0, 1, 1, 1, 0, 0])
    np.testing.assert_array_equal(batch["next_actions"][0], [-3, -3, -3])
    assert jnp.abs(batch["next_actions"]).max() < 99


def test_two_chunks_by_hand(short):
    """Six steps: from row 0 four are left."""
    batch = all_transitions(short, 2)
    np.testing.assert_allclose(batch["rewards"][0], 0 + G + 2 * G**2 + 3 * G**3, rtol=1e-6)
    np.testing.assert_allclose(batch["masks"][0], G**3, rtol=1e-6)
    np.testing.assert_array_equal(batch["next_observations"][:, 0], [4, 4, 7, 7, 10, 10])
    np.testing.assert_array_equal(batch["actions"], all_transitions(short)["actions"])


def test_the_next_action_is_the_datas_own():
    batch = all_transitions(dataset([5, 3]))
    np.testing.assert_array_equal(batch["next_actions"][:, 0], [-1, -2, -3, -3, -6, -6])
    later = all_transitions(dataset([9]).for_chunks(2))
    np.testing.assert_array_equal(later["next_actions"][:4], -np.array([[2, 3], [3, 4], [4, 5], [5, 6]]))


@pytest.mark.parametrize(("action_chunk", "n_step"), [(2, 1), (3, 1), (2, 3), (4, 2)])
def test_chunks_equal_a_walk_in_plain_python(action_chunk, n_step):
    rng = np.random.default_rng(action_chunk)
    lengths = rng.integers(1, 9, 12)
    plain = dataset(lengths, rng.normal(size=sum(lengths)), rng.uniform(size=sum(lengths)) > 0.15)
    data, host, found = plain.for_chunks(action_chunk), plain.on_host(), []
    for start in np.asarray(plain.starts):
        end = start + np.argmax(host.ends[start:])
        total, row, mask = 0.0, start, 1.0
        while row < end and row - start < action_chunk * n_step and mask:
            total, mask = total + G ** (row - start) * host.rewards[row], host.masks[row]
            row += 1
        if start + action_chunk <= end or not host.masks[start:end].all():
            actions = [-min(start + i, end - 1) for i in range(action_chunk)]
            found.append([start, *actions, total, row, G ** (row - start - 1) * mask])
    batch = all_transitions(data, n_step)
    columns = [batch[key] for key in ("observations", "actions", "rewards", "next_observations", "masks")]
    columns = [np.asarray(x).reshape(len(data), -1) for x in columns]
    np.testing.assert_allclose(np.concatenate(columns, axis=1), found, rtol=1e-4, atol=1e-5)


def test_what_does_not_depend_on_chunks(short):
    plain = short.for_chunks(1)
    assert len(plain) == 9
    assert plain.fingerprint() == short.fingerprint()
    assert plain.reward_range() == short.reward_range() == (0, 10)  # row 10 starts no chunk, and is in one


def test_chunks_start_where_the_tasks_own_terminations_are(short):
    other = short.relabelled(np.zeros(12), np.arange(12) != 3)
    np.testing.assert_array_equal(other.starts, [0, 1, 2, 3, 8])
    assert other.observations is short.observations


def test_chunks_that_do_not_fit(short):
    with pytest.raises(UserError, match=r"no trajectory is as long as --agent\.action_chunk=5: give a smaller one"):
        dataset([5, 2]).for_chunks(5)
    with pytest.raises(UserError, match=r"action_chunk=1: .* have 3, sample from dataset.for_chunks\(1\)"):
        short.sample(jax.random.key(0), 4)


def test_statistics():
    data = dataset([3, 3], rewards=np.array([-1.0, 0.0, 99.0, -2.0, 0.5, 99.0]))
    assert data.reward_range() == (-2.0, 0.5)  # the last rows belong to no transition
    mean, std = data.obs_stats()
    np.testing.assert_allclose(mean, [2.5])
    np.testing.assert_allclose(std, [np.std(np.arange(6))], rtol=1e-5)
    constant = Dataset.from_rows(np.ones((3, 2)), np.ones((3, 1)), np.zeros(3), np.ones(3), np.zeros(3))
    np.testing.assert_array_equal(constant.obs_stats()[1], 1.0)


def test_the_last_row_ends_a_trajectory_even_if_it_is_not_marked():
    data = Dataset.from_rows(np.ones((3, 2)), np.ones((3, 1)), np.zeros(3), np.ones(3), np.zeros(3))
    np.testing.assert_array_equal(data.starts, [0, 1])
    assert len(data) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(4)}, "equally many rows"),
        ({"observations": np.array([[0.0], [np.nan], [np.inf]])}, "observations is not finite in 2 of 3 rows.*row 1"),
        ({"ends": np.ones(3)}, "no transition"),
        ({"rewards": np.array([0.0, 1e300, 0.0])}, "rewards is not finite in 1 of 3 rows, the first is row 1"),
        ({"observations": np.zeros(3)}, r"observations has shape \(3,\), it must be \(rows, size\)"),
    ],
)
def test_what_is_refused(change, message):
    good = {
        "observations": np.zeros((3, 1)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3),
        "masks": np.ones(3), "ends": np.zeros(3),
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        Dataset.from_rows(**(good | change))


def test_sampling_inside_jit_does_not_capture_data():
    """The dataset is an argument, so two datasets of one shape share a program."""
    count = 0

    @jax.jit
    def draw(data, key):
        nonlocal count
        count += 1
        return data.sample(key, 4)["rewards"]

    draw(dataset([3, 2]), jax.random.key(0))
    other = draw(dataset([3, 2], rewards=np.full(5, 7.0)), jax.random.key(0))
    assert count == 1
    assert jnp.all(other == 7.0)
