"""Parallel, seeded evaluation: many environments, one call for the actions of all.

An episode's randomness is keyed by (seed, training step, episode number), the policy's noise by the step within the
episode on top, and a row of the batch belongs to a slot and not to a worker. So a result depends neither on timing nor
on the number of workers, nor on what was evaluated before or beside it. A chunk of actions is executed to its end
before the policy is asked again. A policy's batch always has as many rows, most of them spare on a machine with few
cores, so that its shape is the same everywhere.

The policies of a fleet are asked together, in one program that runs one after the other. Beside a training that fills
the machine it is waiting for a turn, and not computing, that a call takes its time for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.envs.environments import EnvSlots, EpisodeResult, index_of, is_heavy
from floq.envs.workers import START_SECONDS, WorkerDied, WorkerError, Workers
from floq.utils.machine import cores, worker_count

ROWS = 64  # of the policy's batch
MIN_SLOTS = 10  # environments of a rollout at once: one per core, but not fewer than these, or more than rows
MAX_ENVS = 64  # of all rollouts at once, where the slots of one are not more
RESTARTS = 3  # workers that may die in one evaluation before it is given up

T = TypeVar("T")


class Evaluation(NamedTuple):
    """The episodes of one evaluation, in the order of their numbers."""

    step: int
    episodes: tuple[EpisodeResult, ...]

    def summary(self) -> dict[str, float]:
        """The published metrics: means over episodes."""
        return {f"evaluation/{name}": mean for name, mean in EpisodeResult.mean(self.episodes).items()}


class Rollout(NamedTuple):
    """A policy whose episodes are to be played: those that (seed, step) names, in its environment."""

    policy: Policy
    seed: int
    step: int
    env_name: str


class Evaluator:
    """Worker processes with environments, kept for as many evaluations as wanted. A context manager.

    Args:
        env_name: the task that they begin with; rollouts may name others of the same environment.
        success_timing: see `envs.make`.
        num_episodes: episodes of an evaluation.
        workers: processes; by default one per core.
        action_chunk: actions that the policies decide on at once.
        rollouts: how many there will be to evaluate. All together where environments are small, else one after another.
        timeout: seconds that a step of all the environments of a worker may take; then it counts as dead.
    """

    def __init__(
        self,
        env_name: str,
        success_timing: str | None,
        num_episodes: int,
        workers: int | None = None,
        action_chunk: int = 1,
        rollouts: int = 1,
        timeout: float | None = None,
    ):
        self._env_name, self._num_episodes, self._action_chunk = env_name, num_episodes, action_chunk
        self._timeout, self._start_timeout = timeout, timeout and max(START_SECONDS, timeout)
        self._num_slots = min(num_episodes, max(MIN_SLOTS, cores()), ROWS)
        self._together = 1 if is_heavy(env_name) else _even_share(rollouts, max(1, MAX_ENVS // self._num_slots))
        slots = [(rollout, slot) for rollout in range(self._together) for slot in range(self._num_slots)]
        count = worker_count(workers, len(slots))
        self._shares = [slots[i::count] for i in range(count)]
        self._workers = Workers(
            EnvSlots, [(env_name, success_timing, tuple(share), self._num_slots) for share in self._shares]
        )

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    def kill(self) -> None:
        """End the worker processes at once, from whichever thread: no environment is waited for."""
        self._workers.kill()

    def __call__(
        self,
        policy: Policy,
        seed: int,
        step: int,
        on_progress: Callable[[int], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Play the episodes that (seed, step) names. None if `should_stop` said so midway."""
        return self.rollout([Rollout(policy, seed, step, self._env_name)], on_progress, should_stop)[0]

    def groups(self, rollouts: Sequence[T]) -> list[Sequence[T]]:
        """Divide rollouts into as many as `rollout` takes."""
        return [rollouts[i : i + self._together] for i in range(0, len(rollouts), self._together)]

    def rollout(
        self,
        rollouts: Sequence[Rollout],
        on_progress: Callable[[int], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Evaluation | None]:
        """Play the episodes of several rollouts at once, of as many as a group has. None for those whose episodes were
        not all played when `should_stop` said so.

        A worker that dies or hangs is replaced, and the episodes that it was playing begin again.

        Raises:
            Failed: an environment raised, or workers died again and again.
            UserError: there is no such environment.
        """
        try:
            return self._rollout(rollouts, on_progress, should_stop)
        except WorkerError as error:
            names = ", ".join(dict.fromkeys(f"{rollout.env_name} at step {rollout.step}" for rollout in rollouts))
            raise error.to_error(f"the evaluation of {names}") from error

    def _rollout(
        self, rollouts: Sequence[Rollout], on_progress: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> list[Evaluation | None]:
        count = self._together
        assert 0 < len(rollouts) <= count
        results: list[dict[int, EpisodeResult]] = [{} for _ in rollouts]
        episode = np.tile(np.arange(ROWS), (count, 1))
        elapsed = np.zeros((count, ROWS), np.int64)
        spare = [rollouts[0]] * (count - len(rollouts))  # they never play, and keep the shape
        policies = _stacked([rollout.policy for rollout in (*rollouts, *spare)])
        keys = jnp.stack([jax.random.fold_in(Keys.of(p.seed).evaluation, p.step) for p in (*rollouts, *spare)])
        game = ([(p.env_name, (p.seed, p.step)) for p in rollouts], self._num_episodes)
        restarts = 0

        def revived(worker: int, died: WorkerError) -> np.ndarray:
            """Replace a worker that died. Its slots' observations at the start of the episodes that they were playing.
            What it raised is raised here: it would do so again."""
            nonlocal restarts
            share = self._shares[worker]
            while True:
                restarts += 1
                if restarts > RESTARTS or not isinstance(died, WorkerDied) or should_stop():
                    raise died
                self._workers.restart(worker)
                elapsed[index_of(share)] = 0
                try:
                    begin = (*game, {at: int(episode[at]) for at in share})
                    return self._workers.call_one(worker, "start", begin, self._start_timeout)
                except WorkerDied as again:
                    died = again

        first = self._workers.try_call("start", [game] * len(self._shares), self._start_timeout)
        first = [revived(i, a) if isinstance(a, WorkerError) else a for i, a in enumerate(first)]
        obs = np.zeros((count, ROWS, *first[0].shape[1:]), np.float32)
        for share, rows in zip(self._shares, first, strict=True):
            obs[index_of(share)] = rows
        plan: np.ndarray | None = None
        while any(len(found) < self._num_episodes for found in results) and not should_stop():
            at = elapsed % self._action_chunk  # in the plan of each slot
            plays = episode[:, : self._num_slots] < self._num_episodes
            plays[len(rollouts) :] = False
            asks = (plays & (at[:, : self._num_slots] == 0)).any(axis=1)
            if plan is None or asks.any():
                fresh = np.asarray(_act(policies, keys, obs, episode, elapsed, asks))
                fresh = fresh.reshape(count, ROWS, self._action_chunk, -1)
                plan = fresh if plan is None else np.where((at == 0)[..., None, None], fresh, plan)
            actions = np.take_along_axis(plan, at[..., None, None], axis=2)[:, :, 0]
            each = [(actions[index_of(share)],) for share in self._shares]
            answers = self._workers.try_call("step", each, self._timeout)
            elapsed += 1
            for worker, (share, answer) in enumerate(zip(self._shares, answers, strict=True)):
                if isinstance(answer, WorkerError):
                    obs[index_of(share)] = revived(worker, answer)
                    continue
                obs[index_of(share)], finished = answer
                for (rollout, slot), result in finished:
                    results[rollout][int(episode[rollout, slot])] = result
                    episode[rollout, slot] += self._num_slots
                    elapsed[rollout, slot] = 0
                    on_progress(sum(map(len, results)))
        return [
            Evaluation(rollout.step, tuple(found[i] for i in range(self._num_episodes)))
            if len(found) == self._num_episodes
            else None
            for rollout, found in zip(rollouts, results, strict=True)
        ]


def on_cpu(policy: Policy) -> Policy:
    """A copy of the policy on the host's first CPU device, where there is one."""
    try:
        return jax.device_put(jax.device_get(policy), jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told to use nothing but an accelerator
        return jax.tree.map(jnp.copy, policy)


def _even_share(count: int, most: int) -> int:
    """The size of the groups if `count` are divided into as few as possible of at most `most`, evenly."""
    return -(-count // -(-count // most))


@jax.jit
def _stacked(policies: Sequence[Policy]) -> Policy:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies)


@jax.jit
def _act(policies: Policy, keys, obs, episode, elapsed, asks):
    """The actions of every row of every rollout that asks, zeros for the others."""

    def play(rollout: Any):
        policy, key, obs, episode, elapsed, asks = rollout

        def act(obs, episode, elapsed):
            return policy.act(obs, jax.random.fold_in(jax.random.fold_in(key, episode), elapsed))

        choose = lambda: jax.vmap(act)(obs, episode, elapsed)  # noqa: E731
        rest = jax.eval_shape(choose)
        return jax.lax.cond(asks, choose, lambda: jnp.zeros(rest.shape, rest.dtype))

    return jax.lax.map(play, (policies, keys, obs, episode, elapsed, asks))
