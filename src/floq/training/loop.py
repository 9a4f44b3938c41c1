"""The loop of a fleet: gradient steps on its data, many per device call, then steps of its environments with updates
beside them; between these logs and checkpoints, beside them evaluations.

A run's step counts gradient steps offline, and environment steps from there on. Everything that a gradient step does
depends on the agents, the configurations and the data alone, so a fleet that was stopped goes on as if it had not been;
online that holds but for the episodes that it was in, which begin anew.
"""

import contextlib
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from floq.agent.policy import Policy
from floq.analysis.health import health_warnings
from floq.analysis.results import headline, scores
from floq.data.replay import ReplaySnapshot
from floq.evaluation.background import Background
from floq.evaluation.held_out import HeldOutEvaluator
from floq.runs import checkpoint
from floq.runs.checkpoint import prune
from floq.runs.config import Config
from floq.training.divergence import Divergences
from floq.training.evaluations import Evaluations
from floq.training.fleet import Fleet
from floq.training.online import Online
from floq.training.run_logger import RunLogger
from floq.training.schedule import Clocks, Rate, Schedule
from floq.utils.errors import Failed, Interrupted
from floq.utils.progress import Display

MAX_PENDING = 2  # evaluations of the fleet that may wait; then training waits for them


class Loop:
    """A fleet of runs from the step that they are at to their last.

    Args:
        loggers: the runs, with logs that end at their step. They agree in all that the loop goes by: numbers of
            steps, intervals, episodes.
        fleet: their agents, with the data.
        evaluator: plays episodes beside the training; or, without an environment, looks at held-out data.
        sizes: how many numbers an observation and an action have.
        clocks: what the checkpoint says of time spent; empty for fresh runs.
        started: when this process began with the runs, by `time.monotonic`.
        step: where the runs are.
        recorded: for each run its replay, where it has one.
    """

    def __init__(
        self,
        loggers: Sequence[RunLogger],
        fleet: Fleet,
        evaluator: Background | Sequence[HeldOutEvaluator],
        sizes: tuple[int, int],
        display: Display,
        clocks: Mapping[str, float],
        started: float,
        step: int = 0,
        recorded: Sequence[ReplaySnapshot | None] = (),
    ):
        self.loggers, self.fleet = loggers, fleet
        self._config: Config = loggers[0].config
        self._sizes, self._display = sizes, display
        self._clocks = Clocks(clocks, started)
        self._step, self._schedule = step, Schedule(self._config)
        self._divergences = Divergences(loggers, fleet, self._schedule, display, self._save_run)
        self._evaluations = Evaluations(loggers, fleet, evaluator, display, self._clocks)
        self._saved_at = started
        self._online: Online | None = None  # from the first environment step on
        self._recorded = list(recorded) or [None] * len(loggers)
        self._owes_rows = False  # whether rows of this step are still to be written

    def go(self, received: list[int], pending: Sequence[Mapping[int, Policy]] = ()) -> None:
        """Train to the end.

        Args:
            received: signals appear here.
            pending: for each run by step, the policies of evaluations that the checkpoint says were not finished.

        Raises:
            Interrupted: a signal appeared in `received`; a checkpoint is written before.
            Failed: an environment failed; likewise, as before whatever else is raised. Runs that diverged raise
                nothing; see `diverged`.
        """
        with contextlib.ExitStack() as workers:
            try:
                self._train(received, pending, workers)
            except (Interrupted, OSError):
                raise  # saved already; or the disk failed, and rows may be missing which a checkpoint would skip
            except Exception as error:
                if self._owes_rows:  # whoever went on from here would miss them
                    raise
                self._save()
                if isinstance(error, Failed):
                    raise Failed(f"{error}; {self._stopped}") from error
                self._display.note(f"saved   {self._stopped}")
                raise

    def _train(
        self, received: list[int], pending: Sequence[Mapping[int, Policy]], workers: contextlib.ExitStack
    ) -> None:
        first, last, due = self._step, self._schedule.last_step, self._schedule
        saved_step = first or None
        self._logged_at, self._logged_step = time.monotonic(), first
        self._evaluations.begin_again(pending)
        if first and due.evaluation_due(first):
            self._evaluations.complete(first, self._going, received)
        with self._display.bar("train", last, start=first) as update_bar:
            while self._step < last and self._going and not received:
                infos = self._advance_online(workers, received) if due.is_online(self._step) else self._advance()
                infos = self._divergences.handle(self._step, infos)
                self._do_what_is_due(infos, received)
                self._evaluations.take()
                self._evaluations.wait(MAX_PENDING * len(self.loggers), received)
                if due.save_due(self._step) or self._save_is_late or received:
                    self._save()
                    saved_step = self._step
                update_bar(self._step, line=due.due(self._step, self._config.eval_interval), **self._state(infos))
        waiting = len(self._evaluations.pending)
        self._evaluations.wait(0, received)
        if saved_step != self._step or waiting != len(self._evaluations.pending):
            self._save()  # the signal came after this step's turn, or what is pending, and the clock, changed since
        if received:
            name = signal.Signals(received[0]).name
            raise Interrupted(f"stopped by {name} {self._stopped}", received[0])

    def _do_what_is_due(self, infos: list[dict[str, float]], received: list[int]) -> None:
        """At this step: write the row of the log, begin the evaluation. Who goes on from here does neither again."""
        self._owes_rows = True
        if self._schedule.log_due(self._step):
            now = time.monotonic()
            epoch_time = (now - self._logged_at) / (self._step - self._logged_step)
            self._log(self._step, infos, epoch_time)
            self._logged_at, self._logged_step = now, self._step
        if self._schedule.evaluation_due(self._step):
            self._evaluations.begin(self._step, self._going, received)
        self._owes_rows = False

    @property
    def _stopped(self) -> str:
        folders = " ".join(str(self.loggers[run].run.folder) for run in self._going)
        return f"at step {self._step}; go on with floq train --resume {folders}"

    @property
    def _going(self) -> list[int]:
        """The runs that have not diverged and stopped."""
        return self._divergences.going

    @property
    def diverged(self) -> dict[int, str]:
        """By run, what is to be said of those that diverged and stopped."""
        return self._divergences.stopped

    def summary(self, run: int) -> dict[str, Any]:
        """What `summary.json` of a run says at the end."""
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

    # --- the steps ---

    def _advance(self) -> list[dict[str, float]]:
        """Gradient steps on the data, to the next stop. Returns each run's info of the last one."""
        rate, before = self._clocks.updates, time.monotonic()
        stop = self._schedule.next_stop(self._step, rate.per_call())
        infos = self.fleet.advance(stop - self._step)
        made, self._step = stop - self._step, stop
        self._clocks.count(rate, made, before)
        return infos

    def _advance_online(self, workers: contextlib.ExitStack, received: list[int]) -> list[dict[str, float]]:
        """Environment steps with updates beside them, to the next stop. Where an environment fails on the way, what is
        due at the step that it led to is done before that is raised."""
        c = self._config
        if self._online is None:
            configs, done = [logger.config for logger in self.loggers], self._step - c.offline_steps
            explored = [logger.last_row for logger in self.loggers]
            online = Online(configs, self.fleet, self._sizes, done, self._recorded, self._display, explored)
            self._online = workers.enter_context(online)
            self._recorded = []
        first, before, rate = self._step, time.monotonic(), self._online_rate
        stop = self._schedule.next_stop(first, rate.per_call(c.num_envs))
        try:
            self._online.advance((stop - first) // c.num_envs)
        except Exception:
            self._step = c.offline_steps + self._online.steps
            if self._step > first:
                self._do_what_is_due(self._online.infos(), received)
            raise
        self._step, infos = stop, self._online.infos()
        self._clocks.count(rate, stop - first, before)
        return infos

    @property
    def _online_rate(self) -> Rate:
        """Of the environment steps from here on: those of the warm-up are faster, and must not be mixed with others."""
        c, clocks = self._config, self._clocks
        return clocks.warm_up if self._step < c.offline_steps + c.steps_without_updates else clocks.env_steps

    @property
    def _updates_per_second(self) -> float | None:
        """Of one run; all runs of the fleet make them at the same time. Those offline, if there were any."""
        env_steps = self._clocks.env_steps.per_second
        ticks = env_steps and env_steps / self._config.num_envs
        return self._clocks.updates.per_second or (ticks and ticks * self._config.updates_per_tick)

    def _log(self, step: int, infos: list[dict[str, float]], epoch_time: float) -> None:
        times = {"time/epoch_time": epoch_time, "time/total_time": self._clocks.seconds}
        held_out, ranges = self.fleet.validate(), self.fleet.return_ranges()
        for number in self._going:
            logger = self.loggers[number]
            row = _named("training", infos[number]) | _named("validation", held_out[number]) | times
            if self._online is not None:
                row |= self._online.statistics(number)
            logger.log_training(step, row)
            for sign, what in health_warnings(logger.config.agent.flat(), row, ranges[number]).items():
                if logger.is_new(sign):
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
            if run in self._going:
                try:
                    self._save_run(run, self._step, replay)
                except OSError as error:  # the others are saved all the same
                    failed = failed or error
        if failed:
            raise failed
        self._saved_at = time.monotonic()
        if self._config.keep_checkpoints is not None:
            for logger in self.loggers:  # only now: until all have saved, those before are what all have
                prune(logger.run.folder / "checkpoints", self._config.keep_checkpoints)

    def _save_run(self, run: int, step: int, replay: ReplaySnapshot | None = None) -> None:
        logger = self.loggers[run]
        logger.sync()
        waiting = {request.step: request.policy for request in self._evaluations.pending if request.run == run}
        folder, clocks = logger.run.folder / "checkpoints", self._clocks.to_json()
        agent, own = self.fleet.agent(run), {"step": step, "replay": replay}
        checkpoint.save(folder, agent, self._sizes, logger.config, clocks, waiting, **own)

    # --- what is shown ---

    def _state(self, infos: list[dict[str, float]]) -> dict[str, str]:
        """What the progress line shows: means over the fleet."""
        state = {}
        known = [headline(logger.scores) for logger in self.loggers if logger.scores]
        if known:
            state[known[0][0]] = f"{np.mean([value for _, value in known]):.3g}"
        if self._online is not None and (rate := self._online_rate.per_second):
            state["env steps/s"] = f"{rate:.0f}"
        elif self._updates_per_second:
            state["updates/s"] = f"{self._updates_per_second:.0f}" + (
                f" x {len(self.loggers)}" if len(self.loggers) > 1 else ""
            )
        if self._evaluations.pending:
            state["evaluating"] = f"step {self._evaluations.pending[0].step}"
        if not self._going or (self._online is not None and not self._online.has_learned):
            return state
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        mean = {name: np.mean([infos[run][metric] for run in self._going]) for name, metric in losses.items()}
        return state | {name: f"{value:.3g}" for name, value in mean.items()}


def _named(prefix: str, info: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in info.items()}
