"""The replay against a list of episodes in plain Python; what a batch of data and new experience is drawn from."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from floq.data.dataset import Dataset
from floq.data.mixture import Mixture, Source
from floq.data.replay import Experience, Replay, ReplaySnapshot
from floq.runs.config import configure
from floq.utils.obs_spec import ObsSpec

G, OBS, ACT = 0.9, 2, 1


class Oracle:
    """Episodes as lists of steps, of one run. What was written more than `ticks` ticks ago is gone."""

    def __init__(self, envs, ticks):
        self.envs, self.ticks, self.now = envs, ticks, 0
        self.episodes = [[] for _ in range(envs)]  # per environment: (tick of its first state, first obs, steps)

    def add(self, new: Experience, run: int):
        act, rew, masks, stepped, obs = (np.asarray(x)[run] for x in new)
        for env in range(self.envs):
            if stepped[env]:
                self.episodes[env][-1][2].append((act[env], rew[env], masks[env], obs[env]))
            else:
                self.episodes[env].append((self.now + 1, obs[env], []))
        self.now += 1

    def transitions(self, n_step, chunk):
        """(obs, acts, sum of rewards, mask, obs after it, whether the known trajectory ends there), oldest first: of
        those that `chunk` steps follow, or fewer up to a termination, as is known once there was time for so many."""
        found = []
        for env, episodes in enumerate(self.episodes):
            for first, obs, steps in episodes:
                states = [obs, *(step[3] for step in steps)]
                for i in range(len(steps)):
                    follow = steps[i : i + chunk]
                    fits = len(follow) == chunk or any(mask == 0 for _, _, mask, _ in follow)
                    if fits and self.now - self.ticks < first + i <= self.now - chunk:
                        total, power, mask, j = 0.0, 1.0, 1.0, i
                        while j < min(i + n_step * chunk, len(steps)) and mask:
                            total += power * steps[j][1]
                            mask, last = steps[j][2], power
                            power, j = power * G, j + 1
                        acts = np.concatenate([steps[min(i + k, len(steps) - 1)][0] for k in range(chunk)])
                        row = (*states[i], *acts, total, last * mask, *states[j], float(j == len(steps)))
                        found.append(((first + i, env), row))
        return [row for _, row in sorted(found, key=lambda pair: pair[0])]


add = jax.jit(Replay.add)


@partial(jax.jit, static_argnums=2)
def every_transition(replay: Replay, run, n_step):
    """All that a run's queue has room for."""
    rows = replay.of_run(run).start(jnp.arange(replay.data.starts.shape[0] // len(replay.count)))
    return jax.vmap(lambda row: replay.data.transition(row, n_step, G))(rows)


def in_replay(replay: Replay, run: int, n_step: int):
    found = every_transition(replay, jnp.int32(run), n_step)
    names = ("observations", "actions", "rewards", "masks", "next_observations", "terminals")
    columns = [np.asarray(found[name]).reshape(len(found["rewards"]), -1) for name in names]
    return np.concatenate(columns, axis=1)[: int(replay.count[run])]


def random_experience(rng, runs, envs, over):
    """A tick of environments of which some are reset; `over` says which have no episode, and is changed."""
    stepped = ~over
    terminated, truncated = rng.random((2, runs, envs)) < 0.15
    over[:] = stepped & (terminated | truncated)
    return Experience(
        rng.normal(size=(runs, envs, ACT)).astype(np.float32),
        rng.normal(size=(runs, envs)).astype(np.float32),
        (1.0 - terminated).astype(np.float32),
        stepped,
        rng.normal(size=(runs, envs, OBS)).astype(np.float32),
    )


def empty(runs=1, envs=1, ticks=8, chunk=1) -> Replay:
    return Replay.of([ReplaySnapshot.empty(envs, ObsSpec.of(OBS), ACT)] * runs, ticks, chunk)


@pytest.mark.parametrize(
    ("runs", "envs", "ticks", "chunk"), [(1, 1, 5, 1), (1, 3, 6, 1), (2, 2, 11, 1), (2, 2, 11, 3), (1, 3, 6, 5)]
)
def test_what_can_be_sampled_equals_a_list_of_episodes(runs, envs, ticks, chunk):
    """At every tick, over several turns of the ring; some ticks after the replay was written down and read again."""
    rng = np.random.default_rng(envs)
    replay, oracles = empty(runs, envs, ticks, chunk), [Oracle(envs, ticks) for _ in range(runs)]
    over, wrapped = np.ones((runs, envs), bool), 0
    for tick in range(5 * ticks):
        if tick % 7 == 6:
            new = random_experience(rng, runs, envs, over)
            replay = Replay.of([one.append(new, run) for run, one in enumerate(replay.recorded())], ticks, chunk)
        else:
            new = random_experience(rng, runs, envs, over)
            replay = add(replay, new)
        for run, oracle in enumerate(oracles):
            oracle.add(new, run)
            for n_step in (1, 3):
                wanted = oracle.transitions(n_step, chunk)
                found = in_replay(replay, run, n_step)
                assert len(found) == len(wanted)
                if wanted:
                    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
                    wrapped += tick > 2 * ticks
    assert wrapped


def test_a_record_keeps_the_newest_ticks_and_pads_the_shorter_runs():
    rng, over = np.random.default_rng(0), np.ones((2, 1), bool)
    replay = empty(2, 1, 12)
    for _ in range(10):
        replay = add(replay, random_experience(rng, 2, 1, over))
    records = list(replay.recorded())
    assert len(records[0].ends) == 11
    shorter = ReplaySnapshot(*(x[-6:] for x in records[1]))
    smaller = Replay.of([records[0], shorter], 9)
    for run, ticks in ((0, 9), (1, 6)):
        wanted = in_replay(replay, run, 2)
        kept = int((~records[run].ends[-ticks:]).sum())
        np.testing.assert_allclose(in_replay(smaller, run, 2), wanted[len(wanted) - kept :])
        assert kept < len(wanted)


# --- data and new experience ---


def filled(new: int, ticks=40) -> Replay:
    """A run with one endless episode of so many steps, whose rewards are 100, 101, ..."""
    replay = add(empty(1, 1, ticks), Experience.of_resets(np.zeros((1, 1, OBS), np.float32), ACT))
    for i in range(new):
        one, obs = np.ones((1, 1), np.float32), np.zeros((1, 1, OBS), np.float32)
        replay = add(replay, Experience(obs[..., :ACT], one * (100 + i), one, one > 0, obs))
    return replay


def data(count=10) -> Dataset:
    """One trajectory with the rewards 0, 1, ..."""
    zeros = np.zeros((count + 1, OBS), np.float32)
    return Dataset.from_rows(zeros, zeros[:, :ACT], np.arange(count + 1), np.ones(count + 1), np.zeros(count + 1))


def rewards(replay, limit, share=None, size=2000):
    mixture = Mixture(Source.of(data()), replay.of_run(jnp.int32(0)), share, limit)
    return np.asarray(mixture.sample(jax.random.key(0), size)["rewards"])


@pytest.mark.parametrize(
    ("new", "limit", "drawn"),
    [
        (0, 5, range(10)),
        (1, 5, [*range(10), 100]),  # at least one more than the data has
        (4, 11, [*range(3, 10), *range(100, 104)]),  # the oldest of the data go first
        (11, 11, range(100, 111)),
        (13, 11, range(102, 113)),
        (13, 100, [*range(10), *range(100, 113)]),
    ],
)
def test_the_union_is_drawn_uniformly_and_the_oldest_drop_out(new, limit, drawn):
    found, counts = np.unique(rewards(filled(new), limit), return_counts=True)
    np.testing.assert_array_equal(found, list(drawn))
    assert counts.max() < 1.5 * 2000 / len(found)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_the_data_has_its_share_of_every_batch(share):
    found, old = rewards(filled(13), 11, jnp.float32(share)), int(2000 * share)
    np.testing.assert_array_equal(np.unique(found[:old]), range(10 if old else 0))
    np.testing.assert_array_equal(np.unique(found[old:]), range(102, 113 if old < 2000 else 102))
    np.testing.assert_array_equal(np.unique(rewards(filled(0), 11, jnp.float32(share))), range(10))


def test_what_a_tick_writes_into_one_array_is_in_no_other():
    new = Experience.of_resets(np.zeros((2, 3, 1), np.float32), action_dim=2)
    assert new.actions.shape == (2, 3, 2)
    for name in ("actions", "rewards", "masks", "stepped"):
        getattr(new, name)[1, 2] = 1
        assert [x[1, 2].any() for x in new[:4]] == [other == name for other in new._fields[:4]]
        getattr(new, name)[1, 2] = 0


def test_the_share_shrinks_over_the_online_phase():
    shares = [
        configure(online_steps=20, offline_share=0.5, offline_share_steps=8).online_share(at) for at in (0, 2, 8, 9)
    ]
    assert shares == [0.5, 0.375, 0.0, 0.0]
    assert configure(online_steps=20, balanced_sampling=1).online_share(9) == 0.5
    assert configure(online_steps=20).online_share(0) is None
