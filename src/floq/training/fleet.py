"""The run axis: many seeds, tasks and settings as one compiled program. A single run is a fleet of one.

The agents of a fleet share their static settings, so their states stack: every array gets a leading run axis. What
differs between runs is all traced: keys, hypers, value range, and which task's rewards and masks they learn from. The
trajectories lie on the device once.

The layout on devices affects speed only. An accelerator wants few large kernels: the runs are vmapped. A CPU core wants
small matrices that stay in its cache: each core is a device of its own, the runs are divided among them, and those of
one core follow one another. Several accelerators share the runs likewise; several may also share each run's batch.
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

from floq.agent.agent import Agent, Info
from floq.agent.finite import OK
from floq.data.arrays import Trajectories
from floq.data.dataset import Batch, Dataset
from floq.data.host_rows import HostRows
from floq.data.mixture import Mixture, Source
from floq.utils.errors import UserError

RunKeys: TypeAlias = Key[Array, " runs"]

# --- Layout of the runs on devices ---


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
        axis_names={"runs", "batch"} if layout.batch_devices == 1 else {"runs"},
        check_vma=False,
    )(*arguments)


# --- The fleet ---


class FleetData(eqx.Module):
    """Trajectories, with the rewards and masks of one or several tasks; or those of each task end to end."""

    trajectories: Dataset
    rewards: Float[Array, "tasks rows"]
    masks: Float[Array, "tasks rows"]
    starts: Int[Array, "tasks transitions"] | None = None  # where they differ from task to task, filled up with zeros
    counts: Int[Array, " tasks"] | None = None  # of `starts`
    num_old: Int[Array, " tasks"] | None = None  # the first transitions, if they are data of an earlier run
    old_share: Float[Array, ""] | None = None  # of every batch, that these have
    policies: Int[Array, " tasks"] | None = None  # which one each evaluates, in off-policy evaluation

    @classmethod
    def of(cls, tasks: Sequence[Dataset], old_share: float | None = None) -> "FleetData":
        """Combine one dataset for each task, all over the same trajectories or each over its own. `old_share` is that
        of the data of an earlier run, if they have any."""
        old: dict[str, Any] = {}
        if old_share is not None:
            counts = [int((np.asarray(task.starts) < task.num_old_rows).sum()) for task in tasks]
            old = {"num_old": jnp.array(counts, jnp.int32), "old_share": jnp.float32(old_share)}
        if any(task.observations is not tasks[0].observations for task in tasks):  # its trajectories, end to end
            names, first = Trajectories._fields, np.cumsum([0, *(len(task.ends) for task in tasks[:-1])])
            rows: dict[str, Any] = {name: _end_to_end([getattr(task, name) for task in tasks]) for name in names}
            both = zip(first, tasks, strict=True)
            tasks = [dataclasses.replace(task, **rows, starts=task.starts + int(at)) for at, task in both]
        rewards, masks = (jnp.stack([getattr(task, key) for task in tasks]) for key in ("rewards", "masks"))
        evaluated = [task.policy_actions.policy for task in tasks if task.policy_actions is not None]
        policies, first = jnp.stack(evaluated) if evaluated else None, tasks[0]
        # Chunks of actions start where they reach a termination, and each task has its own.
        if all(task.starts is first.starts or np.array_equal(first.starts, task.starts) for task in tasks[1:]):
            return cls(first, rewards, masks, policies=policies, **old)
        counts = [len(task) for task in tasks]
        starts = [jnp.pad(task.starts, (0, max(counts) - len(task))) for task in tasks]
        return cls(first, rewards, masks, jnp.stack(starts), jnp.array(counts), policies=policies, **old)

    @property
    def most_transitions(self) -> int:
        """Of any task."""
        return len(self.trajectories) if self.counts is None else int(self.counts.max())

    def task(self, number: Int[Array, ""]) -> Dataset:
        """Return the dataset of one task."""
        task = self.trajectories.with_labels(self.rewards[number], self.masks[number])
        if self.policies is not None:
            task = eqx.tree_at(lambda data: data.policy_actions.policy, task, self.policies[number])
        if self.starts is None or self.counts is None:
            return task
        return dataclasses.replace(task, starts=self.starts[number], num_starts=self.counts[number])

    def source(self, number: Int[Array, ""]) -> Dataset | Mixture:
        """Return what the batches of a run with this task are drawn from offline."""
        if self.num_old is None:
            return self.task(number)
        return Mixture(*Source.halves(self.task(number), self.num_old[number]), self.old_share)


def _end_to_end(parts: Sequence[Any]) -> Any:
    return HostRows.join(parts) if isinstance(parts[0], HostRows) else jnp.concatenate(parts)


class Fleet:
    """The agents of several runs, with the same static settings, and the program that trains them. Each run has a task
    of the data, and streams that its batches are drawn with. What lies along the run axis has an entry for each of
    `slots`, which holds numbers of runs."""

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
        places = self.layout.mesh.shape["runs"]  # each holds as many runs, so the last may be idle copies
        self.slots = [min(slot, self._runs - 1) for slot in range(-(-self._runs // places) * places)]
        everywhere = NamedSharding(self.layout.mesh, PartitionSpec())
        self.agents: Agent = self.place(agents)
        self.tasks = self.place([jnp.int32(task) for task in tasks])
        self.batch_keys, self._validation_keys = self.place(batch_keys), self.place(validation_keys)
        self.train, self._validation = (jax.device_put(data, everywhere) for data in (train, validation))
        self._program: Callable[..., Any] = partial(_train_steps, layout=self.layout)
        self.fault_codes = self.place([jnp.int32(OK)] * self._runs)
        self.step = max(int(agent.step) for agent in agents)
        """How many updates every run has behind it, but for those at a fault."""

    def __len__(self) -> int:
        return self._runs

    def place(self, values: Sequence[Any]) -> Any:
        """Stack a value of each run along the run axis, on the devices that hold the runs."""
        divided = NamedSharding(self.layout.mesh, PartitionSpec("runs"))
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(values[run] for run in self.slots))
        return jax.device_put(stacked, divided)

    @property
    def faults(self) -> list[int]:
        """For each run what keeps it from going on, the number of one of `finite.TERMS`; 0 for a sound one. Its
        agent is as it was before that update."""
        return [int(code) for code in np.asarray(self.fault_codes)[: self._runs]]

    def replace(self, run: int, agent: Agent) -> None:
        """Let a run go on as this agent, its fault forgotten."""
        self.agents = self.place([agent if number == run else self.agent(number) for number in range(self._runs)])
        codes = [OK if number == run else code for number, code in enumerate(self.faults)]
        self.fault_codes = self.place([jnp.int32(code) for code in codes])

    def agent(self, run: int) -> Agent:
        """Return one run's agent, as if it had been alone."""
        place, number = divmod(run, len(self.slots) // self.layout.mesh.shape["runs"])

        def of_run(x: Any) -> Any:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # a slice of keys would count as their use
                return jax.random.wrap_key_data(of_run(jax.random.key_data(x)))
            if self.layout.batch_devices > 1:
                return x[run]
            # Read on the device that holds the run: a slice of the whole array is a sum over all devices, and these
            # wait for each other, for ever if the threads of a CPU are all in use.
            own = next(part.data for part in x.addressable_shards if part.device == devices[place])
            return jax.device_put(own[number], devices[0])

        devices = self.layout.mesh.devices[:, 0]
        return jax.tree.map(of_run, self.agents)

    def advance(self, num_steps: int) -> list[dict[str, float]]:
        """Train all runs for `num_steps` updates, in one device call; one that was behind catches up, and one in whose
        update something is not finite stays there. Returns each run's info of its last update, zeros if it made none.
        """
        (info,) = self.train_with(self._program, num_steps)
        return self.divided(info)

    def train_with(self, program: Callable[..., Any], num_steps: int, *arguments: Any) -> tuple[Any, ...]:
        """Let `program(agents, faults, tasks, batch keys, data, stop, *arguments)` train all runs `num_steps` updates
        further. It returns the agents and their faults; what it returns besides is returned here."""
        self.step += num_steps
        self.agents, self.fault_codes, *others = program(*self._arguments(), *arguments)
        return tuple(others)

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of `advance` now, and return it for its analyses."""
        self._program = program = _train_steps.lower(*self._arguments(), layout=self.layout).compile()
        return program

    def _arguments(self) -> tuple[Any, ...]:
        return self.agents, self.fault_codes, self.tasks, self.batch_keys, self.train, np.int32(self.step)

    def validate(self) -> list[dict[str, float]]:
        """Return, for each run, the metrics of `update` on one batch of held-out data, and the critic's diagnosis
        there."""
        return self.divided(_validate(self.agents, self.tasks, self._validation_keys, self._validation, self.layout))

    def return_ranges(self) -> list[tuple[float, float]]:
        """Return, for each run, the range of discounted returns that its known rewards allow."""
        scales = jax.device_get(jax.vmap(lambda agent: agent.scale)(self.agents))
        ends = (r / (1 - scales.discount) for r in (scales.r_min, scales.r_max))
        return [(float(low), float(high)) for low, high in zip(*ends, strict=True)][: self._runs]

    def divided(self, info: dict[str, Float[Array, " runs"]]) -> list[dict[str, float]]:
        """Split what a program returned along the run axis into one dictionary a run."""
        host = jax.device_get(info)
        return [{name: float(values[run]) for name, values in host.items()} for run in range(self._runs)]


@partial(jax.jit, static_argnames="layout", donate_argnums=(0, 1))
def _train_steps(
    agents: Agent,
    faults: Int[Array, " runs"],
    tasks: Int[Array, " runs"],
    keys: RunKeys,
    data: FleetData,
    stop: Int[Array, ""],
    layout: Layout,
):
    def train(agent: Agent, fault: Array, task: Array, key: PRNGKeyArray, data: FleetData, stop: Array):
        return train_steps(agent, fault, data.source(task), key, stop, layout.divide_batch)

    return for_each_run(train, layout, (agents, faults, tasks, keys), (data, stop))


@partial(jax.jit, static_argnums=4)
def _validate(agents: Agent, tasks: Int[Array, " runs"], keys: RunKeys, data: FleetData, layout: Layout):
    def validate(agent: Agent, task: Array, key: PRNGKeyArray, data: FleetData):
        batch_key, loss_key, diagnosis_key = jax.random.split(jax.random.fold_in(key, agent.step), 3)
        batch = layout.divide_batch(sample_batch(agent, data.task(task), batch_key))
        return agent.evaluate_loss(batch, loss_key) | agent.diagnose(batch, diagnosis_key)

    return for_each_run(validate, layout, (agents, tasks, keys), (data,))


def train_steps(
    agent: Agent,
    fault: Int[Array, ""],
    dataset: Dataset | Mixture,
    batch_key: PRNGKeyArray,
    stop: Int[Array, ""],
    divide_batch: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[Agent, Int[Array, ""], Info]:
    """Update one run on batches of its dataset until its agent is at step `stop`, or an update is not finite; not at
    all if one was. Returns the agent, its fault and the info of the last update, faulty or not.

    The batch of update number i is drawn with fold_in(batch_key, i), so the result does not depend on how the steps
    are divided into calls. The step to stop at is traced: one program serves every length.
    """

    def update(agent: Agent):
        return agent.update_if_finite(divide_batch(sample_batch(agent, dataset, batch_key, ahead=True)))

    def step(carry):
        agent, info, fault = update(carry[0])
        return agent, fault, info

    goes_on = lambda carry: (carry[1] == OK) & (carry[0].step < stop)  # noqa: E731
    # The same function of values of the same types: JAX traces it once.
    info = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(update, agent)[1])
    return jax.lax.while_loop(goes_on, step, (agent, fault, info))


def sample_batch(agent: Agent, dataset: Dataset | Mixture, key: PRNGKeyArray, ahead: bool = False) -> Batch:
    """Draw the batch of the agent's next update, which depends on the agent's step and settings, and on the stream
    `key`. `ahead`: the update after it draws from the same stream, so that its batch may be prepared."""
    static, step_key = agent.static, jax.random.fold_in(key, agent.step)
    next_key = jax.random.fold_in(key, agent.step + 1) if ahead else None
    how = static.batch_size, static.n_step, agent.hypers.discount, static.action_chunk
    return dataset.sample(step_key, *how, next_key=next_key)
