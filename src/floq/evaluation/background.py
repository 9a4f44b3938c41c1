"""Evaluation in a background thread during training."""

import contextlib
import functools
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from floq.agent.policy import Policy
from floq.evaluation.rollouts import Evaluation, Evaluator, Rollout, on_cpu

STOP_TIMEOUT_S = 2.0  # for the environments' current step at the end


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
        count = functools.partial(setattr, self, "episodes_done")
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
