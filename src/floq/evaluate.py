"""Parallel, seeded evaluation: many environments, one batched call of the policy, beside the training if wanted.

An episode's randomness is keyed by (seed, training step, episode number), the policy's noise by the step within the
episode on top, and a row of the batch belongs to a slot and not to a worker. So a result depends neither on timing nor
on the number of workers, nor on what was evaluated before. A chunk of actions is executed to its end before the policy
is asked again. The batch always has as many rows, most of them spare on a machine with few cores, so that its shape is
the same everywhere.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from floq.envs import EnvSlots, EpisodeResult
from floq.keys import Keys
from floq.policy import Policy
from floq.workers import WorkerDied, Workers, cores, worker_count

ROWS = 64  # of the policy's batch
LEAST_SLOTS = 10  # environments that play at once: one per core, but not fewer than these, or more than rows
RESTARTS = 3  # workers that may die in one evaluation before it is given up


class Evaluation(NamedTuple):
    """The episodes of one evaluation, in the order of their numbers."""

    step: int
    episodes: tuple[EpisodeResult, ...]

    def summary(self) -> dict[str, float]:
        """The published metrics: means over episodes. Success is NaN if no episode had such a flag, and an episode
        without one counts as a failure if others have it."""
        success, *others = np.array(self.episodes, dtype=np.float64).T
        flagged = np.nan if np.isnan(success).all() else np.nan_to_num(success).mean()
        names = ("evaluation/success", "evaluation/episode.return", "evaluation/episode.length")
        return dict(zip(names, (float(flagged), *(float(x.mean()) for x in others)), strict=True))


class Evaluator:
    """Worker processes with environments, kept for as many evaluations as wanted. A context manager.

    Args:
        env_name: the task that they begin with; an evaluation may name another of the same environment.
        success_timing: see `envs.make`.
        num_episodes: episodes of an evaluation.
        workers: processes; by default one per core.
        action_chunk: actions that the policies decide on at once.
    """

    def __init__(
        self,
        env_name: str,
        success_timing: str | None,
        num_episodes: int,
        workers: int | None = None,
        action_chunk: int = 1,
    ):
        self._env_name, self._num_episodes, self._action_chunk = env_name, num_episodes, action_chunk
        self._num_slots = min(num_episodes, max(LEAST_SLOTS, cores()), ROWS)
        count = worker_count(workers, self._num_slots)
        self._shares = [range(i, self._num_slots, count) for i in range(count)]
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

    def __call__(
        self,
        policy: Policy,
        seed: int,
        step: int,
        env_name: str | None = None,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Play the episodes that (seed, step) names. None if `should_stop` said so midway.

        A worker that dies is replaced, and the episodes that it was playing begin again.
        """
        results: dict[int, EpisodeResult] = {}
        episode = np.arange(ROWS)
        elapsed = np.zeros(ROWS, np.int64)
        key, restarts = jax.random.fold_in(Keys.of(seed).evaluation, step), 0
        task = (env_name or self._env_name, (seed, step), self._num_episodes)

        def revived(worker: int, died: WorkerDied) -> np.ndarray:
            """Replace a worker. Its slots' observations at the start of the episodes that they were playing."""
            nonlocal restarts
            share = self._shares[worker]
            while True:
                if (restarts := restarts + 1) > RESTARTS:
                    raise died
                self._workers.restart(worker)
                elapsed[list(share)] = 0
                try:
                    numbers = {slot: int(episode[slot]) for slot in share}
                    return self._workers.call_one(worker, "start", (*task, numbers))
                except WorkerDied as again:
                    died = again

        first = self._workers.try_call("start", [task] * len(self._shares))
        first = [revived(i, a) if isinstance(a, WorkerDied) else a for i, a in enumerate(first)]
        obs, plan = self._in_slots(first), None
        while len(results) < self._num_episodes:
            if should_stop():
                return None
            at = elapsed % self._action_chunk  # in the plan of each slot
            if plan is None or (at[: self._num_slots] == 0).any():
                fresh = np.asarray(_act(policy, key, obs, episode, elapsed)).reshape(ROWS, self._action_chunk, -1)
                plan = fresh if plan is None else np.where((at == 0)[:, None, None], fresh, plan)
            actions = plan[np.arange(ROWS), at]
            answers = self._workers.try_call("step", [(actions[list(share)],) for share in self._shares])
            elapsed += 1
            for worker, (share, answer) in enumerate(zip(self._shares, answers, strict=True)):
                if isinstance(answer, WorkerDied):
                    obs[list(share)] = revived(worker, answer)
                    continue
                obs[list(share)], finished = answer
                for slot, result in finished:
                    results[int(episode[slot])] = result
                    episode[slot] += self._num_slots
                    elapsed[slot] = 0
                    on_progress(len(results), self._num_episodes)
        return Evaluation(step, tuple(results[i] for i in range(self._num_episodes)))

    def _in_slots(self, shares: Sequence[np.ndarray]) -> np.ndarray:
        obs = np.zeros((ROWS, *shares[0].shape[1:]), np.float32)
        for share, rows in zip(self._shares, shares, strict=True):
            obs[list(share)] = rows
        return obs


class Request(NamedTuple):
    """An evaluation to come: which of the fleet's runs, at which step, with what policy."""

    run: int
    step: int
    policy: Policy
    seconds: float  # the run's clock at that step


class Background:
    """Evaluations that go on while the training does, one after another, in a thread of their own. A context manager.

    The policy acts on the CPU, whatever trains it: it is small, and a step of the environments should not wait for the
    accelerator to come to the end of its chunk.
    """

    def __init__(self, evaluator: Evaluator, seeds: Sequence[int], env_names: Sequence[str]):
        self._evaluator, self._seeds, self._env_names = evaluator, seeds, env_names
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Request, Evaluation] | BaseException] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="evaluation", daemon=True)
        self.pending: list[Request] = []
        self.episodes_done = 0

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._requests.put(None)
        self._thread.join()

    def submit(self, request: Request) -> None:
        """Ask for an evaluation; `pending` holds it until `finished` has handed it out."""
        request = request._replace(policy=on_cpu(request.policy))
        self.pending.append(request)
        self._requests.put(request)

    def finished(self, wait: float = 0.0) -> Iterator[tuple[Request, Evaluation]]:
        """The evaluations that have come to their end, in the order they were asked for; waits up to `wait` seconds for
        the first. Raises what an evaluation raised."""
        with contextlib.suppress(queue.Empty):
            while self.pending:
                answer = self._answers.get(timeout=wait) if wait else self._answers.get_nowait()
                wait = 0.0
                if isinstance(answer, BaseException):
                    raise answer
                self.pending.pop(0)
                self.episodes_done = 0
                yield answer

    def _work(self) -> None:
        while (request := self._requests.get()) is not None and not self._stopping.is_set():
            try:
                evaluation = self._evaluator(
                    request.policy,
                    self._seeds[request.run],
                    request.step,
                    self._env_names[request.run],
                    on_progress=self._count,
                    should_stop=self._stopping.is_set,
                )
            except BaseException as error:
                self._answers.put(error)
                return
            if evaluation is not None:
                self._answers.put((request, evaluation))

    def _count(self, done: int, total: int) -> None:
        self.episodes_done = done


def on_cpu(policy: Policy) -> Policy:
    """A copy of the policy on the host's first CPU device, where there is one."""
    try:
        return jax.device_put(jax.device_get(policy), jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX was told to use nothing but an accelerator
        return jax.tree.map(jnp.copy, policy)


@jax.jit
def _act(policy: Policy, key, obs, episode, elapsed):
    def act(obs, episode, elapsed):
        return policy.act(obs, jax.random.fold_in(jax.random.fold_in(key, episode), elapsed))

    return jax.vmap(act)(obs, jnp.asarray(episode), jnp.asarray(elapsed))
