"""The random streams of a run, all from its seed."""

from typing import NamedTuple

import jax
from jaxtyping import PRNGKeyArray


class Keys(NamedTuple):
    """One key for each purpose. Within a stream, draws are keyed by what they are for (step, episode, ...) with
    `jax.random.fold_in`, so they depend neither on order nor on which worker does the work."""

    agent: PRNGKeyArray
    batches: PRNGKeyArray
    validation: PRNGKeyArray
    evaluation: PRNGKeyArray
    pictures: PRNGKeyArray
    exploration: PRNGKeyArray  # new streams come last: those before them stay as they are

    @classmethod
    def of(cls, seed: int) -> "Keys":
        """The streams of a run with this seed."""
        return cls(*jax.random.split(jax.random.key(seed), len(cls._fields)))
