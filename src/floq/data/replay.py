"""Replay buffers on the device.

A replay is a ring buffer of ticks. In each tick every environment of every run writes one row: its state, at first
marked as the end of its trajectory. The step from there fills in action, reward and mask, and makes the row the start
of a transition. An environment whose episode is over spends a tick on its reset: the row of its last state stays an
end. So a row's next state is always one tick later, and rows are overwritten in the order in which they were written.

With chunks of h actions a row is the start of a transition only if h steps follow, or fewer up to a true termination.
That is known h - 1 ticks later; then it is queued, so that starts are queued in the order of their rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from floq.data.dataset import Dataset
from floq.data.mixture import Source
from floq.utils.obs_spec import ObsSpec


class Experience(NamedTuple):
    """Experience of one tick, of the environments of several runs. `stepped` is false where an environment was reset
    instead: then only its observation is valid, the first of an episode."""

    actions: Float[Any, "runs envs act"]
    rewards: Float[Any, "runs envs"]
    masks: Float[Any, "runs envs"]  # 0 at a true termination
    stepped: Bool[Any, "runs envs"]
    observations: Shaped[Any, "runs envs size"]  # the states after the step, as rows of single frames

    @classmethod
    def of_resets(cls, observations: Shaped[np.ndarray, "runs envs size"], action_dim: int) -> "Experience":
        """Make the experience of a tick in which every environment was reset."""
        zeros = lambda *size: np.zeros((*observations.shape[:2], *size), np.float32)  # noqa: E731
        return cls(zeros(action_dim), zeros(), zeros(), zeros() > 0, observations)


class ReplaySnapshot(NamedTuple):
    """Replay of one run on the host: one entry per tick, the oldest first."""

    observations: Shaped[np.ndarray, "ticks envs size"]  # rows of single frames
    actions: Float[np.ndarray, "ticks envs act"]
    rewards: Float[np.ndarray, "ticks envs"]
    masks: Float[np.ndarray, "ticks envs"]
    ends: Bool[np.ndarray, "ticks envs"]

    @classmethod
    def empty(cls, num_envs: int, obs_spec: ObsSpec, action_dim: int) -> "ReplaySnapshot":
        """Make the snapshot before the first tick."""
        empty = lambda *size: np.zeros((0, num_envs, *size), np.float32)  # noqa: E731
        return cls(
            obs_spec.stacked(1).zeros(0, num_envs), empty(action_dim), empty(), empty(), np.zeros((0, num_envs), bool)
        )

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
    def of(
        cls,
        recorded: list[ReplaySnapshot],
        ticks: int,
        action_chunk: int = 1,
        obs_spec: ObsSpec | None = None,
        p_aug: float = 0.0,
    ) -> "Replay":
        """Make a ring buffer of `ticks` ticks, more than a chunk has, from what each run has recorded, or the newest
        part of it. Observations are vectors, unless `obs_spec` says what they are."""
        runs, envs = len(recorded), recorded[0].ends.shape[1]
        longest = min(ticks, max(len(run.ends) for run in recorded))
        parts = recorded[0]._asdict().items()
        rows: dict[str, Any] = {name: np.zeros((ticks, runs, *x.shape[1:]), x.dtype) for name, x in parts}
        rows["ends"][:] = True
        for number, run in enumerate(recorded):
            kept = min(longest, len(run.ends))
            for name, values in rows.items():
                values[longest - kept : longest, number] = getattr(run, name)[len(run.ends) - kept :]
        flat: dict[str, Any] = {name: jnp.asarray(x.reshape(-1, *x.shape[3:])) for name, x in rows.items()}
        starts, count = np.zeros((runs, ticks * envs), np.int32), np.zeros(runs, np.int32)
        spec = obs_spec or ObsSpec.of(rows["observations"].shape[-1])
        data = Dataset(
            **flat,
            starts=jnp.asarray(starts.reshape(-1)),
            stride=runs * envs,
            action_chunk=action_chunk,
            parts=None if spec.is_vector else spec.stacked(1),
            frame_stack=spec.frames,
            p_aug=p_aug,
        )
        fits = np.array(jax.vmap(data.fits_chunk)(jnp.arange(data.ends.shape[0]))).reshape(ticks, runs, envs)
        fits[max(0, longest - action_chunk) :] = False  # not queued yet
        for number in range(runs):
            tick, env = np.nonzero(fits[:, number])
            count[number] = len(tick)
            starts[number, : len(tick)] = (tick * runs + number) * envs + env
        data = replace(data, starts=jnp.asarray(starts.reshape(-1)))
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
        decided = self.tick[0] - data.action_chunk + 1  # the tick whose rows are known to be starts or not, from now on
        head, following, decided = (tick % self.ticks * stride for tick in (self.tick[0], self.tick[0] + 1, decided))
        each = jnp.arange(stride, dtype=jnp.int32)
        lost = jnp.sum(jax.vmap(data.fits_chunk)(following + each).reshape(runs, envs), axis=1, dtype=jnp.int32)
        oldest, count = (self.oldest + lost) % places, self.count - lost

        def write(before: Any, at: Array, values: Array) -> Array:
            values = values.reshape(stride, *values.shape[2:]).astype(before.dtype)
            return jax.lax.dynamic_update_slice_in_dim(before, values, at, 0)

        ends = write(data.ends, head, ~new.stepped)
        rows = replace(
            data,
            observations=write(data.observations, following, new.observations),
            actions=write(data.actions, head, new.actions),
            rewards=write(data.rewards, head, new.rewards),
            masks=write(data.masks, head, new.masks),
            ends=write(ends, following, jnp.ones_like(new.stepped)),
        )
        fits = jax.vmap(rows.fits_chunk)(decided + each).reshape(runs, envs)
        place = oldest[:, None] + count[:, None] + jnp.cumsum(fits, axis=1, dtype=jnp.int32) - 1
        place = place % places + places * jnp.arange(runs, dtype=jnp.int32)[:, None]
        place = jnp.where(fits, place, jnp.int32(data.starts.shape[0]))  # out of range: dropped
        starts = data.starts.at[place.reshape(-1)].set(decided + each, mode="drop")
        count += jnp.sum(fits, axis=1, dtype=jnp.int32)
        return Replay(replace(rows, starts=starts), self.tick + 1, oldest, count)

    def of_run(self, run: Int[Array, ""]) -> Source:
        """Return the transitions of a run."""
        places = self.data.starts.shape[0] // self.count.shape[0]
        start = lambda index: self.data.starts[run * places + (self.oldest[run] + index) % places]  # noqa: E731
        return Source(self.data, self.count[run], start)

    def recorded(self) -> Iterator[ReplaySnapshot]:
        """Yield the replay of each run on the host, one after another."""
        runs, last = self.count.shape[0], int(self.tick[0])
        used = np.arange(max(0, last + 1 - self.ticks), last + 1) % self.ticks
        flat = [np.asarray(getattr(self.data, name)) for name in ReplaySnapshot._fields]
        rows = [x.reshape(self.ticks, runs, -1, *x.shape[1:]) for x in flat]
        for run in range(runs):
            yield ReplaySnapshot(*(x[used, run] for x in rows))
