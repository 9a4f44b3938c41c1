"""What the online phase adds to a fleet on its devices: the replays of its runs, and the programs with which they
explore and learn."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from floq.agent import Agent
from floq.data.replay import Experience, Mixture, Recorded, Replay
from floq.faults import ACTION, SOUND
from floq.fleet import Fleet, FleetData, RunKeys, train_steps
from floq.layout import Layout, for_each_run, on_each_device
from floq.policy import Policy
from floq.state import ValueRange

HEADROOM = 0.25  # by this part of what a reward was outside the range, the range goes beyond it
LEAST = 0.05  # or by this part of the range: rewards that slowly grow should not change it every time


class OnlineFleet:
    """A fleet whose runs learn from their data and from new experience.

    Args:
        fleet: the agents, with their data; this object trains them from here on.
        keys: for each run, the stream that it explores with.
        recorded: for each run, the replay that it goes on with.
        ticks: how many of them a replay holds.
        buffer_size, balanced: see `floq.data.replay.Mixture`.
    """

    def __init__(
        self,
        fleet: Fleet,
        keys: Sequence[PRNGKeyArray],
        recorded: Sequence[Recorded],
        ticks: int,
        buffer_size: int,
        balanced: bool,
    ):
        self._fleet, self._keys = fleet, fleet.place(keys)
        self._settings = {"layout": fleet.layout, "buffer_size": buffer_size, "balanced": balanced}
        self._places = fleet.layout.mesh.devices[:, 0]  # online, each holds runs of its own
        shares = np.split(np.array(fleet.slots), len(self._places))
        self._replay = _divided([[recorded[run] for run in share] for share in shares], ticks, fleet.layout)
        self._info: dict[str, Float[Array, " runs"]] = {}
        self.has_learned = False
        value_range = jax.device_get(fleet.agents.value_range)
        self._range = np.stack([value_range.r_min, value_range.r_max])[:, : len(fleet)]

    @property
    def is_busy(self) -> bool:
        """Whether the devices are still at the updates of the last `learn`."""
        ready: Callable[[Any], bool] = lambda value: value.is_ready()  # noqa: E731  JAX's stubs lack the method
        return not all(map(ready, self._info.values()))

    def explore(self, obs: Float[np.ndarray, "runs envs obs"], tick: int) -> Callable[[], np.ndarray]:
        """Have the actions of every run in every environment chosen, when the updates before have been made. What is
        returned waits for them: an array (runs, envs, act). An action that is not finite is a fault of its run, and
        zero instead: the environment is not to blame."""
        fleet = self._fleet
        own = fleet.agents, fleet.fault_codes, self._keys, obs[fleet.slots]
        acts, fleet.fault_codes = _explore(*own, np.int32(tick), fleet.layout)
        return lambda: np.asarray(acts)[: len(fleet)]

    def learn(self, new: Experience, num_updates: int) -> None:
        """Add what a tick brought, and make so many updates of each run. Does not wait for them."""
        fleet = self._fleet
        new = Experience(*(x[fleet.slots] for x in new))
        own = fleet.agents, fleet.fault_codes, self._replay, new, fleet.tasks, fleet.batch_keys
        found = _learn(*own, fleet.train, fleet.aim(num_updates), **self._settings)
        fleet.agents, fleet.fault_codes, self._replay, self._info = found
        self.has_learned |= num_updates > 0

    def infos(self) -> list[dict[str, float]]:
        """Each run's info of the last update of the last `learn`; NaN before the first."""
        infos = self._fleet.divided(self._info)
        return infos if self.has_learned else [dict.fromkeys(info, float("nan")) for info in infos]

    def recorded(self) -> Iterator[Recorded]:
        """The replays of the runs, one after another."""
        shards = [jax.tree.map(lambda x, place=place: _on(place, x), self._replay) for place in self._places]
        everything = itertools.chain.from_iterable(shard.recorded() for shard in shards)
        return itertools.islice(everything, len(self._fleet))  # the last may be idle copies

    def cover(self, run: int, low: float, high: float) -> tuple[float, float] | None:
        """Widen a run's range of rewards, which its flow looks for values in, where rewards from `low` to `high` leave
        it: to these, and somewhat beyond. Returns the new range, None if nothing changed."""
        r_min, r_max = self._range[:, run]
        below, above = max(0.0, r_min - low), max(0.0, high - r_max)
        if not (below or above):
            return None
        width = max(r_max, high) - min(r_min, low)
        beyond = lambda excess: excess + max(HEADROOM * excess, LEAST * width) if excess else 0.0  # noqa: E731
        self._range[:, run] = r_min - beyond(below), r_max + beyond(above)
        wider = [ValueRange(*(jnp.float32(x) for x in column)) for column in self._range.T]
        placed = self._fleet.place(wider)
        self._fleet.agents = eqx.tree_at(lambda agents: agents.value_range, self._fleet.agents, placed)
        return float(self._range[0, run]), float(self._range[1, run])


def _divided(shares: Sequence[Sequence[Recorded]], ticks: int, layout: Layout) -> Replay:
    """The replays of the devices as one whose arrays are divided among them: none holds more than its own, ever."""
    sharding, parts = NamedSharding(layout.mesh, PartitionSpec("runs")), []
    for place, share in zip(layout.mesh.devices[:, 0], shares, strict=True):
        with jax.default_device(place):
            parts.append(Replay.of(list(share), ticks))

    def join(*part: Array) -> Array:
        whole = len(part) * part[0].shape[0], *part[0].shape[1:]
        return jax.make_array_from_single_device_arrays(whole, sharding, part)

    return jax.tree.map(join, *parts)


def _on(place: Any, x: Array) -> Array:
    """The part of an array that lies on this device."""
    return next(shard.data for shard in x.addressable_shards if shard.device == place)


@partial(jax.jit, static_argnames="layout")
def _explore(
    agents: Agent,
    faults: Int[Array, " runs"],
    keys: RunKeys,
    obs: Float[Array, "runs envs obs"],
    tick: Int[Array, ""],
    layout: Layout,
):
    policies = jax.vmap(lambda agent: agent.policy)(agents)

    def explore(policy: Policy, fault: Array, key: PRNGKeyArray, obs: Array, tick: Array):
        tick_key = jax.random.fold_in(key, tick)
        act = lambda obs, env: policy.explore(obs, jax.random.fold_in(tick_key, env))  # noqa: E731
        acts = jax.vmap(act)(obs, jnp.arange(obs.shape[0]))
        sound = jnp.isfinite(acts)
        return jnp.where(sound, acts, 0.0), jnp.where((fault == SOUND) & ~jnp.all(sound), ACTION, fault)

    return for_each_run(explore, layout, (policies, faults, keys, obs), (tick,))


@partial(jax.jit, static_argnames=("layout", "buffer_size", "balanced"), donate_argnums=(0, 1, 2))
def _learn(
    agents: Agent,
    faults: Int[Array, " runs"],
    replay: Replay,
    new: Experience,
    tasks: Int[Array, " runs"],
    keys: RunKeys,
    data: FleetData,
    stop: Int[Array, ""],
    layout: Layout,
    buffer_size: int,
    balanced: bool,
):
    divided = PartitionSpec("runs")
    replay = on_each_device(Replay.add, layout, (replay, new), (divided, divided))
    numbers = on_each_device(lambda tasks: jnp.arange(tasks.shape[0]), layout, (tasks,), (divided,))

    def train(
        agent: Agent,
        fault: Array,
        task: Array,
        key: PRNGKeyArray,
        number: Array,
        data: FleetData,
        stop: Array,
        replay: Replay,
    ):
        mixture = Mixture(data.task(task), replay, number, buffer_size, balanced)
        return train_steps(agent, fault, mixture, key, stop, layout.divide_batch)

    own = agents, faults, tasks, keys, numbers
    agents, faults, info = for_each_run(train, layout, own, (data, stop), (replay,))
    return agents, faults, replay, info
