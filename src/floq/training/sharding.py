"""Placement of the runs of a fleet on devices, and functions of one run applied to all.

The layout affects speed only. An accelerator wants few large kernels: the runs are vmapped. A CPU core wants small
matrices that stay in its cache: each core is a device of its own, the runs are divided among them, and those of one
core follow one another. Several accelerators share the runs likewise; several devices may also share each run's batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from floq.data.dataset import Batch
from floq.utils.errors import UserError


class Layout(NamedTuple):
    """The devices of a fleet, how many of them share each run's batch, and whether the runs of a device are vmapped."""

    devices: tuple[Any, ...]
    batched: bool
    batch_devices: int = 1

    @classmethod
    def for_runs(cls, runs: int, batch_devices: int = 1) -> "Layout":
        """Return the layout that suits the backend.

        Raises:
            UserError: there are not as many devices as are to share a batch.
        """
        devices = jax.local_devices()
        if batch_devices > len(devices):
            there = f"this process has {len(devices)} (the cores of a CPU count if JAX was not in use before)"
            raise UserError(f"--batch_devices={batch_devices}: {there}, give at most as many")
        places = min(len(devices) // batch_devices, runs)
        return cls(tuple(devices[: places * batch_devices]), devices[0].platform != "cpu", batch_devices)

    @property
    def mesh(self) -> Mesh:
        """The devices, along the run axis and along the batch."""
        return Mesh(np.array(self.devices).reshape(-1, self.batch_devices), ("runs", "batch"))

    def slots(self, runs: int) -> int:
        """Return the length of the run axis: the same in each place, so the last runs may be idle copies."""
        places = len(self.devices) // self.batch_devices
        return -(-runs // places) * places

    def divide_batch(self, batch: Batch) -> Batch:
        """Lay the rows of a run's batch on the devices that share it."""
        if self.batch_devices == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, PartitionSpec("batch"))


def for_each_run(
    function: Callable[..., PyTree], layout: Layout, own: tuple, shared: tuple, local: tuple = ()
) -> PyTree:
    """Apply `function(*own, *shared, *local)` to every run: `own` has a leading run axis, `shared` is the same for all,
    and `local` is shared by the runs of a device (its first axis holds one device after another)."""

    def on_one_device(own: tuple, shared: tuple, local: tuple) -> PyTree:
        one = lambda own: function(*own, *shared, *local)  # noqa: E731
        runs = jax.tree.leaves(own)[0].shape[0]
        if runs == 1:
            return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], own)))
        return jax.vmap(one)(own) if layout.batched else jax.lax.map(one, own)

    everywhere, divided = PartitionSpec(), PartitionSpec("runs")
    return on_each_device(on_one_device, layout, (own, shared, local), (divided, everywhere, divided))


def on_each_device(
    function: Callable[..., PyTree], layout: Layout, arguments: tuple, specs: tuple[PartitionSpec, ...]
) -> PyTree:
    """Apply `function(*arguments)` on every device to its part of what the specs divide. Results are divided."""
    if len(layout.devices) == 1:
        return function(*arguments)
    return jax.shard_map(
        function,
        mesh=layout.mesh,
        in_specs=specs,
        out_specs=PartitionSpec("runs"),
        axis_names={"runs"},
        check_vma=False,
    )(*arguments)
