"""Parallel, seeded evaluation, also in a thread beside training: many environments, one policy call for the actions of
all.

An episode's randomness is keyed by (seed, training step, episode number), the policy's noise also by the step within
the episode, and a row of the batch belongs to a slot, not to a worker: a result depends neither on timing, nor on the
number of workers, nor on other evaluations. A policy's batch always has `ROWS` rows, so that its shape is the same on
every machine. The policies of a fleet are called one after the other in one program: while training uses the whole
machine, a call waits for its turn more than it computes.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.envs.environments import EnvFactory, EpisodeResult, EpisodeStep, Seed, SeededEnv
from floq.envs.vector import EnvSlots, index_of
from floq.envs.workers import START_TIMEOUT_S, WorkerDied, WorkerError, Workers
from floq.utils.machine import cores, worker_count

ROWS = 64  # of a policy's batch
MIN_SLOTS = 10  # concurrent environments of a rollout: one per core, between MIN_SLOTS and ROWS
STOP_TIMEOUT_S = 2.0  # for the environments' current step at the end of a run
MAX_ENVS = 64  # concurrent environments of all rollouts, unless one rollout has more
RESTARTS = 3  # of workers in one evaluation before it fails

T = TypeVar("T")


class Evaluation(NamedTuple):
    """The episodes of one evaluation, in the order of their numbers, and the actions (steps, size) of the first ones,
    as many as were to be recorded."""

    step: int
    episodes: tuple[EpisodeResult, ...]
    actions: tuple[np.ndarray, ...] = ()

    def summary(self) -> dict[str, float]:
        """Return the published metrics: means over episodes."""
        return {f"evaluation/{name}": mean for name, mean in EpisodeResult.mean(self.episodes).items()}


class Rollout(NamedTuple):
    """A policy to evaluate in its environment, in the episodes that (seed, step) determines."""

    policy: Policy
    seed: int
    step: int
    env_name: str


class Controller:
    """Turns a policy into actions, for one environment or an array of them: a chunk of `action_chunk` actions is
    executed to its end before the policy is called again."""

    def __init__(self, action_chunk: int):
        self._chunk = action_chunk
        self._plan: np.ndarray | None = None

    def begins_chunk(self, elapsed: Any) -> Any:
        """Return whether a chunk begins at step `elapsed` of an episode."""
        return np.asarray(elapsed) % self._chunk == 0

    def act(self, elapsed: Any, decide: Callable[[], Any] | None, active: Any = True) -> np.ndarray:
        """Return the actions at step `elapsed` of each episode. `decide`, called where the chunk of an active one
        begins, returns a chunk for every environment, its actions concatenated as a policy does; None if none does."""
        begins, position = active & self.begins_chunk(elapsed), np.asarray(elapsed % self._chunk)
        if begins.any():
            assert decide is not None
            chunks = np.asarray(decide()).reshape(*position.shape, self._chunk, -1)
            self._plan = chunks if self._plan is None else np.where(begins[..., None, None], chunks, self._plan)
        assert self._plan is not None
        return np.take_along_axis(self._plan, position[..., None, None], axis=-2)[..., 0, :]


def play_episode(
    env: SeededEnv, seed: Seed, decide: Callable[[np.ndarray, int], Any], action_chunk: int
) -> Iterator[tuple[np.ndarray, np.ndarray, EpisodeStep]]:
    """Run the episode of `seed`; yield each observation, the action there, and the step that it made. `decide(obs,
    elapsed)` returns the next `action_chunk` actions."""
    obs, elapsed, result, controller = env.begin_episode(seed), 0, None, Controller(action_chunk)
    while result is None:
        action = controller.act(elapsed, partial(decide, obs, elapsed))
        step = env.advance(action)
        yield obs, action, step
        obs, elapsed, result = step.obs, elapsed + 1, step.result


class Evaluator:
    """Worker processes with environments, for any number of evaluations. A context manager.

    Rollouts may use other tasks of the environment that `make_env` makes; `rollouts` of them run concurrently if
    environments are small, else one by one. `workers` is by default one per core; a worker counts as dead after
    `timeout` seconds without an answer. The actions of the first `num_recorded` episodes are part of the results.
    """

    def __init__(
        self,
        make_env: EnvFactory,
        num_episodes: int,
        workers: int | None = None,
        action_chunk: int = 1,
        rollouts: int = 1,
        timeout: float | None = None,
        num_recorded: int = 0,
    ):
        self._num_recorded = num_recorded
        self._env_name, self._num_episodes, self._action_chunk = make_env.name, num_episodes, action_chunk
        self._timeout, self._start_timeout = timeout, timeout and max(START_TIMEOUT_S, timeout)
        self._num_slots = min(num_episodes, max(MIN_SLOTS, cores()), ROWS)
        num_groups = rollouts if make_env.is_heavy else -(-rollouts // max(1, MAX_ENVS // self._num_slots))
        self._group_size = -(-rollouts // num_groups)  # as few groups as possible, of even sizes
        slots = [(rollout, slot) for rollout in range(self._group_size) for slot in range(self._num_slots)]
        count = worker_count(workers, len(slots))
        self._shares = [slots[i::count] for i in range(count)]
        self._workers = Workers(EnvSlots, [(make_env, tuple(share), self._num_slots) for share in self._shares])

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.close()

    def kill(self) -> None:
        """Kill the worker processes, from any thread, without waiting for an environment."""
        self._workers.kill()

    def __call__(
        self,
        policy: Policy,
        seed: int,
        step: int,
        on_progress: Callable[[int], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Run the episodes that (seed, step) determines. Return None if `should_stop` returned True before the end."""
        return self.rollout([Rollout(policy, seed, step, self._env_name)], on_progress, should_stop)[0]

    def groups(self, rollouts: Sequence[T]) -> list[Sequence[T]]:
        """Divide rollouts into groups of the size that `rollout` takes."""
        return [rollouts[i : i + self._group_size] for i in range(0, len(rollouts), self._group_size)]

    def rollout(
        self,
        rollouts: Sequence[Rollout],
        on_progress: Callable[[int], None] = lambda done: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Evaluation | None]:
        """Run the episodes of a group of rollouts concurrently. A rollout's result is None if its episodes were not all
        finished when `should_stop` returned True.

        A worker that dies or hangs is replaced, and its current episodes begin again.

        Raises:
            Failed: an environment raised, or workers died more than `RESTARTS` times.
            UserError: unknown environment.
        """
        try:
            return self._rollout(rollouts, on_progress, should_stop)
        except WorkerError as error:
            names = ", ".join(dict.fromkeys(f"{rollout.env_name} at step {rollout.step}" for rollout in rollouts))
            raise error.to_error(f"the evaluation of {names}") from error

    def _rollout(
        self, rollouts: Sequence[Rollout], on_progress: Callable[[int], None], should_stop: Callable[[], bool]
    ) -> list[Evaluation | None]:
        count = self._group_size
        assert 0 < len(rollouts) <= count
        results: list[dict[int, EpisodeResult]] = [{} for _ in rollouts]
        episode = np.tile(np.arange(ROWS), (count, 1))
        elapsed = np.zeros((count, ROWS), np.int64)
        padding = [rollouts[0]] * (count - len(rollouts))  # never active, keeps the shape
        policies = _stacked([rollout.policy for rollout in (*rollouts, *padding)])
        keys = jnp.stack([jax.random.fold_in(Keys.of(r.seed).evaluation, r.step) for r in (*rollouts, *padding)])
        tasks = ([(r.env_name, (r.seed, r.step)) for r in rollouts], self._num_episodes)
        actions_of: list[list[list[np.ndarray]]] = [[[] for _ in range(self._num_recorded)] for _ in rollouts]
        restarts = 0

        def restarted(worker: int, error: WorkerError) -> np.ndarray:
            """Replace a worker that died and restart its episodes; return its slots' first observations. If its
            environment raised, raise that error here: it would occur again."""
            nonlocal restarts
            share = self._shares[worker]
            while True:
                restarts += 1
                if restarts > RESTARTS or not isinstance(error, WorkerDied) or should_stop():
                    raise error
                self._workers.restart(worker)
                elapsed[index_of(share)] = 0
                try:
                    arguments = (*tasks, {slot: int(episode[slot]) for slot in share})
                    return self._workers.call_one(worker, "start", arguments, self._start_timeout)
                except WorkerDied as died:
                    error = died

        first = self._workers.try_call("start", [tasks] * len(self._shares), self._start_timeout)
        first = [restarted(i, a) if isinstance(a, WorkerError) else a for i, a in enumerate(first)]
        obs = np.zeros((count, ROWS, *first[0].shape[1:]), first[0].dtype)
        for share, rows in zip(self._shares, first, strict=True):
            obs[index_of(share)] = rows
        controller = Controller(self._action_chunk)
        while any(len(done) < self._num_episodes for done in results) and not should_stop():
            active = episode < self._num_episodes
            active[:, self._num_slots :], active[len(rollouts) :] = False, False
            needs_plan = (active & controller.begins_chunk(elapsed)).any(axis=1)
            decide = partial(_act, policies, keys, obs, episode, elapsed, needs_plan)
            actions = controller.act(elapsed, decide, active)
            for rollout, slot in np.argwhere(active & (episode < self._num_recorded)):
                recorded = actions_of[rollout][episode[rollout, slot]]
                del recorded[elapsed[rollout, slot] :]  # a worker was restarted
                recorded.append(actions[rollout, slot].copy())
            arguments = [(actions[index_of(share)],) for share in self._shares]
            answers = self._workers.try_call("step", arguments, self._timeout)
            elapsed += 1
            for worker, (share, answer) in enumerate(zip(self._shares, answers, strict=True)):
                if isinstance(answer, WorkerError):
                    obs[index_of(share)] = restarted(worker, answer)
                    continue
                obs[index_of(share)], finished = answer
                for (rollout, slot), result in finished:
                    results[rollout][int(episode[rollout, slot])] = result
                    episode[rollout, slot] += self._num_slots
                    elapsed[rollout, slot] = 0
                    on_progress(sum(map(len, results)))
        complete = [tuple(done[i] for i in sorted(done)) for done in results]
        recorded = [tuple(np.array(one) for one in of_rollout) for of_rollout in actions_of]
        found = map(Evaluation, (one.step for one in rollouts), complete, recorded)
        return [one if len(one.episodes) == self._num_episodes else None for one in found]


def on_cpu(policy: Policy) -> Policy:
    """Copy the policy to the host's first CPU device, or on its own device if JAX has no CPU device."""
    try:
        return jax.device_put(jax.device_get(policy), jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX is configured for accelerators only
        return jax.tree.map(jnp.copy, policy)


@jax.jit
def _stacked(policies: Sequence[Policy]) -> Policy:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *policies)


@jax.jit
def _act(policies: Policy, keys, obs, episode, elapsed, needs_plan):
    """Return the actions of every row of the rollouts that need a plan, and zeros for the others."""

    def act_rollout(rollout: Any):
        policy, key, obs, episode, elapsed, needs_plan = rollout

        def act(obs, episode, elapsed):
            return policy.act(obs, jax.random.fold_in(jax.random.fold_in(key, episode), elapsed))

        act_rows = lambda: jax.vmap(act)(obs, episode, elapsed)  # noqa: E731
        result = jax.eval_shape(act_rows)
        return jax.lax.cond(needs_plan, act_rows, lambda: jnp.zeros(result.shape, result.dtype))

    return jax.lax.map(act_rollout, (policies, keys, obs, episode, elapsed, needs_plan))


# --- Beside training ---


class EvaluationRequest(NamedTuple):
    """A requested evaluation: run of the fleet, training step and policy."""

    run: int
    step: int
    policy: Policy
    seconds: float  # the run's clock at that step


class BackgroundEvaluator:
    """Thread that evaluates policies during training, one group after another. A context manager.

    The policies act on the CPU: a step of the environments should not wait until the accelerator finishes its updates.
    """

    def __init__(self, evaluator: Evaluator, seeds: Sequence[int], env_names: Sequence[str]):
        self._evaluator, self._seeds, self._env_names = evaluator, seeds, env_names
        self._requests: queue.SimpleQueue[Sequence[EvaluationRequest]] = queue.SimpleQueue()  # [] ends it
        self._answers: queue.SimpleQueue[tuple[EvaluationRequest, Evaluation] | BaseException] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="evaluation", daemon=True)
        self.pending: list[EvaluationRequest] = []
        self.episodes_done = 0

    def __enter__(self) -> "BackgroundEvaluator":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._requests.put([])
        self._thread.join(STOP_TIMEOUT_S)
        while self._thread.is_alive():  # it is blocked by an environment
            self._evaluator.kill()
            self._thread.join(0.1)

    def submit(self, requests: Sequence[EvaluationRequest]) -> None:
        """Request evaluations; `pending` holds them until `finished` has yielded them."""
        self.pending += (new := [request._replace(policy=on_cpu(request.policy)) for request in requests])
        for group in self._evaluator.groups(new):
            self._requests.put(group)

    def finished(self, wait: float = 0.0) -> Iterator[tuple[EvaluationRequest, Evaluation]]:
        """Yield the finished evaluations in the order of their requests; wait up to `wait` seconds for the first.
        Re-raises the exception of an evaluation."""
        with contextlib.suppress(queue.Empty):
            while self.pending:
                answer = self._answers.get(timeout=wait) if wait else self._answers.get_nowait()
                wait = 0.0
                if isinstance(answer, BaseException):
                    raise answer
                self.pending = [request for request in self.pending if request is not answer[0]]
                self.episodes_done = 0
                yield answer

    def _work(self) -> None:
        count = partial(setattr, self, "episodes_done")
        while (group := self._requests.get()) and not self._stopping.is_set():
            rollouts = [Rollout(r.policy, self._seeds[r.run], r.step, self._env_names[r.run]) for r in group]
            try:
                evaluations = self._evaluator.rollout(rollouts, count, self._stopping.is_set)
            except BaseException as error:
                self._answers.put(error)
                return
            for request, evaluation in zip(group, evaluations, strict=True):
                if evaluation is not None:
                    self._answers.put((request, evaluation))
