"""Evaluations beside the training, in a thread of their own."""

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from floq.agent.policy import Policy
from floq.evaluation.rollouts import Evaluation, Evaluator, Rollout, on_cpu

STOP_TIMEOUT_S = 2.0  # seconds that a step which is under way at the end may go on for


class Request(NamedTuple):
    """An evaluation to come: which of the fleet's runs, at which step, with what policy."""

    run: int
    step: int
    policy: Policy
    seconds: float  # the run's clock at that step


class Background:
    """Evaluations that go on while the training does, group after group, in a thread of their own. A context manager.

    The policies act on the CPU, whatever trains them: they are small, and a step of the environments should not wait
    for the accelerator to come to the end of its chunk.
    """

    def __init__(self, evaluator: Evaluator, seeds: Sequence[int], env_names: Sequence[str]):
        self._evaluator, self._seeds, self._env_names = evaluator, seeds, env_names
        self._requests: queue.SimpleQueue[Sequence[Request]] = queue.SimpleQueue()  # an empty group is the last
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
        self._requests.put([])
        self._thread.join(STOP_TIMEOUT_S)
        while self._thread.is_alive():  # it waits for an environment that hangs
            self._evaluator.kill()
            self._thread.join(0.1)

    def submit(self, requests: Sequence[Request]) -> None:
        """Ask for evaluations; `pending` holds them until `finished` has handed them out."""
        self.pending += (here := [request._replace(policy=on_cpu(request.policy)) for request in requests])
        for group in self._evaluator.groups(here):
            self._requests.put(group)

    def finished(self, wait: float = 0.0) -> Iterator[tuple[Request, Evaluation]]:
        """The evaluations that have come to their end, in the order they were asked for; waits up to `wait` seconds for
        the first. Raises what an evaluation raised."""
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
        while (group := self._requests.get()) and not self._stopping.is_set():
            rollouts = [Rollout(r.policy, self._seeds[r.run], r.step, self._env_names[r.run]) for r in group]
            try:
                evaluations = self._evaluator.rollout(rollouts, self._count, self._stopping.is_set)
            except BaseException as error:
                self._answers.put(error)
                return
            for request, evaluation in zip(group, evaluations, strict=True):
                if evaluation is not None:
                    self._answers.put((request, evaluation))

    def _count(self, done: int) -> None:
        self.episodes_done = done
