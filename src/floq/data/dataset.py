"""Datasets on the device, but for large observations: each is stored once, and transitions are indices into them."""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from floq.data.arrays import (
    PIECE,
    Trajectories,
    as_float32,
    check_rows,
    check_widths,
    from_arrays,
    from_episodes,
    joined,
    to_array,
)
from floq.data.host_rows import HostRows, RowNumbers
from floq.data.storage import empty_array
from floq.utils.errors import UserError
from floq.utils.machine import data_memory
from floq.utils.obs_spec import ObsSpec

Batch: TypeAlias = dict[str, Any]
"""Arrays with a row per transition; observations as rows of `ObsSpec`, or its parts by name."""

CROP_PADDING = 3  # pixels by which an image is shifted at most, as published for FQL


class PolicyActions(eqx.Module):
    """Actions of fixed policies in every state of a dataset, drawn once, and the number of the policy that off-policy
    evaluation evaluates."""

    draws: Float[Array, "policies rows draws act"]
    policy: Int[Array, ""]

    def at(self, row: Int[Array, ""]) -> Float[Array, "draws act"]:
        """Return the policy's actions in the state of a row."""
        return self.draws[self.policy, row]


class Dataset(eqx.Module):
    """Concatenated trajectories, one row per state.

    A transition starts at any row but the last of its trajectory, which carries only an observation: its action, reward
    and mask are never read. With a `stride` above 1, that many trajectories are interleaved: the next row of one is
    `stride` rows further, and the first rows follow the last.
    """

    observations: Shaped[Array, "rows size"] | HostRows  # rows of single frames, see `ObsSpec`
    actions: Float[Array, "rows act"]
    rewards: Float[Array, " rows"]
    masks: Float[Array, " rows"]
    ends: Bool[Array, " rows"]  # the last row of a trajectory
    starts: Int[Array, " transitions"]  # the rows at which a transition starts
    num_starts: Int[Array, ""] | None = None  # how many of `starts` are valid, where the rest is padding
    policy_actions: PolicyActions | None = None  # for off-policy evaluation
    action_chunk: int = eqx.field(static=True, default=1)  # actions per transition
    num_old_rows: int = eqx.field(static=True, default=0)  # the first ones, if they are data of an earlier run
    stride: int = eqx.field(static=True, default=1)  # rows from one state of a trajectory to the next
    parts: ObsSpec | None = eqx.field(static=True, default=None)  # what an observation is; None for a vector
    frame_stack: int = eqx.field(static=True, default=1)  # frames in the observation of a transition
    p_aug: float = eqx.field(static=True, default=0.0)  # probability that the images of a batch are cropped at random

    @classmethod
    def from_rows(cls, observations: Any, actions: Any, rewards: Any, masks: Any, ends: Any) -> "Dataset":
        """Make a dataset from arrays with one row per state, where `ends` marks the last state of each trajectory.
        Observations that stay on the host, see `floq.data.host_rows`, are not copied: do not change them.

        Raises:
            UserError: shapes or lengths are wrong, a number is not finite, or there is no transition.
        """
        others = map(np.asarray, (actions, rewards, masks, ends))
        data = Trajectories(to_array(observations, "observations", "the dataset"), *others)
        check_rows(data._asdict())
        data = as_float32(data._replace(ends=data.ends.astype(bool)), "the dataset")  # a finite number may overflow
        data.ends[-1:] = True
        starts = np.flatnonzero(~data.ends).astype(np.int32)
        if not len(starts):
            raise UserError("the dataset has no transition: every row is marked as the end of a trajectory")
        spec = data.dims[0]
        placed: dict[str, Any] = {key: jnp.asarray(x) for key, x in data._asdict().items() if key != "observations"}
        rows, (most, reason) = spec.to_rows(data.observations), data_memory()
        placed["observations"] = jnp.asarray(rows) if rows.nbytes <= most else HostRows(rows, f"more than {reason}")
        return cls(**placed, starts=jnp.asarray(starts), parts=None if spec.is_vector else spec)

    @classmethod
    def from_arrays(
        cls,
        observations: Any,
        actions: Any,
        rewards: Any,
        terminals: Any,
        timeouts: Any = None,
        next_observations: Any = None,
    ) -> "Dataset":
        """Make a dataset from flat arrays with one row per transition, see `floq.data.arrays.from_arrays`."""
        return cls.from_rows(*from_arrays(observations, actions, rewards, terminals, timeouts, next_observations))

    @classmethod
    def from_episodes(cls, episodes: Iterable[Mapping[str, Any]]) -> "Dataset":
        """Make a dataset from one mapping per episode, see `floq.data.arrays.from_episodes`."""
        return cls.from_rows(*from_episodes(episodes))

    @classmethod
    def from_table(
        cls,
        table: Any,
        observations: Sequence[str],
        actions: Sequence[str],
        reward: str,
        terminated: str | None = None,
        truncated: str | None = None,
        episode: str | None = None,
        next_observations: Sequence[str] = (),
    ) -> "Dataset":
        """Make a dataset from a table with a row for each transition, of pandas, polars or pyarrow, or a mapping of
        arrays, by the names of its columns, see `floq.data.formats.tables.Columns`. Without `next_observations`, the
        last transition of a truncated episode is left out.

        Raises:
            UserError: a column is missing or holds no numbers, or as `from_arrays`.
        """
        from floq.data.formats.tables import Columns, trajectories  # it is above this module

        wide = (tuple(observations), tuple(actions))
        columns = Columns(*wide, reward, terminated, truncated, episode, tuple(next_observations))
        return cls.from_rows(*trajectories(table, columns)[0])

    def relabelled(self, rewards: Any, masks: Any) -> "Dataset":
        """Return the same trajectories with the rewards and masks of another task, one per row; observations and
        actions are shared. Raises UserError if their number is not that of the rows, or one is not finite."""
        rewards, masks = np.asarray(rewards, np.float32), np.asarray(masks, np.float32)
        check_rows({"rewards": rewards, "masks": masks, "ends": np.asarray(self.ends)})
        labelled = self.with_labels(jnp.asarray(rewards), jnp.asarray(masks))
        return labelled if self.action_chunk == 1 else labelled._with_chunk_starts(self.action_chunk)

    def with_labels(self, rewards: Float[Array, " rows"], masks: Float[Array, " rows"]) -> "Dataset":
        """Replace rewards and masks, without checks, by arrays on the device. Transitions start at the same rows."""
        return replace(self, rewards=rewards, masks=masks)

    def for_chunks(self, action_chunk: int) -> "Dataset":
        """Return the same data with transitions of `action_chunk` actions, concatenated in one vector: they start where
        the trajectory has that many left, or truly terminates (mask 0) before. Raises UserError if that is nowhere."""
        return self if action_chunk == self.action_chunk else self._with_chunk_starts(action_chunk)

    def _with_chunk_starts(self, action_chunk: int) -> "Dataset":
        starts = chunk_starts(np.asarray(self.masks), np.asarray(self.ends), action_chunk)
        if not len(starts):
            raise UserError(f"no trajectory is as long as --agent.action_chunk={action_chunk}: give a smaller one")
        return replace(self, starts=jnp.asarray(starts), num_starts=None, action_chunk=action_chunk)

    def seen_as(self, frame_stack: int, p_aug: float) -> "Dataset":
        """Return the same data whose transitions have observations of so many frames, and batches random crops of
        images with this probability. Raises UserError if there are none to crop."""
        if p_aug and not self.obs_spec.images:
            raise UserError(f"--p_aug={p_aug}: it crops images, and the observations have none; leave it out")
        return replace(self, frame_stack=frame_stack, p_aug=p_aug)

    def append_to(self, old: "Dataset") -> "Dataset":
        """Append this data to that of an earlier run. Raises UserError if observations or actions have other sizes."""
        wanted = {"observations": self.obs_spec, "actions": self.actions.shape[1]}
        check_widths(old.on_host()._asdict(), wanted, "the data of --restore_path", "the new data")
        rows = map(joined, zip(old.on_host(), self.on_host(), strict=True))
        return replace(Dataset.from_rows(*rows), num_old_rows=len(old.ends))

    def __len__(self) -> int:
        return self.starts.shape[0]

    @property
    def count(self) -> Int[Array, ""]:
        """The number of transitions, padding left out."""
        return jnp.int32(len(self)) if self.num_starts is None else self.num_starts

    def sample(
        self,
        key: PRNGKeyArray,
        batch_size: int,
        n_step: int = 1,
        discount: float | Float[Array, ""] = 1.0,
        action_chunk: int = 1,
        next_key: PRNGKeyArray | None = None,
    ) -> Batch:
        """Draw `batch_size` transitions uniformly with replacement. Consumes `key`; works inside jit. `n_step` counts
        chunks of `action_chunk` actions. With `next_key`, that of the next call, observations on the host are gathered
        ahead. Raises UserError if `action_chunk` is not the number in `for_chunks`."""
        if action_chunk != self.action_chunk:
            raise UserError(
                f"action_chunk={action_chunk}: this dataset's transitions have {self.action_chunk}, "
                f"sample from dataset.for_chunks({action_chunk})"
            )

        def draw(data: Dataset, key: PRNGKeyArray) -> Batch:
            rows = data.starts[jax.random.randint(key, (batch_size,), 0, data.count)]
            return jax.vmap(lambda row: data.transition(row, n_step, discount))(rows)

        return self.complete(draw, key, next_key)

    def complete(
        self, draw: Callable[["Dataset", PRNGKeyArray], Batch], key: PRNGKeyArray, next_key: PRNGKeyArray | None
    ) -> Batch:
        """Return the batch that `draw` draws from this data with a key made of `key`; where observations are on the
        host, from the numbers of their rows, fetched afterwards. With images it may be cropped at random, see
        `seen_as`. Consumes `key`. `next_key`: see `sample`."""
        key, crop_key = self._split_for_crops(key)
        if not isinstance(rows := self.observations, HostRows):
            return self._augmented(crop_key, draw(self, key))
        numbered = replace(self, observations=RowNumbers(rows))
        batch = draw(numbered, key)
        upcoming = None if next_key is None else draw(numbered, self._split_for_crops(next_key)[0])
        return self._augmented(crop_key, batch | rows.of_batch(batch, upcoming))

    def transition(self, row: Int[Array, ""], n_step: int, discount: float | Float[Array, ""]) -> dict[str, Array]:
        """Return the n-step transition from `row`, with the published keys and `next_actions`; n counts chunks.

        It takes up to `n_step` steps and stops early at a true termination (mask 0) and at the end of its trajectory,
        where `terminals` is 1. After m steps: `rewards` = sum of discount^i r_i for i < m, `next_observations` = s_m,
        and `masks` = discount^(m-1) * mask, so that `rewards + discount * masks * V(next_observations)` is the m-step
        target. `next_actions` is the data's action in s_m, undefined where `terminals` is 1 or `masks` 0;
        `policy_actions`, where the dataset has them, are a fixed policy's in s_m, (draws, act). The actions
        of a chunk continue after a termination inside it; beyond the end of the trajectory the last one repeats.
        """
        length = n_step * self.action_chunk
        rows = self._rows_ahead(row, jnp.arange(length))
        masks = self.masks[rows]
        continues = masks * ~self.ends[self._rows_ahead(rows, 1)]  # whether another step may follow this one
        taken = jnp.concatenate([jnp.ones(1), jnp.cumprod(continues)[:-1]])  # whether this step is taken
        powers = discount ** jnp.arange(length)
        last = jnp.sum(taken).astype(jnp.int32) - 1
        reached = self._rows_ahead(row, last + 1)
        of_policy = {} if self.policy_actions is None else {"policy_actions": self.policy_actions.at(reached)}
        return of_policy | {
            "observations": self.observation(row),
            "actions": self._actions_from(row),
            "next_observations": self.observation(reached),
            "next_actions": self._actions_from(reached),
            "rewards": jnp.sum(taken * powers * self.rewards[rows]),
            "masks": powers[last] * masks[last],
            "terminals": self.ends[reached].astype(jnp.float32),
        }

    def observation(self, row: Int[Array, ""]) -> Shaped[Array, " size"]:
        """Return the observation in the state of a row, as a row of its `frame_stack` newest frames; at the start of a
        trajectory the first frame repeats."""
        if self.frame_stack == 1:
            return self.observations[row]
        rows = [row]
        for _ in range(self.frame_stack - 1):
            before = self._rows_ahead(rows[0], -1)
            rows.insert(0, jnp.where(self.ends[before], rows[0], before))
        return self.observations[jnp.stack(rows)].reshape(-1)

    def observations_at(self, rows: Any) -> Shaped[Array, "n size"]:
        """Return `observation` at each of these rows; `slice(None)` for all."""
        if self.frame_stack == 1:
            return self.observations[rows]
        return jax.vmap(self.observation)(jnp.arange(len(self.ends))[rows])

    def stacked_on_host(self) -> np.ndarray:
        """Return `observation` at every row, as an array of NumPy."""
        if self.frame_stack == 1:
            return np.asarray(self.observations)
        found = empty_array((len(self.ends), *self.dims[0].shape), np.dtype(self.observations.dtype))
        for row in range(0, len(found), PIECE):
            found[row : row + PIECE] = self.observations_at(slice(row, row + PIECE))
        return found

    def _split_for_crops(self, key: PRNGKeyArray) -> tuple[PRNGKeyArray, PRNGKeyArray | None]:
        """Return a key to draw a batch with, and one for `_augmented`; `key` itself and None if nothing is cropped."""
        if not (self.p_aug and self.obs_spec.images):
            return key, None
        key, crop_key = jax.random.split(key)
        return key, crop_key

    def _augmented(self, key: PRNGKeyArray | None, batch: Batch) -> Batch:
        """Return a batch that is with probability `p_aug` one with all images cropped at random, as published for FQL:
        both observations of a transition alike. Consumes `key`, of `_split_for_crops`."""
        if key is None:
            return batch
        spec, names = self.dims[0], ("observations", "next_observations")
        use_key, crop_key = jax.random.split(key)
        corners = jax.random.randint(crop_key, (len(batch["rewards"]), 2), 0, 2 * CROP_PADDING + 1)

        def crop(both: dict[str, Any]) -> dict[str, Any]:
            crops = lambda obs: {name: jax.vmap(random_crop)(obs[name], corners) for name in spec.images}  # noqa: E731
            return {name: obs | crops(obs) for name, obs in both.items()}

        both = {name: spec.read(batch[name]) for name in names}
        is_used = jax.random.bernoulli(use_key, self.p_aug)
        return batch | jax.lax.cond(is_used, crop, lambda both: both, both)

    def fits_chunk(self, row: Int[Array, ""]) -> Bool[Array, ""]:
        """Return whether a transition may start at a row: the trajectory has `action_chunk` actions left, or truly
        terminates before."""
        rows = self._rows_ahead(row, jnp.arange(self.action_chunk))
        taken = jnp.cumprod(~self.ends[rows]) > 0  # whether there is a step from each
        return jnp.all(taken) | jnp.any(taken & (self.masks[rows] == 0))

    def _rows_ahead(self, row: Int[Array, "*rows"], count: Int[Array, "*counts"] | int) -> Int[Array, "..."]:
        """Return the rows of the states `count` steps later. No transition reaches beyond the last row."""
        return (row + self.stride * count) % self.ends.shape[0]

    def _actions_from(self, row: Int[Array, ""]) -> Float[Array, " chunk"]:
        """Concatenate the actions of the chunk that starts at `row`; a last row has none and gives the one before."""
        offsets = jnp.arange(self.action_chunk)
        past_end = self.ends[self._rows_ahead(row, offsets)]
        num_left = jnp.sum(jnp.cumprod(~past_end)).astype(jnp.int32)  # number of actions that the trajectory still has
        return self.actions[self._rows_ahead(row, jnp.minimum(offsets, num_left - 1))].reshape(-1)

    def on_host(self) -> Trajectories:
        """Return the trajectories as NumPy arrays."""
        data = Trajectories(*(np.asarray(getattr(self, key)) for key in Trajectories._fields))
        return data._replace(observations=self.obs_spec.to_records(data.observations))

    def reward_range(self) -> tuple[float, float]:
        """Return the smallest and largest reward of all transitions."""
        rewards = np.asarray(self.rewards)[~np.asarray(self.ends)]
        return float(rewards.min()), float(rewards.max())

    @property
    def obs_spec(self) -> ObsSpec:
        """What the observation of a row is, a single frame."""
        return self.parts or ObsSpec.of(self.observations.shape[1])

    @property
    def dims(self) -> tuple[ObsSpec, int]:
        """What the observation of a transition is, and the dimension of a single action."""
        return self.obs_spec.stacked(self.frame_stack), self.actions.shape[1]

    def fingerprint(self) -> str:
        """Return an identifier of the data: the number of transitions, and a checksum of all arrays."""
        checksum = 0
        for array in (self.observations, self.actions, self.rewards, self.masks, self.ends):
            checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
        return f"{int((~np.asarray(self.ends)).sum())}-{checksum:08x}"

    def obs_stats(self) -> Any:
        """Compute mean and standard deviation of the observations; a constant column gets standard deviation 1. Where
        they have parts, of each that is a vector."""
        spec, frames = self.obs_spec, self.frame_stack
        read = lambda rows: spec.vectors(spec.read(rows))  # noqa: E731
        if not isinstance(self.observations, HostRows):
            vectors = self.observations if spec.is_vector else jax.jit(read)(self.observations)  # no copy of the images
        elif spec.is_vector:  # that of all rows would not fit: in double precision, equal up to rounding
            return jax.tree.map(lambda x: jnp.tile(x, frames), _mean_and_std(np.asarray(self.observations)))
        else:
            vectors = jax.tree.map(jnp.asarray, read(np.asarray(self.observations)))
        mean, std = (jax.tree.map(lambda x, of=of: of(x, axis=0), vectors) for of in (jnp.mean, jnp.std))
        std = jax.tree.map(lambda std: jnp.where(std < 1e-6, 1.0, std), std)
        return jax.tree.map(lambda x: jnp.tile(x, frames), (mean, std))


def _mean_and_std(rows: np.ndarray) -> tuple[Array, Array]:
    pieces = [slice(first, first + PIECE) for first in range(0, len(rows), PIECE)]
    mean = sum(rows[piece].sum(axis=0, dtype=np.float64) for piece in pieces) / len(rows)
    std = np.sqrt(sum(np.square(rows[piece] - mean).sum(axis=0) for piece in pieces) / len(rows))
    return jnp.float32(mean), jnp.float32(np.where(std < 1e-6, 1.0, std))


def random_crop(image: Shaped[Array, "h w c"], corner: Int[Array, " 2"]) -> Shaped[Array, "h w c"]:
    """Return an image of the same size from `corner` of the image that is padded by repeating its edges."""
    padded = jnp.pad(image, ((CROP_PADDING, CROP_PADDING), (CROP_PADDING, CROP_PADDING), (0, 0)), mode="edge")
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def chunk_starts(
    masks: Float[np.ndarray, " rows"], ends: Bool[np.ndarray, " rows"], action_chunk: int
) -> Int[np.ndarray, " transitions"]:
    """Return the rows from which `action_chunk` steps lie within the trajectory, or fewer up to a true termination."""
    rows = np.arange(len(ends), dtype=np.int32)
    following = lambda marked: np.minimum.accumulate(np.where(marked, rows, len(ends))[::-1])[::-1]  # noqa: E731
    last, terminated = following(ends), following((masks == 0) & ~ends)  # the next such row, from this one on
    return rows[~ends & ((rows + action_chunk <= last) | (terminated < last))]


class Splits(NamedTuple):
    """Training and validation data of a run, their origin, named parts of observations, notes on the reading, and the
    returns that stand for the scores 0 and 100, if the dataset carries them."""

    train: Dataset
    validation: Dataset
    provenance: str
    parts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    score_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, train: Trajectories, validation: Trajectories, provenance: str) -> "Splits":
        """Make splits from trajectories on the host."""
        return cls(Dataset.from_rows(*train), Dataset.from_rows(*validation), provenance)
