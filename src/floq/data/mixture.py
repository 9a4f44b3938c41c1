"""Batches that mix old transitions with new ones: a dataset with new experience online, or an earlier run's data with
new data."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from floq.data.dataset import Batch, Dataset
from floq.utils.schema import MAX_INT


@dataclass(frozen=True)
class Source:
    """Transitions to draw from: number i of `count`, the oldest first, starts at row `start(i)` of `data`."""

    data: Dataset
    count: Int[Array, ""]
    start: Callable[[Int[Array, ""]], Int[Array, ""]]

    @classmethod
    def of(cls, data: Dataset) -> "Source":
        """Return all transitions of a dataset."""
        return cls(data, data.count, lambda index: data.starts[index])

    def transition(self, index: Int[Array, ""], n_step: int, discount: float | Float[Array, ""]) -> dict[str, Array]:
        """Return an n-step transition, see `Dataset.transition`."""
        return self.data.transition(self.start(index), n_step, discount)

    @classmethod
    def halves(cls, data: Dataset, num_old: Int[Array, ""]) -> tuple["Source", "Source"]:
        """Return the first `num_old` transitions of a dataset, and the others."""
        first = cls(data, num_old, lambda index: data.starts[index])
        return first, cls(data, data.count - num_old, lambda index: data.starts[num_old + index])


@dataclass(frozen=True)
class Mixture:
    """Source of a run's batches: old transitions and new ones.

    Without a `share`, all are drawn with equal probability, as if the new were appended to the old. Of more than
    `buffer_size` the oldest are left out, beginning with the old; the limit is at least the number of old ones plus one
    (as published). With it, that share of a batch is old and the rest is drawn from the newest `buffer_size` new ones
    (RLPD, arXiv 2302.02948); while there are none, everything is old.
    """

    old: Source
    new: Source
    share: Float[Array, ""] | None
    buffer_size: int = MAX_INT

    def sample(
        self,
        key: PRNGKeyArray,
        batch_size: int,
        n_step: int = 1,
        discount: float | Float[Array, ""] = 1.0,
        action_chunk: int = 1,
        next_key: PRNGKeyArray | None = None,
    ) -> Batch:
        """Draw a batch as `Dataset.sample` does. Consumes `key`."""
        assert action_chunk == self.old.data.action_chunk == self.new.data.action_chunk
        sources = self.old, self.new

        def draw(data: Dataset, key: PRNGKeyArray) -> Batch:
            is_new, index = self._choose(key, batch_size)
            own = sources if data is self.old.data else [replace(source, data=data) for source in sources]

            def transition(is_new: Array, index: Array) -> dict[str, Array]:
                old, new = (source.transition(index, n_step, discount) for source in own)
                return {name: jnp.where(is_new, new[name], old[name]) for name in old}

            return jax.vmap(transition)(is_new, index)

        return self.old.data.complete(draw, key, next_key)

    def _choose(self, key: PRNGKeyArray, batch_size: int) -> tuple[Bool[Array, " batch"], Int[Array, " batch"]]:
        """Draw for each transition whether it is new, and its index among the new or the old ones. Consumes `key`."""
        old, new = self.old.count, self.new.count
        limit = window_size(old, self.buffer_size, self.share is not None)
        too_old = jnp.maximum(new - limit, 0)  # of the new ones
        if self.share is not None:
            old_key, new_key = jax.random.split(key)
            is_new = (jnp.arange(batch_size) >= jnp.round(self.share * batch_size)) & (new > 0)
            from_old = jax.random.randint(old_key, (batch_size,), 0, old)
            return is_new, jnp.where(is_new, jax.random.randint(new_key, (batch_size,), too_old, new), from_old)
        dropped = jnp.clip(old + new - limit, 0, old)  # all of the old, if any of the new are too old
        index = jax.random.randint(key, (batch_size,), dropped + too_old, old + new)
        return index >= old, jnp.where(index >= old, index - old, index)


def window_size(old: Int[Array, ""], buffer_size: int, has_share: bool) -> Int[Array, ""]:
    """Return the number of newest transitions that a batch is drawn from, beside so many old ones; see `Mixture`."""
    return jnp.int32(buffer_size) if has_share else jnp.maximum(buffer_size, old + 1)
