"""Evaluations of a fleet: episodes beside the training, or on held-out data."""

from collections.abc import Mapping, Sequence

from floq.agent.policy import Policy
from floq.evaluation.background import BackgroundEvaluator, EvaluationRequest
from floq.evaluation.held_out import HeldOutEvaluator
from floq.training.fleet import Fleet
from floq.training.run_logger import RunLogger
from floq.training.schedule import Clocks
from floq.utils.progress import Display


class Evaluations:
    """Evaluations of the runs of a fleet, each of which becomes a row of its run's eval.csv.

    Args:
        loggers: the runs on disk.
        fleet: their agents.
        evaluator: runs episodes beside the training; or one evaluator of held-out data a run, which runs at once.
        display: shows progress.
        clocks: those of the runs.
    """

    def __init__(
        self,
        loggers: Sequence[RunLogger],
        fleet: Fleet,
        evaluator: BackgroundEvaluator | Sequence[HeldOutEvaluator],
        display: Display,
        clocks: Clocks,
    ):
        self._loggers, self._fleet, self._display, self._clocks = loggers, fleet, display, clocks
        self._background = evaluator if isinstance(evaluator, BackgroundEvaluator) else None
        self._held_out = None if isinstance(evaluator, BackgroundEvaluator) else evaluator

    @property
    def pending(self) -> list[EvaluationRequest]:
        """Evaluations that were begun and have not ended."""
        return self._background.pending if self._background is not None else []

    def begin_again(self, pending: Sequence[Mapping[int, Policy]]) -> None:
        """Restart those that had not ended when the runs were stopped: for each run by step, the policies."""
        waiting = [(at, run, policy) for run, policies in enumerate(pending) for at, policy in policies.items()]
        for at in sorted({at for at, _, _ in waiting}):
            self._submit(at, {run: policy for step, run, policy in waiting if step == at})

    def begin(self, step: int, runs: Sequence[int], received: list[int]) -> None:
        """Evaluate these runs at this step, in the background; or on held-out data, now, unless a signal appears in
        `received`: then a resumed run does so."""
        if self._held_out is not None:
            return self.complete(step, runs, received)
        self._submit(step, {run: self._fleet.agent(run).policy for run in runs})

    def complete(self, step: int, runs: Sequence[int], received: list[int]) -> None:
        """Evaluate on held-out data those of the runs that have no row for this step yet; nothing if they have
        episodes."""
        if self._held_out is None:
            return
        for run in runs:
            if self._is_evaluated(run, step):
                continue
            logger, seconds = self._loggers[run], self._clocks.seconds
            look, agent = self._held_out[run], self._fleet.agent(run)
            evaluation = look(agent, logger.config.seed, step, should_stop=lambda: bool(received))
            if evaluation is not None:
                logger.log_evaluation(evaluation, seconds)

    def take(self, wait: float = 0.0) -> None:
        """Log finished evaluations; wait up to `wait` seconds for the first."""
        if self._background is not None:
            for request, evaluation in self._background.finished(wait):
                self._loggers[request.run].log_evaluation(evaluation, request.seconds)

    def wait(self, most: int, received: list[int]) -> None:
        """Wait until at most `most` are pending, or a signal arrives."""
        if self._background is None or len(self.pending) <= most:
            return
        episodes = self._loggers[0].config.eval_episodes
        total = len(self.pending) - most
        with self._display.bar("evaluate", total * episodes) as update_bar:
            while len(self.pending) > most and not received:
                self.take(wait=0.2)
                finished = total - (len(self.pending) - most)
                done = finished * episodes + self._background.episodes_done
                update_bar(min(done, total * episodes))

    def _is_evaluated(self, run: int, step: int) -> bool:
        return step in self._loggers[run].run.evaluations().get("step", [])

    def _submit(self, step: int, policies: Mapping[int, Policy]) -> None:
        assert self._background is not None
        now = self._clocks.seconds
        waiting = [run for run in policies if not self._is_evaluated(run, step)]
        self._background.submit([EvaluationRequest(run, step, policies[run], now) for run in waiting])
