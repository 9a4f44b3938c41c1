"""The run axis: many seeds, tasks and settings as one compiled program. A single run is a fleet of one.

The agents of a fleet share their static settings, so their states stack: every array gets a leading run axis. What
differs between runs is all traced: keys, hypers, value range, and which task's rewards and masks they learn from. The
trajectories lie on the device once.

How the axis is laid out depends on the backend, and only speed does. An accelerator wants few large kernels: the runs
are vmapped. A CPU core wants small matrices that stay in its cache: runs follow one another, and the cores, each
posing as a device, share the runs among them. Several accelerators share the runs likewise; and several devices may
share each run's batch, whose products the compiler then divides.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from floq.agent import Agent, Info, zeros_like_info
from floq.data.arrays import Trajectories
from floq.data.replay import Mixture
from floq.data.transitions import Batch, Dataset
from floq.errors import UserError

RunKeys: TypeAlias = Key[Array, " runs"]


class FleetData(eqx.Module):
    """Trajectories, with the rewards and masks of one or several tasks; or those of each task end to end."""

    trajectories: Dataset
    rewards: Float[Array, "tasks rows"]
    masks: Float[Array, "tasks rows"]
    starts: Int[Array, "tasks transitions"] | None = None  # where they differ from task to task, filled up with zeros
    counts: Int[Array, " tasks"] | None = None  # of `starts`

    @classmethod
    def of(cls, tasks: Sequence[Dataset]) -> "FleetData":
        """From one dataset for each task, all over the same trajectories or each over its own."""
        if any(task.observations is not tasks[0].observations for task in tasks):
            tasks = _end_to_end(tasks)
        rewards, masks = (jnp.stack([getattr(task, key) for task in tasks]) for key in ("rewards", "masks"))
        first = tasks[0]
        # Chunks of actions start where they reach a termination, and each task has its own.
        if all(task.starts is first.starts or np.array_equal(first.starts, task.starts) for task in tasks[1:]):
            return cls(first, rewards, masks)
        counts = [len(task) for task in tasks]
        starts = [jnp.pad(task.starts, (0, max(counts) - len(task))) for task in tasks]
        return cls(first, rewards, masks, jnp.stack(starts), jnp.array(counts))

    @property
    def most_transitions(self) -> int:
        """Of any task."""
        return len(self.trajectories) if self.counts is None else int(self.counts.max())

    def task(self, number: Int[Array, ""]) -> Dataset:
        """The dataset of one task."""
        task = self.trajectories.with_labels(self.rewards[number], self.masks[number])
        if self.starts is None or self.counts is None:
            return task
        return dataclasses.replace(task, starts=self.starts[number], num_starts=self.counts[number])


def _end_to_end(tasks: Sequence[Dataset]) -> list[Dataset]:
    """The same tasks over one set of trajectories, that of the first before that of the second."""
    rows: dict[str, Any] = {
        name: jnp.concatenate([getattr(task, name) for task in tasks]) for name in Trajectories._fields
    }
    first = np.cumsum([0, *(len(task.ends) for task in tasks[:-1])])
    return [
        dataclasses.replace(task, **rows, starts=task.starts + int(at)) for at, task in zip(first, tasks, strict=True)
    ]


class Layout(NamedTuple):
    """How a fleet lies on the machine: the devices, how many of them share each run's batch, and whether the runs of
    one device are batched."""

    devices: tuple[Any, ...]
    batched: bool
    batch_devices: int = 1

    @classmethod
    def for_runs(cls, runs: int, batch_devices: int = 1) -> "Layout":
        """The layout that suits the backend.

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
        """The length of the run axis: as many in each place, so the last ones may be idle copies."""
        places = len(self.devices) // self.batch_devices
        return -(-runs // places) * places

    def divide_batch(self, batch: Batch) -> Batch:
        """Lay the rows of a run's batch on the devices that share it."""
        if self.batch_devices == 1:
            return batch
        return jax.lax.with_sharding_constraint(batch, PartitionSpec("batch"))


class Fleet:
    """The agents of several runs, and the program that trains them.

    Args:
        agents: one for each run, all with the same static settings.
        tasks: for each run, which task of the data it learns.
        train, validation: the data.
        batch_keys, validation_keys: for each run, the stream that its batches are drawn with.

    What lies along the run axis has an entry for each of `slots`, which holds numbers of runs.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        tasks: Sequence[int],
        train: FleetData,
        validation: FleetData,
        batch_keys: Sequence[PRNGKeyArray],
        validation_keys: Sequence[PRNGKeyArray],
        layout: Layout | None = None,
    ):
        self._runs = len(agents)
        self.layout = layout or Layout.for_runs(self._runs)
        self.slots = [min(slot, self._runs - 1) for slot in range(self.layout.slots(self._runs))]
        everywhere = NamedSharding(self.layout.mesh, PartitionSpec())
        self.agents: Agent = self.place(agents)
        self.tasks = self.place([jnp.int32(task) for task in tasks])
        self.batch_keys, self._validation_keys = self.place(batch_keys), self.place(validation_keys)
        self.train, self._validation = (jax.device_put(data, everywhere) for data in (train, validation))
        self._program: Callable[..., Any] = partial(_train_steps, layout=self.layout)

    def __len__(self) -> int:
        return self._runs

    def place(self, values: Sequence[Any]) -> Any:
        """A value of each run, along the run axis, on the devices that hold the runs."""
        divided = NamedSharding(self.layout.mesh, PartitionSpec("runs"))
        return jax.device_put(_stacked([values[run] for run in self.slots]), divided)

    @property
    def devices(self) -> int:
        """On how many devices it lies."""
        return len(self.layout.devices)

    @property
    def step(self) -> int:
        """How many updates every run has behind it."""
        return int(self.agents.step[0])

    def agent(self, run: int) -> Agent:
        """One run's agent, as if it had been alone."""

        def of_run(x: Any) -> Any:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # a slice of keys would count as their use
                return jax.random.wrap_key_data(jax.random.key_data(x)[run])
            return x[run]

        return jax.tree.map(of_run, self.agents)

    def advance(self, num_steps: int) -> list[dict[str, float]]:
        """Train all runs for `num_steps` updates, in one device call. Returns each run's info of the last one."""
        self.agents, info = self._program(*self._arguments(num_steps))
        return self.divided(info)

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of `advance` now, and return it for its analyses."""
        program = _train_steps.lower(*self._arguments(1), layout=self.layout).compile()
        self._program = program
        return program

    def _arguments(self, num_steps: int) -> tuple[Any, ...]:
        return self.agents, self.tasks, self.batch_keys, self.train, jnp.int32(num_steps)

    def validate(self) -> list[dict[str, float]]:
        """What `update` would log on one batch of held-out data, and the critic's diagnosis there, for each run."""
        return self.divided(_validate(self.agents, self.tasks, self._validation_keys, self._validation, self.layout))

    def divided(self, info: dict[str, Float[Array, " runs"]]) -> list[dict[str, float]]:
        """What a program returned along the run axis, run by run."""
        host = jax.device_get(info)
        return [{name: float(values[run]) for name, values in host.items()} for run in range(self._runs)]


@partial(jax.jit, static_argnames="layout", donate_argnums=0)
def _train_steps(
    agents: Agent, tasks: Int[Array, " runs"], keys: RunKeys, data: FleetData, num_steps: Int[Array, ""], layout: Layout
):
    def train(agent: Agent, task: Array, key: PRNGKeyArray, data: FleetData, num_steps: Array):
        return train_steps(agent, data.task(task), key, num_steps, layout.divide_batch)

    return for_each_run(train, layout, (agents, tasks, keys), (data, num_steps))


@partial(jax.jit, static_argnums=4)
def _validate(agents: Agent, tasks: Int[Array, " runs"], keys: RunKeys, data: FleetData, layout: Layout):
    def validate(agent: Agent, task: Array, key: PRNGKeyArray, data: FleetData):
        batch_key, loss_key, diagnosis_key = jax.random.split(jax.random.fold_in(key, agent.step), 3)
        batch = layout.divide_batch(sample_batch(agent, data.task(task), batch_key))
        return agent.evaluate_loss(batch, loss_key) | agent.diagnose(batch, diagnosis_key)

    return for_each_run(validate, layout, (agents, tasks, keys), (data,))


def train_steps(
    agent: Agent,
    dataset: Dataset | Mixture,
    batch_key: PRNGKeyArray,
    num_steps: Array,
    divide_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[Agent, Info]:
    """`num_steps` updates of one run on batches of its dataset. Returns the agent and the last update's info.

    The batch of update number i is drawn with fold_in(batch_key, i), so the result does not depend on how the steps
    are divided into calls. The number of steps is traced: one program serves every length.
    """

    def step(_, carry):
        agent, _ = carry
        return agent.update(divide_batch(sample_batch(agent, dataset, batch_key)))

    info = zeros_like_info(agent, jax.eval_shape(lambda: sample_batch(agent, dataset, batch_key)))
    return jax.lax.fori_loop(0, num_steps, step, (agent, info))


def sample_batch(agent: Agent, dataset: Dataset | Mixture, key: PRNGKeyArray) -> Batch:
    """The batch of the agent's next update: it depends on the agent's step and settings, and on the stream `key`."""
    static = agent.static
    step_key = jax.random.fold_in(key, agent.step)
    sizes = static.batch_size, static.n_step
    return dataset.sample(step_key, *sizes, agent.hypers.discount, static.td_lambda, static.action_chunk)


def for_each_run(
    function: Callable[..., PyTree], layout: Layout, own: tuple, shared: tuple, local: tuple = ()
) -> PyTree:
    """`function(*own, *shared, *local)` for every run, where what is its own has a leading run axis. What is `local` is
    shared by the runs of a device: the first axes hold that of one device after that of another."""

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
    """`function(*arguments)` on every device, with its part of what the specs divide. Results are divided."""
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


def _stacked(values: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
