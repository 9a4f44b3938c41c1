"""The run axis: many seeds, tasks and settings as one compiled program. A single run is a fleet of one.

The agents of a fleet share their static settings, so their states stack: every array gets a leading run axis. What
differs between runs is all traced: keys, hypers, value range, and which task's rewards and masks they learn from. The
trajectories lie on the device once.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from floq.agent.agent import Agent, Info, zeros_like_info
from floq.agent.finite import OK
from floq.agent.state import ValueRange
from floq.data.arrays import Trajectories
from floq.data.dataset import Batch, Dataset
from floq.data.replay import Mixture
from floq.training.sharding import Layout, for_each_run

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
        """Return the dataset of one task."""
        task = self.trajectories.with_labels(self.rewards[number], self.masks[number])
        if self.starts is None or self.counts is None:
            return task
        return dataclasses.replace(task, starts=self.starts[number], num_starts=self.counts[number])


def _end_to_end(tasks: Sequence[Dataset]) -> list[Dataset]:
    """Concatenate the trajectories of the tasks, and return the tasks over all of them."""
    rows: dict[str, Any] = {
        name: jnp.concatenate([getattr(task, name) for task in tasks]) for name in Trajectories._fields
    }
    first = np.cumsum([0, *(len(task.ends) for task in tasks[:-1])])
    return [
        dataclasses.replace(task, **rows, starts=task.starts + int(at)) for at, task in zip(first, tasks, strict=True)
    ]


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
        self.fault_codes = self.place([jnp.int32(OK)] * self._runs)
        self._stop = max((int(agent.step) for agent in agents), default=0)

    def __len__(self) -> int:
        return self._runs

    def place(self, values: Sequence[Any]) -> Any:
        """Stack a value of each run along the run axis, on the devices that hold the runs."""
        divided = NamedSharding(self.layout.mesh, PartitionSpec("runs"))
        return jax.device_put(_stacked([values[run] for run in self.slots]), divided)

    @property
    def devices(self) -> int:
        """On how many devices it lies."""
        return len(self.layout.devices)

    @property
    def step(self) -> int:
        """How many updates every run has behind it, but for those at a fault."""
        return self._stop

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
        """One run's agent, as if it had been alone."""

        def of_run(x: Any) -> Any:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # a slice of keys would count as their use
                return jax.random.wrap_key_data(jax.random.key_data(x)[run])
            return x[run]

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
        self._stop += num_steps
        self.agents, self.fault_codes, *others = program(*self._arguments(), *arguments)
        return tuple(others)

    def record_faults(self, codes: Int[Array, " slots"]) -> None:
        """Replace the faults by these, which a program found without training."""
        self.fault_codes = codes

    def set_value_ranges(self, ranges: Sequence[ValueRange]) -> None:
        """Give each run another range of values."""
        self.agents = eqx.tree_at(lambda agents: agents.value_range, self.agents, self.place(ranges))

    def compile(self) -> jax.stages.Compiled:
        """Compile the program of `advance` now, and return it for its analyses."""
        program = _train_steps.lower(*self._arguments(), layout=self.layout).compile()
        self._program = program
        return program

    def _arguments(self) -> tuple[Any, ...]:
        return self.agents, self.fault_codes, self.tasks, self.batch_keys, self.train, np.int32(self._stop)

    def validate(self) -> list[dict[str, float]]:
        """Return, for each run, the metrics of `update` on one batch of held-out data, and the critic's diagnosis
        there."""
        return self.divided(_validate(self.agents, self.tasks, self._validation_keys, self._validation, self.layout))

    def return_ranges(self) -> list[tuple[float, float]]:
        """For each run between which numbers discounted returns lie, as far as its rewards are known."""
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
        return train_steps(agent, fault, data.task(task), key, stop, layout.divide_batch)

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

    def goes_on(carry):
        agent, fault, _ = carry
        return (fault == OK) & (agent.step < stop)

    def step(carry):
        agent, _, _ = carry
        agent, info, fault = agent.update_if_finite(divide_batch(sample_batch(agent, dataset, batch_key)))
        return agent, fault, info

    info = zeros_like_info(agent, jax.eval_shape(lambda: sample_batch(agent, dataset, batch_key)))
    return jax.lax.while_loop(goes_on, step, (agent, fault, info))


def sample_batch(agent: Agent, dataset: Dataset | Mixture, key: PRNGKeyArray) -> Batch:
    """Draw the batch of the agent's next update, which depends on the agent's step and settings, and on the stream
    `key`."""
    static = agent.static
    step_key = jax.random.fold_in(key, agent.step)
    sizes = static.batch_size, static.n_step
    return dataset.sample(step_key, *sizes, agent.hypers.discount, static.action_chunk)


def _stacked(values: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *values)
