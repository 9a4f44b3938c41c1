"""The online phase: environments in worker processes and the fleet on its devices, tick by tick.

In a tick every environment of every run takes one step, or is reset if its episode is over. While the environments are
at it, the devices make the updates that the tick is due. So an update has seen everything but the transition that is
being made, and neither side waits for the other longer than it must. A chunk of actions is executed to its end, or that
of its episode, before the policy is asked again.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped

from floq.agent.agent import Agent
from floq.agent.finite import ACTION, OK
from floq.agent.policy import Policy
from floq.agent.state import Keys, ValueRange
from floq.critics import CRITICS
from floq.data.mixture import Mixture, Source, window_size
from floq.data.replay import Experience, Replay, ReplaySnapshot
from floq.envs.environments import EpisodeResult
from floq.envs.vector import MAX_FAILURES, EnvSpec, ExploringEnvs, VectorStep, index_of
from floq.envs.workers import START_TIMEOUT_S, WorkerError, WorkerLate, Workers
from floq.evaluation.rollouts import Controller
from floq.runs.config import Config
from floq.training.fleet import Fleet, FleetData, Layout, RunKeys, for_each_run, on_each_device, train_steps
from floq.utils.errors import Failed
from floq.utils.machine import worker_count
from floq.utils.progress import Display

# --- Replays and programs of the online phase, on the devices ---

HEADROOM = 0.25  # by this part of what a reward was outside the range, the range goes beyond it
MIN_WIDENING = 0.05  # or by this part of the range: rewards that slowly grow should not change it every time


class OnlineFleet:
    """A fleet whose runs learn from their data and from new experience. The replay of each run, which goes on with what
    is recorded, holds so many ticks; for `buffer_size`, see `floq.data.mixture.Mixture`."""

    def __init__(
        self,
        fleet: Fleet,
        keys: Sequence[PRNGKeyArray],
        recorded: Sequence[ReplaySnapshot],
        ticks: int,
        buffer_size: int,
    ):
        self._fleet, self._keys = fleet, fleet.place(keys)
        self._program = partial(_learn, layout=fleet.layout, buffer_size=buffer_size)
        self._places = fleet.layout.mesh.devices[:, 0]  # online, each holds runs of its own
        shares = np.split(np.array(fleet.slots), len(self._places))
        data = fleet.train.trajectories
        replay_of = partial(
            Replay.of, ticks=ticks, action_chunk=data.action_chunk, obs_spec=data.dims[0], p_aug=data.p_aug
        )
        self._replay = _divided([[recorded[run] for run in share] for share in shares], replay_of, fleet.layout)
        self._info: dict[str, Float[Array, " runs"]] = {}
        self.has_learned = False  # whether there was an update yet
        value_range = jax.device_get(fleet.agents.value_range)
        self._range = np.stack([value_range.r_min, value_range.r_max])[:, : len(fleet)]

    @property
    def is_busy(self) -> bool:
        """Whether the devices are still at the updates of the last `learn`."""
        ready: Callable[[Any], bool] = lambda value: value.is_ready()  # noqa: E731  JAX's stubs lack the method
        return not all(map(ready, self._info.values()))

    def explore(self, obs: Shaped[np.ndarray, "runs envs size"], tick: int) -> Callable[[], np.ndarray]:
        """Start computing the actions of every run in every environment, after the updates already queued. The function
        that is returned waits for them: an array (runs, envs, act), where `act` may be a chunk. An action that is not
        finite is replaced by zero and recorded as a fault of its run."""
        fleet = self._fleet
        own = fleet.agents, fleet.fault_codes, self._keys, obs[fleet.slots]
        acts, faults = _explore(*own, np.int32(tick), fleet.layout)
        fleet.fault_codes = faults
        return lambda: np.asarray(acts)[: len(fleet)]

    def learn(self, new: Experience, num_updates: int, share: float | None) -> None:
        """Add the experience of a tick to the replays, and queue so many updates of each run without waiting for
        them. That `share` of their batches is drawn from the data; None: from all transitions alike."""
        new = Experience(*(x[self._fleet.slots] for x in new))
        arguments = self._replay, new, None if share is None else np.float32(share)
        self._replay, self._info = self._fleet.train_with(self._program, num_updates, *arguments)
        self.has_learned |= num_updates > 0

    def infos(self) -> list[dict[str, float]]:
        """Wait for the last update of the last `learn`, and return each run's info of it; NaN before the first."""
        infos = self._fleet.divided(self._info)
        return infos if self.has_learned else [dict.fromkeys(info, float("nan")) for info in infos]

    def recorded(self) -> Iterator[ReplaySnapshot]:
        """Yield the replays of the runs, one after another."""

        def part(place: Any) -> Replay:
            own = lambda x: next(shard.data for shard in x.addressable_shards if shard.device == place)  # noqa: E731
            return jax.tree.map(own, self._replay)

        everything = itertools.chain.from_iterable(part(place).recorded() for place in self._places)
        return itertools.islice(everything, len(self._fleet))  # the last may be idle copies

    def widen_reward_range(self, run: int, low: float, high: float) -> tuple[float, float] | None:
        """Widen a run's range of rewards, in which its critic looks for values, where rewards from `low` to `high`
        leave it. Return the new range; None if they do not."""
        known = float(self._range[0, run]), float(self._range[1, run])
        if (wider := widened(known, low, high)) == known:
            return None
        self._range[:, run] = wider
        fleet, ranges = self._fleet, [ValueRange(*(jnp.float32(x) for x in column)) for column in self._range.T]
        fleet.agents = eqx.tree_at(lambda agents: agents.value_range, fleet.agents, fleet.place(ranges))
        return wider


def widened(known: tuple[float, float], low: float, high: float) -> tuple[float, float]:
    """Widen a range where numbers from `low` to `high` leave it: to these, and somewhat beyond."""
    r_min, r_max = known
    width = max(r_max, high) - min(r_min, low)
    beyond = lambda excess: excess + max(HEADROOM * excess, MIN_WIDENING * width) if excess > 0 else 0.0  # noqa: E731
    return r_min - beyond(r_min - low), r_max + beyond(high - r_max)


def _divided(
    shares: Sequence[Sequence[ReplaySnapshot]], replay_of: Callable[[list[ReplaySnapshot]], Replay], layout: Layout
) -> Replay:
    """Join the replays of the devices into one whose arrays are divided among them: no device ever holds another's
    part."""
    sharding, parts = NamedSharding(layout.mesh, PartitionSpec("runs")), []
    for place, share in zip(layout.mesh.devices[:, 0], shares, strict=True):
        with jax.default_device(place):
            parts.append(replay_of(list(share)))

    def join(*part: Array) -> Array:
        whole = len(part) * part[0].shape[0], *part[0].shape[1:]
        return jax.make_array_from_single_device_arrays(whole, sharding, part)

    return jax.tree.map(join, *parts)


@partial(jax.jit, static_argnames="layout")
def _explore(agents: Agent, faults: Int[Array, " runs"], keys: RunKeys, obs: Array, tick: Array, layout: Layout):
    def explore(policy: Policy, fault: Array, key: PRNGKeyArray, obs: Shaped[Array, "envs size"], tick: Array):
        tick_key = jax.random.fold_in(key, tick)
        act = lambda obs, env: policy.explore(obs, jax.random.fold_in(tick_key, env))  # noqa: E731
        acts = jax.vmap(act)(obs, jnp.arange(obs.shape[0]))
        sound = jnp.isfinite(acts)
        return jnp.where(sound, acts, 0.0), jnp.where((fault == OK) & ~jnp.all(sound), ACTION, fault)

    policies = jax.vmap(lambda agent: agent.policy)(agents)
    return for_each_run(explore, layout, (policies, faults, keys, obs), (tick,))


@partial(jax.jit, static_argnames=("layout", "buffer_size"), donate_argnames=("agents", "faults", "replay"))
def _learn(
    agents: Agent,
    faults: Int[Array, " runs"],
    tasks: Int[Array, " runs"],
    keys: RunKeys,
    data: FleetData,
    stop: Int[Array, ""],
    replay: Replay,
    new: Experience,
    share: Float[Array, ""] | None,
    layout: Layout,
    buffer_size: int,
):
    def train(agent: Agent, fault: Array, task: Array, key: PRNGKeyArray, number: Array, *shared: Any):
        data, stop, share, replay = shared
        mixture = Mixture(Source.of(data.task(task)), replay.of_run(number), share, buffer_size)
        return train_steps(agent, fault, mixture, key, stop, layout.divide_batch)

    divided = PartitionSpec("runs")
    replay = on_each_device(Replay.add, layout, (replay, new), (divided, divided))
    numbers = on_each_device(lambda tasks: jnp.arange(tasks.shape[0]), layout, (tasks,), (divided,))
    own = agents, faults, tasks, keys, numbers
    agents, faults, info = for_each_run(train, layout, own, (data, stop, share), (replay,))
    return agents, faults, replay, info


RESET_ROOM = 1.1  # rows of a replay for each transition: those at the ends of episodes are none
STATISTICS = ("exploration/success", "exploration/episode.return", "exploration/episode.length")


class Online:
    """The runs of a fleet and their environments. A context manager; leaving it ends the workers.

    Args:
        configs, fleet: of the runs, which agree in all but task, seed and traced settings.
        steps: the environment steps that every run has behind it.
        recorded: for each run its replay, or None before the first step.
        display: shows what it repairs.
        explored: for each run what the last row of its log says, if there is one.

    Raises:
        Failed: an environment failed at once.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        fleet: Fleet,
        steps: int,
        recorded: Sequence[ReplaySnapshot | None],
        display: Display,
        explored: Sequence[Mapping[str, float]] = (),
    ):
        c = self._config = configs[0]
        self._seeds = [config.seed for config in configs]
        self._display, self._tick = display, steps // c.num_envs
        self._bounded = CRITICS[c.agent.critic_name][1].bounded or c.agent.clip_targets
        slots = [(run, env) for run in range(len(configs)) for env in range(c.num_envs)]
        sites = [EnvSpec((run, env), configs[run].make_env, configs[run].seed) for run, env in slots]
        count = worker_count(None, len(sites))
        self._shares = [sites[i::count] for i in range(count)]
        self._indices = [index_of([site.slot for site in share]) for share in self._shares]  # in arrays of all
        arguments = [(tuple(share), c.restart_failed_envs) for share in self._shares]
        self._workers = Workers(ExploringEnvs, arguments)
        self._start_timeout = max(START_TIMEOUT_S, c.env_timeout)
        self._deaths = [0] * count  # of each worker since its last answer
        self._episodes: list[list[EpisodeResult]] = [[] for _ in configs]
        last = explored or [{} for _ in configs]
        self._statistics = [{name: row.get(name, math.nan) for name in STATISTICS} for row in last]
        chunk = c.agent.action_chunk
        obs_spec, self._action_dim = fleet.agents.obs_spec, fleet.agents.action_dim // chunk
        self._controller, self._elapsed = Controller(chunk), np.zeros((len(configs), c.num_envs), int)
        before = [run or ReplaySnapshot.empty(c.num_envs, obs_spec, self._action_dim) for run in recorded]
        has_share = c.online_share(0) is not None
        drawn_from = int(window_size(jnp.int32(fleet.train.most_transitions), c.buffer_size, has_share))
        ticks = math.ceil(RESET_ROOM * min(drawn_from, c.online_steps) / c.num_envs) + 1 + chunk
        keys = [Keys.of(config.seed).exploration for config in configs]
        self.fleet = OnlineFleet(fleet, keys, before, ticks, c.buffer_size)
        self._obs_spec, self._obs = obs_spec, obs_spec.zeros(len(configs), c.num_envs)
        nothing = Experience.of_resets(self._obs, self._action_dim)
        self._pending: Experience | None = None  # what no replay holds yet
        try:
            begun = self._workers.begin_call("step", self._calls(nothing.actions))
            self._pending = self._received(self._workers.answers(begun, self._start_timeout), nothing.actions)
        except BaseException:
            self._workers.close()
            raise

    def __enter__(self) -> "Online":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    @property
    def steps(self) -> int:
        """The environment steps that every run has behind it. A reset counts as one."""
        return self._tick * self._config.num_envs

    def advance(self, num_ticks: int) -> None:
        """Run so many ticks.

        Raises:
            Failed: an environment failed and is not to be restarted, or fails again and again. What the others did in
                that tick is lost; the tick counts, so that a resumed run makes no update twice.
        """
        for _ in range(num_ticks):
            # Who is late sets the order: late devices get their next updates at once, to be made when the actions are
            # chosen; late environments get their actions before anything else happens.
            devices_are_late = self.fleet.is_busy
            begins = self._controller.begins_chunk(self._elapsed).any()
            chosen = self.fleet.explore(self._obs, self._tick) if begins else None
            if devices_are_late:
                self._learn()
            actions = self._controller.act(self._elapsed, chosen)
            begun = self._workers.begin_call("step", self._calls(actions))
            if not devices_are_late:
                self._learn()
            self._tick += 1
            self._pending = self._received(self._workers.answers(begun, self._config.env_timeout), actions)

    def _learn(self) -> None:
        """Queue the updates of a tick."""
        assert self._pending is not None
        learns = self.steps >= self._config.steps_without_updates
        updates = self._config.updates_per_tick if learns else 0
        self.fleet.learn(self._pending, updates, self._config.online_share(self.steps))
        self._pending = None

    def statistics(self, run: int) -> dict[str, float]:
        """Return means over the episodes that a run has finished since the last call; the last means if there are
        none."""
        if self._episodes[run]:
            means = EpisodeResult.mean(self._episodes[run])
            self._statistics[run] = {f"exploration/{name}": mean for name, mean in means.items()}
            self._episodes[run] = []
        return self._statistics[run]

    def recorded(self) -> Iterator[ReplaySnapshot]:
        """Yield the replays of the runs, the newest transitions included, one after another."""
        for run, recorded in enumerate(self.fleet.recorded()):
            yield recorded if self._pending is None else recorded.append(self._pending, run)

    def _calls(self, actions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        return [(self._tick, actions[at]) for at in self._indices]

    def _received(self, answers: Sequence[VectorStep | WorkerError], actions: np.ndarray) -> Experience:
        """Turn the answers of the workers into the experience of a tick."""
        new = Experience.of_resets(np.zeros_like(self._obs), self._action_dim)._replace(actions=actions)
        ticks = [self._restarted(i, one) if isinstance(one, WorkerError) else one for i, one in enumerate(answers)]
        self._deaths = [n if isinstance(one, WorkerError) else 0 for n, one in zip(self._deaths, answers, strict=True)]
        for at, tick in zip(self._indices, ticks, strict=True):
            new.observations[at], new.rewards[at], new.masks[at] = tick.observations, tick.rewards, tick.masks
            new.stepped[at] = tick.stepped
            for (run, _), result in tick.finished:
                self._episodes[run].append(result)
            for failure in tick.failures:
                if not failure.goes_on:
                    raise self._end(failure.what, MAX_FAILURES)
                self._display.note(f"note    {failure.what}; it is replaced")
        self._obs, self._elapsed = new.observations, np.where(new.stepped, self._elapsed + 1, 0)
        for run, stepped in enumerate(new.stepped):
            if stepped.any() and self._bounded:
                rewards, step = new.rewards[run][stepped], self._config.offline_steps + self.steps
                if wider := self.fleet.widen_reward_range(run, float(rewards.min()), float(rewards.max())):
                    self._display.note(
                        f"note    step {step}: an online reward left the range that the data gave; for seed "
                        f"{self._seeds[run]} it is [{wider[0]:.4g}, {wider[1]:.4g}] now"
                    )
        return new._replace(observations=self._obs_spec.newest(new.observations))

    def _end(self, what: str, times: int) -> Failed:
        """Return the error that ends the run, after so many failures in a row."""
        remedy = "--restart_failed_envs=True would go on with a fresh one"
        return Failed(f"{what} ({f'{times} times in a row' if self._config.restart_failed_envs else remedy})")

    def _restarted(self, worker: int, failed: WorkerError) -> VectorStep:
        """Replace a worker that died, hangs, or could not make its environments, and return the first tick of the new
        one: all its environments are reset."""
        names = ", ".join(f"{site.slot[1]} of {site.make_env.name} (seed {site.seed})" for site in self._shares[worker])
        while True:
            late = f"did not answer within {failed.timeout:g} seconds" if isinstance(failed, WorkerLate) else ""
            what = f"the process with the environments {names} {late or f'failed: {failed.line}'}"
            self._deaths[worker] += 1
            if not self._config.restart_failed_envs or self._deaths[worker] >= MAX_FAILURES:
                raise self._end(what, self._deaths[worker])
            self._display.note(f"note    {what}; it is restarted")
            self._workers.restart(worker)
            zeros = np.zeros((len(self._shares[worker]), self._action_dim), np.float32)
            try:
                return self._workers.call_one(worker, "step", (self._tick, zeros), self._start_timeout)
            except WorkerError as again:
                failed = again
