"""The training loop of a fleet: advance, log, evaluate, save, stop.

A run's step counts gradient steps offline, and environment steps from there on. A gradient step depends on the agents,
the configurations and the data alone, so a stopped fleet resumes exactly; online, the interrupted episodes restart.
"""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from floq.agent.policy import Policy
from floq.analysis.health import health_warnings
from floq.analysis.metrics import primary_score
from floq.analysis.results import scores
from floq.data.replay import ReplaySnapshot
from floq.evaluation.background import BackgroundEvaluator, EvaluationRequest
from floq.evaluation.held_out import HeldOutEvaluator
from floq.runs import checkpoint
from floq.runs.checkpoint import prune
from floq.runs.config import Config
from floq.training.divergence import Divergences
from floq.training.fleet import Fleet
from floq.training.online import Online
from floq.training.run_logger import RunLogger
from floq.training.schedule import Clocks, Rate, Schedule
from floq.utils.errors import Failed, Interrupted
from floq.utils.progress import Display

MAX_PENDING = 2  # evaluations of the fleet that may wait; then training waits for them


class Loop:
    """Trains a fleet of runs from their present step to the last.

    Args:
        loggers: the runs, with logs that end at their step. They share numbers of steps, intervals and episodes.
        fleet: their agents, with the data.
        evaluator: runs episodes beside the training; without an environment, evaluates on held-out data.
        display: shows progress.
        clocks: time spent so far, from the checkpoint; empty for fresh runs.
        started: when this process began with the runs, by `time.monotonic`.
        step: the present step of the runs.
        recorded: for each run its replay, where it has one.
    """

    def __init__(
        self,
        loggers: Sequence[RunLogger],
        fleet: Fleet,
        evaluator: BackgroundEvaluator | Sequence[HeldOutEvaluator],
        display: Display,
        clocks: Mapping[str, float],
        started: float,
        step: int = 0,
        recorded: Sequence[ReplaySnapshot | None] = (),
    ):
        self.loggers, self.fleet = loggers, fleet
        self._config: Config = loggers[0].config
        self._display = display
        self._clocks = Clocks(clocks, started)
        self._step, self._schedule = step, Schedule(self._config)
        self._divergences = Divergences(loggers, fleet, self._schedule, display, self._save_run)
        self._evaluations = Evaluations(loggers, fleet, evaluator, display, self._clocks)
        self._saved_at, self._saved_step = started, step or None
        self._logged_at, self._logged_step = time.monotonic(), step
        self._online: Online | None = None  # from the first environment step on
        self._recorded = list(recorded) or [None] * len(loggers)
        self._owes_rows = False  # whether rows of this step are still to be written
        self._warned: set[tuple[int, str]] = set()  # runs, and what was warned of

    def run(self, received: list[int], pending: Sequence[Mapping[int, Policy]] = ()) -> None:
        """Train to the last step.

        Args:
            received: signals appear here.
            pending: for each run by step, the policies of evaluations that the checkpoint says were not finished.

        Raises:
            Interrupted: a signal appeared in `received`; a checkpoint is written before.
            Failed: an environment failed. A checkpoint is written before any error is raised. Runs that diverged raise
                nothing; see `diverged`.
        """
        schedule, first, last = self._schedule, self._step, self._schedule.last_step
        with contextlib.ExitStack() as workers, self._saved_if_it_fails():
            self._evaluations.begin_again(pending)
            if first and schedule.evaluation_due(first):
                self._evaluations.complete(first, self._active, received)
            with self._display.bar("train", last, start=first) as update_bar:
                while self._step < last and self._active and not received:
                    if schedule.is_online(self._step):  # environment steps, with gradient steps beside them
                        infos = self._advance_online(workers, received)
                    else:  # gradient steps on the data
                        stop = schedule.next_stop(self._step, self._clocks.updates.per_call())
                        with self._clocks.timed(self._clocks.updates, stop - self._step):
                            infos = self.fleet.advance(stop - self._step)
                        self._step = stop
                    infos = self._divergences.handle(self._step, infos)
                    self._log_and_evaluate(infos, received)
                    self._evaluations.take()
                    self._evaluations.wait(MAX_PENDING * len(self.loggers), received)
                    if schedule.save_due(self._step) or self._save_is_late or received:
                        self._save()
                    update_bar(
                        self._step, line=schedule.due(self._step, self._config.eval_interval), **self._state(infos)
                    )
            waiting = len(self._evaluations.pending)
            self._evaluations.wait(0, received)
            if self._saved_step != self._step or waiting != len(self._evaluations.pending):
                self._save()  # the signal came after this step's turn, or what is pending, and the clock, changed since
            if received:
                name = signal.Signals(received[0]).name
                raise Interrupted(f"stopped by {name} {self._stopped}", received[0])

    def _log_and_evaluate(self, infos: list[dict[str, float]], received: list[int]) -> None:
        """Write the row of the log and begin the evaluation that are due at this step: a run that is resumed from here
        does neither again."""
        self._owes_rows = True
        if self._schedule.log_due(self._step):
            now = time.monotonic()
            self._log(self._step, infos, (now - self._logged_at) / (self._step - self._logged_step))
            self._logged_at, self._logged_step = now, self._step
        if self._schedule.evaluation_due(self._step):
            self._evaluations.begin(self._step, self._active, received)
        self._owes_rows = False

    @contextlib.contextmanager
    def _saved_if_it_fails(self) -> Iterator[None]:
        """Write a checkpoint before an error is raised, unless rows of this step are missing: a run that resumes from
        that checkpoint would never write them."""
        try:
            yield
        except (Interrupted, OSError):
            raise  # saved already; or the disk failed, and rows may be missing
        except Exception as error:
            if self._owes_rows:
                raise
            self._save()
            if isinstance(error, Failed):
                raise Failed(f"{error}; {self._stopped}") from error
            self._display.note(f"saved   {self._stopped}")
            raise

    @property
    def _stopped(self) -> str:
        folders = " ".join(str(self.loggers[run].run.folder) for run in self._active)
        return f"at step {self._step}; go on with floq train --resume {folders}"

    @property
    def _active(self) -> list[int]:
        """The runs that have not diverged and stopped."""
        return self._divergences.active

    @property
    def diverged(self) -> dict[int, str]:
        """By run, a message about each that diverged and stopped."""
        return self._divergences.stopped

    def summary(self, run: int) -> dict[str, Any]:
        """Return the content of a run's `summary.json`."""
        found = scores(self.loggers[run].scores)
        plays = self._config.env_name is not None and self._config.eval_interval > 0
        return {
            "success": found.pop("success", None),
            "eval_episodes": self._config.eval_episodes if plays else None,
            "success_timing": self._config.success_timing if plays else None,
            "updates_per_second": self._updates_per_second,
            "env_steps_per_second": self._clocks.env_steps.per_second,
            "seconds": self._clocks.seconds,
            "seconds_to_first_update": self._clocks.to_first_update,
            "steps": self._step,
            "runs_in_fleet": len(self.loggers),
            **found,
        }

    def _advance_online(self, workers: contextlib.ExitStack, received: list[int]) -> list[dict[str, float]]:
        """Take environment steps, with updates beside them, to the next stop. If an environment fails on the way, write
        the rows due at the step reached before raising."""
        c = self._config
        if self._online is None:
            configs, done = [logger.config for logger in self.loggers], self._step - c.offline_steps
            explored = [logger.last_row for logger in self.loggers]
            online = Online(configs, self.fleet, done, self._recorded, self._display, explored)
            self._online = workers.enter_context(online)
            self._recorded = []
        first, rate = self._step, self._online_rate
        stop = self._schedule.next_stop(first, rate.per_call(c.num_envs))
        with self._clocks.timed(rate, stop - first):
            try:
                self._online.advance((stop - first) // c.num_envs)
            except Exception:
                self._step = c.offline_steps + self._online.steps
                if self._step > first:
                    self._log_and_evaluate(self._online.infos(), received)
                raise
            self._step = stop
            return self._online.infos()

    @property
    def _online_rate(self) -> Rate:
        """The rate of the coming environment steps; those of the warm-up are faster and counted separately."""
        c, clocks = self._config, self._clocks
        return clocks.warm_up if self._step < c.offline_steps + c.steps_without_updates else clocks.env_steps

    @property
    def _updates_per_second(self) -> float | None:
        """Updates per second of one run (all runs of the fleet update together): offline ones, if there were any."""
        env_steps = self._clocks.env_steps.per_second
        ticks = env_steps and env_steps / self._config.num_envs
        return self._clocks.updates.per_second or (ticks and ticks * self._config.updates_per_tick)

    def _log(self, step: int, infos: list[dict[str, float]], epoch_time: float) -> None:
        times = {"time/epoch_time": epoch_time, "time/total_time": self._clocks.seconds}
        held_out, ranges = self.fleet.validate(), self.fleet.return_ranges()
        for number in self._active:
            logger = self.loggers[number]
            row = _named("training", infos[number]) | _named("validation", held_out[number]) | times
            if self._online is not None:
                row |= self._online.statistics(number)
            logger.log_training(step, row)
            for warning, what in health_warnings(logger.config.agent.flat(), row, ranges[number]).items():
                if (number, warning) not in self._warned:
                    self._warned.add((number, warning))
                    self._display.note(f"warning seed {logger.config.seed}, step {step}: {what}")

    # --- checkpoints ---

    @property
    def _save_is_late(self) -> bool:
        minutes = self._config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes

    def _save(self) -> None:
        replays = self._online.recorded() if self._online is not None else self._recorded
        failed: OSError | None = None
        for run, replay in enumerate(replays):
            if run in self._active:
                try:
                    self._save_run(run, self._step, replay)
                except OSError as error:  # the others are saved all the same
                    failed = failed or error
        if failed:
            raise failed
        self._saved_at, self._saved_step = time.monotonic(), self._step
        if self._config.keep_checkpoints is not None:
            for logger in self.loggers:  # only now: until all have saved, those before are what all have
                prune(logger.run.folder / "checkpoints", self._config.keep_checkpoints)

    def _save_run(self, run: int, step: int, replay: ReplaySnapshot | None = None) -> None:
        logger = self.loggers[run]
        logger.sync()
        waiting = {request.step: request.policy for request in self._evaluations.pending if request.run == run}
        folder, clocks = logger.run.folder / "checkpoints", self._clocks.to_json()
        agent, own = self.fleet.agent(run), {"step": step, "replay": replay}
        checkpoint.save(folder, agent, logger.config, clocks, waiting, **own)

    # --- what is shown ---

    def _state(self, infos: list[dict[str, float]]) -> dict[str, str]:
        """Return the fields of the progress line: means over the fleet."""
        state = {}
        known = [found for logger in self.loggers if (found := primary_score(logger.scores))]
        if known:
            state[known[0][0].short] = f"{np.mean([value for _, value in known]):.3g}"
        if self._online is not None and (rate := self._online_rate.per_second):
            state["env steps/s"] = f"{rate:.0f}"
        elif self._updates_per_second:
            state["updates/s"] = f"{self._updates_per_second:.0f}" + (
                f" x {len(self.loggers)}" if len(self.loggers) > 1 else ""
            )
        if self._evaluations.pending:
            state["evaluating"] = f"step {self._evaluations.pending[0].step}"
        if not self._active or (self._online is not None and not self._online.has_learned):
            return state
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        mean = {name: np.mean([infos[run][metric] for run in self._active]) for name, metric in losses.items()}
        return state | {name: f"{value:.3g}" for name, value in mean.items()}


def _named(prefix: str, info: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in info.items()}


# --- Evaluations ---


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
