"""Rows that do not fit into the device's memory: they stay on the host, and compiled programs fetch those of a batch.

A program that reads its rows from here draws the same batches, and computes the same, as one that has them on the
device: a row is fetched by its number, in a callback, and a thread gathers those of the next batch meanwhile.
"""

import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Int, Shaped

from floq.data.arrays import joined


class HostRows:
    """An array (rows, size) on the host, in memory or in a mapped file, which is indexed by rows as one on the device.
    Within jit it is a constant of the program, but not part of it. `reason` says why it lies there."""

    def __init__(self, rows: Shaped[np.ndarray, "rows size"], reason: str):
        self._rows, self._reason = rows, reason
        self.shape, self.dtype, self.nbytes = rows.shape, rows.dtype, rows.nbytes
        self._thread = ThreadPoolExecutor(1, "floq-rows")
        self._awaited: dict[bytes, Future[np.ndarray]] = {}
        self._handle = _Handle(self)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._rows, dtype, copy=copy)

    def __getitem__(self, numbers: Any) -> Shaped[Array, "..."]:
        if isinstance(numbers, Tracer):
            return self.fetch(numbers)
        return jnp.asarray(self._rows[numbers if isinstance(numbers, slice) else np.asarray(numbers)])

    def fetch(
        self, numbers: Int[Array, "*batch"], upcoming: Int[Array, "*batch"] | None = None
    ) -> Shaped[Array, "*batch size"]:
        """Return the rows with these numbers (*batch, size), within jit. Those of `upcoming`, which the next call is
        for, are gathered in the background."""
        result = jax.ShapeDtypeStruct((*numbers.shape, self.shape[1]), self.dtype)
        wanted = (numbers,) if upcoming is None else (numbers, upcoming)
        return jax.pure_callback(self._handle.answer, result, *wanted, vmap_method="broadcast_all")

    def of_batch(self, batch: dict[str, Any], upcoming: dict[str, Any] | None) -> dict[str, Any]:
        """Return the observations (batch, size) of a batch that has the numbers of their rows (batch, frames) instead;
        see `fetch`."""
        names = ("observations", "next_observations")
        numbers = lambda batch: jnp.stack([batch[name] for name in names])  # noqa: E731
        rows = self.fetch(numbers(batch), None if upcoming is None else numbers(upcoming))
        return dict(zip(names, rows.reshape(*rows.shape[:2], -1), strict=True))

    @classmethod
    def join(cls, parts: Sequence["HostRows"]) -> "HostRows":
        """Return the rows of several, end to end."""
        return cls(joined([part._rows for part in parts]), parts[0]._reason)

    @property
    def is_mapped(self) -> bool:
        """Whether they lie in a file."""
        base: Any = self._rows
        while base is not None and not isinstance(base, np.memmap):
            base = getattr(base, "base", None)
        return base is not None

    def __str__(self) -> str:
        where = "in a mapped file" if self.is_mapped else "in the host's memory"
        return f"observations stay {where}, their {self.nbytes / 1e9:,.3g} GB are {self._reason}"

    def answer(self, numbers: np.ndarray, upcoming: np.ndarray | None) -> np.ndarray:
        """Return the rows with these numbers, and begin to gather the upcoming ones. Called by the program."""
        gathered = self._awaited.pop(numbers.tobytes(), None)
        if upcoming is not None:
            self._awaited[upcoming.tobytes()] = self._thread.submit(self._gather, upcoming)
            # A device awaits one batch. What is left is what followed the last update, or of a fleet one of whose runs
            # stands still.
            for oldest in list(self._awaited)[: -2 * jax.local_device_count()]:
                if dropped := self._awaited.pop(oldest, None):
                    dropped.cancel()
        return self._gather(numbers) if gathered is None else gathered.result()

    def _gather(self, numbers: np.ndarray) -> np.ndarray:
        return self._rows[numbers]


class _Handle:
    """What compiled programs keep of rows, for ever: not the rows, which go with the dataset that has them."""

    def __init__(self, rows: HostRows):
        self._rows = weakref.ref(rows)

    @property
    def rows(self) -> HostRows:
        found = self._rows()
        assert found is not None, "a program runs on a dataset that is gone"
        return found

    def answer(self, numbers: Any, upcoming: Any = None) -> np.ndarray:
        return self.rows.answer(np.asarray(numbers), None if upcoming is None else np.asarray(upcoming))


class RowNumbers(HostRows):
    """Stands for others where a batch is drawn: each row is its own number."""

    def __init__(self, others: HostRows):
        self.shape, self._handle = (others.shape[0], 1), others._handle

    def __getitem__(self, numbers: Int[Array, "*batch"]) -> Int[Array, "*batch 1"]:
        return numbers[..., None]


jax.tree_util.register_pytree_node(HostRows, lambda rows: ((), rows._handle), lambda handle, _: handle.rows)
