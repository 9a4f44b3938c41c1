"""The random streams of a run."""

import jax
import numpy as np

from floq.agent.state import Keys


def test_new_streams_leave_the_old_ones_as_they_are():
    """A run of an older version goes on with the batches, evaluations and pictures that it would have had."""
    raw = np.array([jax.random.key_data(key) for key in Keys.of(3)])
    np.testing.assert_array_equal(raw[:5], jax.random.key_data(jax.random.split(jax.random.key(3), 5)))
    assert len(np.unique(raw, axis=0)) == len(raw)
