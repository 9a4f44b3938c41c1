"""Replay buffers on the device, and batches that mix a dataset with new experience.

A replay is a ring buffer of ticks. In each tick every environment of every run writes one row: its state, at first
marked as the end of its trajectory. The step from there fills in action, reward and mask, and makes the row the start
of a transition. An environment whose episode is over spends a tick on its reset: the row of its last state stays an
end. So a row's next state is always one tick later, and rows are overwritten in the order in which they were written.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from floq.data.dataset import Batch, Dataset
from floq.utils.obs_spec import ObsSpec


class Experience(NamedTuple):
    """Experience of one tick, of the environments of several runs. `stepped` is false where an environment was reset
    instead: then only its observation is valid, the first of an episode."""

    actions: Float[Any, "runs envs act"]
    rewards: Float[Any, "runs envs"]
    masks: Float[Any, "runs envs"]  # 0 at a true termination
    stepped: Bool[Any, "runs envs"]
    observations: Float[Any, "runs envs obs"]  # the states after the step

    @classmethod
    def of_resets(cls, observations: Float[np.ndarray, "runs envs obs"], action_dim: int) -> "Experience":
        """Make the experience of a tick in which every environment was reset."""
        zeros = lambda *size: np.zeros((*observations.shape[:2], *size), np.float32)  # noqa: E731
        return cls(zeros(action_dim), zeros(), zeros(), zeros() > 0, observations)


class ReplaySnapshot(NamedTuple):
    """Replay of one run on the host: one entry per tick, the oldest first."""

    observations: Float[np.ndarray, "ticks envs obs"]
    actions: Float[np.ndarray, "ticks envs act"]
    rewards: Float[np.ndarray, "ticks envs"]
    masks: Float[np.ndarray, "ticks envs"]
    ends: Bool[np.ndarray, "ticks envs"]

    @classmethod
    def empty(cls, num_envs: int, obs_spec: ObsSpec, action_dim: int) -> "ReplaySnapshot":
        """Make the snapshot before the first tick."""
        empty = lambda *size: np.zeros((0, num_envs, *size), np.float32)  # noqa: E731
        return cls(obs_spec.zeros(0, num_envs), empty(action_dim), empty(), empty(), np.zeros((0, num_envs), bool))

    def append(self, experience: Experience, run: int) -> "ReplaySnapshot":
        """Return the snapshot with one run's experience of a tick appended."""
        act, rew, masks, stepped, obs = (np.asarray(x)[run] for x in experience)
        values = [np.concatenate([self.observations, obs[None]])]
        for before, new in zip(self[1:], (act, rew, masks, ~stepped), strict=True):
            unknown = np.full_like(new, before.dtype == bool)  # of the new state, which is an end at first
            values.append(np.concatenate([before[:-1], new[None][: len(before)], unknown[None]]))
        return ReplaySnapshot(*values)


class Replay(eqx.Module):
    """Replay buffer of the runs of one device, with equally many environments each.

    Row `(tick % ticks) * stride + run * envs + env` of `data` is the state of an environment at a tick. The starts of
    transitions are one queue per run, of `len(data) // runs` places, since the oldest are overwritten first.
    """

    data: Dataset
    tick: Int[Array, " runs"]  # number of ticks so far, the same for all runs
    oldest: Int[Array, " runs"]  # the place in a run's queue of its oldest start
    count: Int[Array, " runs"]  # the number of a run's starts

    @classmethod
    def of(cls, recorded: list[ReplaySnapshot], ticks: int) -> "Replay":
        """Make a ring buffer of `ticks` ticks from what each run has recorded, or the newest part of it."""
        runs, envs = len(recorded), recorded[0].ends.shape[1]
        longest = min(ticks, max(len(run.ends) for run in recorded))
        parts = recorded[0]._asdict().items()
        rows: dict[str, Any] = {name: np.zeros((ticks, runs, *x.shape[1:]), x.dtype) for name, x in parts}
        rows["ends"][:] = True
        places = ticks * envs
        starts, count = np.zeros((runs, places), np.int32), np.zeros(runs, np.int32)
        for number, run in enumerate(recorded):
            kept = min(longest, len(run.ends))
            for name, values in rows.items():
                values[longest - kept : longest, number] = getattr(run, name)[len(run.ends) - kept :]
            tick, env = np.nonzero(~rows["ends"][:, number])
            count[number] = len(tick)
            starts[number, : len(tick)] = (tick * runs + number) * envs + env
        flat: dict[str, Any] = {name: jnp.asarray(x.reshape(-1, *x.shape[3:])) for name, x in rows.items()}
        data = Dataset(**flat, starts=jnp.asarray(starts.reshape(-1)), stride=runs * envs)
        tick = jnp.full(runs, max(0, longest - 1), jnp.int32)
        return cls(data, tick, jnp.zeros(runs, jnp.int32), jnp.asarray(count))

    @property
    def ticks(self) -> int:
        """Capacity in ticks."""
        return self.data.ends.shape[0] // self.data.stride

    def add(self, new: Experience) -> "Replay":
        """Return the replay with the experience of a tick added. The new states are marked as the last of their
        trajectories, so that no n-step transition continues from there to the oldest rows."""
        runs, envs = new.stepped.shape
        data, stride, places = self.data, self.data.stride, self.ticks * envs
        head, following = (tick % self.ticks * stride for tick in (self.tick[0], self.tick[0] + 1))
        lost = ~jax.lax.dynamic_slice_in_dim(data.ends, following, stride)
        lost = jnp.sum(lost.reshape(runs, envs), axis=1, dtype=jnp.int32)
        oldest, count = (self.oldest + lost) % places, self.count - lost

        def write(before: Array, at: Array, values: Array) -> Array:
            values = values.reshape(stride, *values.shape[2:]).astype(before.dtype)
            return jax.lax.dynamic_update_slice_in_dim(before, values, at, 0)

        place = oldest[:, None] + count[:, None] + jnp.cumsum(new.stepped, axis=1, dtype=jnp.int32) - 1
        place = place % places + places * jnp.arange(runs, dtype=jnp.int32)[:, None]
        place = jnp.where(new.stepped, place, jnp.int32(data.starts.shape[0]))  # out of range: dropped
        starts = data.starts.at[place.reshape(-1)].set(head + jnp.arange(stride, dtype=jnp.int32), mode="drop")
        ends = write(data.ends, head, ~new.stepped)
        rows = replace(
            data,
            observations=write(data.observations, following, new.observations),
            actions=write(data.actions, head, new.actions),
            rewards=write(data.rewards, head, new.rewards),
            masks=write(data.masks, head, new.masks),
            ends=write(ends, following, jnp.ones_like(new.stepped)),
            starts=starts,
        )
        return Replay(rows, self.tick + 1, oldest, count + jnp.sum(new.stepped, axis=1, dtype=jnp.int32))

    def start(self, run: Int[Array, ""], index: Int[Array, "*some"]) -> Int[Array, "*some"]:
        """Return the rows at which a run's transitions start; `index` counts from the oldest."""
        places = self.data.starts.shape[0] // self.count.shape[0]
        return self.data.starts[run * places + (self.oldest[run] + index) % places]

    def recorded(self) -> Iterator[ReplaySnapshot]:
        """Yield the replay of each run on the host, one after another."""
        runs, last = self.count.shape[0], int(self.tick[0])
        used = np.arange(max(0, last + 1 - self.ticks), last + 1) % self.ticks
        flat = [np.asarray(getattr(self.data, name)) for name in ReplaySnapshot._fields]
        rows = [x.reshape(self.ticks, runs, -1, *x.shape[1:]) for x in flat]
        for run in range(runs):
            yield ReplaySnapshot(*(x[used, run] for x in rows))


def window_size(old: Int[Array, ""], buffer_size: int, balanced: bool) -> Int[Array, ""]:
    """Return the number of newest transitions that a batch is drawn from, with `old` in the data; see `Mixture`."""
    return jnp.int32(buffer_size) if balanced else jnp.maximum(buffer_size, old + 1)


class Mixture(eqx.Module):
    """Source of a run's online batches: its data, and its part of a replay.

    Unless `balanced`, all transitions are drawn with equal probability, as if new experience were appended to the data.
    Of more than `buffer_size`, the oldest are left out, beginning with the data's; the limit is at least the size of
    the data plus one (as published). `balanced` draws the first half of a batch from the data and the second from the
    newest `buffer_size` transitions of new experience; all from the data while there is none (RLPD, arXiv 2302.02948).
    """

    data: Dataset
    replay: Replay
    run: Int[Array, ""]
    buffer_size: int = eqx.field(static=True)
    balanced: bool = eqx.field(static=True)

    def sample(
        self,
        key: PRNGKeyArray,
        batch_size: int,
        n_step: int = 1,
        discount: float | Float[Array, ""] = 1.0,
        action_chunk: int = 1,
    ) -> Batch:
        """Draw a batch of single actions, as `Dataset.sample` does. Consumes `key`."""
        assert action_chunk == self.data.action_chunk == 1
        is_new, index = self._choose(key, batch_size)

        def transition(is_new: Array, index: Array) -> dict[str, Array]:
            old = self.data.transition(self.data.starts[index], n_step, discount)
            new = self.replay.data.transition(self.replay.start(self.run, index), n_step, discount)
            return {name: jnp.where(is_new, new[name], old[name]) for name in old}

        return jax.vmap(transition)(is_new, index)

    def _choose(self, key: PRNGKeyArray, batch_size: int) -> tuple[Bool[Array, " batch"], Int[Array, " batch"]]:
        """Draw for each transition whether it is new, and its index in the replay or in the data. Consumes `key`."""
        old = jnp.int32(len(self.data)) if self.data.num_starts is None else self.data.num_starts
        new = self.replay.count[self.run]
        limit = window_size(old, self.buffer_size, self.balanced)
        too_old = jnp.maximum(new - limit, 0)  # of the new ones
        if self.balanced:
            old_key, new_key = jax.random.split(key)
            is_new = (jnp.arange(batch_size) >= batch_size // 2) & (new > 0)
            from_data = jax.random.randint(old_key, (batch_size,), 0, old)
            return is_new, jnp.where(is_new, jax.random.randint(new_key, (batch_size,), too_old, new), from_data)
        dropped = jnp.clip(old + new - limit, 0, old)  # all of the data, if any of the new are too old
        index = jax.random.randint(key, (batch_size,), dropped + too_old, old + new)
        return index >= old, jnp.where(index >= old, index - old, index)
