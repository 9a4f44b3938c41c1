"""The training loop of a fleet: advance, log, evaluate, save, stop.

A run's step counts gradient steps offline, and environment steps from there on. A gradient step depends on the agents,
the configurations and the data alone, so a stopped fleet resumes exactly; online, the interrupted episodes restart.
"""

import contextlib
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.analysis.health import health_warnings
from floq.analysis.metrics import primary_score, with_score
from floq.analysis.results import scores
from floq.analysis.video import Films, Take
from floq.data.replay import ReplaySnapshot
from floq.evaluation.held_out import HeldOut, HeldOutEvaluation
from floq.evaluation.rollouts import BackgroundEvaluator, Evaluation, EvaluationRequest
from floq.runs import checkpoint
from floq.runs.checkpoint import Checkpoint, prune
from floq.runs.config import Config
from floq.runs.loggers import CsvLogger, MetricSinks
from floq.runs.run import Run
from floq.training.divergence import Divergences
from floq.training.fleet import Fleet
from floq.training.online import Online
from floq.training.schedule import Clocks, Rate, Schedule
from floq.utils import files
from floq.utils.errors import Failed, Interrupted
from floq.utils.progress import Display

MAX_PENDING = 2  # evaluations of the fleet that may wait; then training waits for them


class Found(NamedTuple):
    """The state that a run goes on from: its checkpoint and its replay; neither if it begins."""

    saved: Checkpoint | None = None
    replay: ReplaySnapshot | None = None

    @property
    def step(self) -> int:
        return self.saved.step if self.saved else 0


class Loop:
    """Trains a fleet of runs, whose logs end at their present step, to the last.

    Args:
        loggers, fleet: the runs, which share numbers of steps, intervals and episodes; and their agents.
        evaluator: runs episodes beside the training; without an environment, evaluates on held-out data.
        display: shows progress.
        started: when this process began with the runs, by `time.monotonic`.
        found: for each run what it goes on from, at the same step.
        received: signals appear here.
        films: takes the films of evaluations, if any are to be made.
    """

    def __init__(
        self,
        loggers: Sequence["RunLogger"],
        fleet: Fleet,
        evaluator: BackgroundEvaluator | Sequence[HeldOut],
        display: Display,
        started: float,
        found: Sequence[Found],
        received: list[int],
        films: Films | None = None,
    ):
        self.loggers, self.fleet = loggers, fleet
        self._config: Config = loggers[0].config
        self._display, self._received = display, received
        first = found[0].saved
        self._clocks = Clocks(first.clocks if first else {}, started)
        self._step, self._schedule = found[0].step, Schedule(self._config)
        runs = [logger.run for logger in loggers]
        self._divergences = Divergences(runs, fleet, self._schedule, display, self._save_run)
        self.diverged = self._divergences.stopped
        """By run, a message about each that diverged and stopped."""
        self._evaluations = Evaluations(loggers, fleet, evaluator, display, self._clocks, received, films)
        self._saved_at, self._saved_step = started, self._step or None
        self._logged_at, self._logged_step = time.monotonic(), self._step
        self._online: Online | None = None  # from the first environment step on
        self._pending = [one.saved.pending if one.saved else {} for one in found]
        self._recorded = [one.replay for one in found]
        self._owes_rows = False  # whether rows of this step are still to be written
        self._warned: set[tuple[int, str]] = set()  # runs, and what was warned of

    def run(self) -> None:
        """Train to the last step.

        Raises:
            Interrupted: a signal was received; a checkpoint is written before.
            Failed: an environment failed. A checkpoint is written before any error is raised. Runs that diverged raise
                nothing; see `diverged`.
        """
        schedule, evaluations, received = self._schedule, self._evaluations, self._received
        first, last = self._step, schedule.last_step
        with contextlib.ExitStack() as workers, self._saved_if_it_fails():
            for step in sorted({step for policies in self._pending for step in policies}):
                evaluations.submit(step, {run: own[step] for run, own in enumerate(self._pending) if step in own})
            if first and schedule.evaluation_due(first):
                evaluations.begin(first, self._active)  # those that have no row for this step yet
            with self._display.bar("train", last, start=first) as update_bar:
                while self._step < last and self._active and not received:
                    if schedule.is_online(self._step):  # environment steps, with gradient steps beside them
                        infos = self._advance_online(workers)
                    else:  # gradient steps on the data
                        stop = schedule.next_stop(self._step, self._clocks.updates.per_call())
                        with self._clocks.timed(self._clocks.updates, stop - self._step):
                            infos = self.fleet.advance(stop - self._step)
                        self._step = stop
                    infos = self._divergences.handle(self._step, infos)
                    self._log_and_evaluate(infos)
                    evaluations.take()
                    evaluations.wait(MAX_PENDING * len(self.loggers))
                    if schedule.save_due(self._step) or self._save_is_late or received:
                        self._save()
                    row_due = schedule.due(self._step, self._config.eval_interval)
                    update_bar(self._step, line=row_due, **self._state(infos))
            waiting = len(evaluations.pending)
            evaluations.wait(0)
            evaluations.finish_films()
            if self._saved_step != self._step or waiting != len(evaluations.pending):
                self._save()  # the signal came after this step's turn, or what is pending, and the clock, changed since
            if received:
                name = signal.Signals(received[0]).name
                raise Interrupted(f"stopped by {name} {self._stopped}", received[0])

    def _log_and_evaluate(self, infos: list[dict[str, float]]) -> None:
        """Write the row of the log and begin the evaluation that are due at this step: a run that is resumed from here
        does neither again."""
        self._owes_rows = True
        if self._schedule.log_due(self._step):
            now = time.monotonic()
            self._log(self._step, infos, (now - self._logged_at) / (self._step - self._logged_step))
            self._logged_at, self._logged_step = now, self._step
        if self._schedule.evaluation_due(self._step):
            self._evaluations.begin(self._step, self._active)
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
        return self._divergences.active

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

    def _advance_online(self, workers: contextlib.ExitStack) -> list[dict[str, float]]:
        """Take environment steps, with updates beside them, to the next stop. If an environment fails on the way, write
        the rows due at the step reached before raising."""
        c = self._config
        if self._online is None:
            configs, rows = [[getattr(one, name) for one in self.loggers] for name in ("config", "last_row")]
            done = self._step - c.offline_steps
            online = Online(configs, self.fleet, done, self._recorded, self._display, rows)
            self._online, self._recorded = workers.enter_context(online), []
        first, rate = self._step, self._online_rate
        stop = self._schedule.next_stop(first, rate.per_call(c.num_envs))
        with self._clocks.timed(rate, stop - first):
            try:
                self._online.advance((stop - first) // c.num_envs)
            except Exception:
                self._step = c.offline_steps + self._online.steps
                if self._step > first:
                    self._log_and_evaluate(self._online.fleet.infos())
                raise
            self._step = stop
            return self._online.fleet.infos()

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
            losses = {"training": infos[number], "validation": held_out[number]}
            row = {f"{part}/{name}": x for part, info in losses.items() for name, x in info.items()} | times
            if self._online is not None:
                row |= self._online.statistics(number)
            logger.log_training(step, row)
            for warning, what in health_warnings(logger.config.agent.flat(), row, ranges[number]).items():
                if (number, warning) not in self._warned:
                    self._warned.add((number, warning))
                    self._display.note(f"warning seed {logger.config.seed}, step {step}: {what}")

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
        folder, agent, clocks = logger.run.folder / "checkpoints", self.fleet.agent(run), self._clocks.to_json()
        checkpoint.save(folder, agent, logger.config, clocks, waiting, step=step, replay=replay)

    def _state(self, infos: list[dict[str, float]]) -> dict[str, str]:
        """Return the fields of the progress line: means over the fleet."""
        state = {}
        if known := [found for logger in self.loggers if (found := primary_score(logger.scores))]:
            state[known[0][0].short] = f"{np.mean([value for _, value in known]):.3g}"
        if self._online is not None and (rate := self._online_rate.per_second):
            state["env steps/s"] = f"{rate:.0f}"
        elif self._updates_per_second:
            times = f" x {len(self.loggers)}" if len(self.loggers) > 1 else ""
            state["updates/s"] = f"{self._updates_per_second:.0f}{times}"
        if self._evaluations.pending:
            state["evaluating"] = f"step {self._evaluations.pending[0].step}"
        if not self._active or (self._online is not None and not self._online.fleet.has_learned):
            return state
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        mean = {name: np.mean([infos[run][metric] for run in self._active]) for name, metric in losses.items()}
        return state | {name: f"{value:.3g}" for name, value in mean.items()}


# --- Evaluations ---


class Evaluations:
    """Evaluations of the runs of a fleet, each of which becomes a row of its run's eval.csv: in the background, or at
    once if they are on held-out data. See `Loop` for the arguments."""

    def __init__(
        self,
        loggers: Sequence["RunLogger"],
        fleet: Fleet,
        evaluator: BackgroundEvaluator | Sequence[HeldOut],
        display: Display,
        clocks: Clocks,
        received: list[int],
        films: Films | None,
    ):
        self._films = films
        self._loggers, self._fleet, self._display, self._clocks = loggers, fleet, display, clocks
        self._received, self._evaluator = received, evaluator

    @property
    def pending(self) -> list[EvaluationRequest]:
        """Evaluations that were begun and have not ended."""
        return self._evaluator.pending if isinstance(self._evaluator, BackgroundEvaluator) else []

    def begin(self, step: int, runs: Sequence[int]) -> None:
        """Evaluate those of these runs that are not evaluated at this step. On held-out data, a signal ends that: then
        a resumed run does so."""
        if isinstance(self._evaluator, BackgroundEvaluator):
            return self.submit(step, {run: self._fleet.agent(run).policy for run in runs})
        for run in runs:
            if not self._is_evaluated(run, step):
                logger, seconds = self._loggers[run], self._clocks.seconds
                own = self._fleet.agent(run), logger.config.seed, step
                if evaluation := self._evaluator[run](*own, should_stop=lambda: bool(self._received)):
                    logger.log_evaluation(evaluation, seconds)

    def submit(self, step: int, policies: Mapping[int, Policy]) -> None:
        """Evaluate policies of runs at this step in the background, unless that is done or begun."""
        assert isinstance(self._evaluator, BackgroundEvaluator)
        begun, now = {request.run for request in self.pending if request.step == step}, self._clocks.seconds
        waiting = [run for run in policies if run not in begun and not self._is_evaluated(run, step)]
        self._evaluator.submit([EvaluationRequest(run, step, policies[run], now) for run in waiting])

    def take(self, wait: float = 0.0) -> None:
        """Log finished evaluations; wait up to `wait` seconds for the first."""
        if isinstance(self._evaluator, BackgroundEvaluator):
            for request, evaluation in self._evaluator.finished(wait):
                self._loggers[request.run].log_evaluation(evaluation, request.seconds)
                self._film(self._loggers[request.run], evaluation)
        if self._films is not None:
            self._films.go_on()

    def _film(self, logger: "RunLogger", evaluation: Evaluation) -> None:
        """Queue a film of the recorded episodes."""
        if self._films is not None:
            config, path = logger.config, logger.run.folder / "plots" / f"film_{evaluation.step}.mp4"
            path.parent.mkdir(exist_ok=True)
            seeds = ((config.seed, evaluation.step, number) for number in range(len(evaluation.actions)))
            self._films.add(path, config.task, list(map(Take, seeds, evaluation.actions)))

    def finish_films(self) -> None:
        """Wait until all films are made, or a signal arrives."""
        if self._films:
            self._display.note("filming")
        while self._films and not self._received:
            self._films.go_on(wait=0.2)

    def wait(self, most: int) -> None:
        """Wait until at most `most` are pending, or a signal arrives."""
        if not isinstance(self._evaluator, BackgroundEvaluator) or len(self.pending) <= most:
            return
        episodes, begun = self._loggers[0].config.eval_episodes, len(self.pending)
        with self._display.bar("evaluate", (begun - most) * episodes) as update_bar:
            while len(self.pending) > most and not self._received:
                self.take(wait=0.2)
                done = (begun - len(self.pending)) * episodes + self._evaluator.episodes_done
                update_bar(min(done, (begun - most) * episodes))

    def _is_evaluated(self, run: int, step: int) -> bool:
        return step in self._loggers[run].run.evaluations().get("step", [])


class RunLogger:
    """Writes the logs of one run, to its folder and to the sinks it asks for, from `step` on."""

    def __init__(self, run: Run, step: int = 0):
        self.run, self.config = run, run.config
        self._sinks = MetricSinks(run.folder, run.config, step)
        self.keys = Keys.of(run.config.seed)
        self.train_log, self.eval_log = CsvLogger(run.folder / "train.csv"), CsvLogger(run.folder / "eval.csv")
        self.scores = {name: column[-1] for name, column in run.evaluations().items()}
        self.last_row = {name: column[-1] for name, column in run.training().items()}

    def log_evaluation(self, evaluation: Evaluation | HeldOutEvaluation, seconds: float) -> None:
        """Write a row of eval.csv."""
        self.scores = with_score(evaluation.summary(), self.config.score_range)
        self._log(self.eval_log, evaluation.step, self.scores | {"time/total_time": seconds})

    def log_training(self, step: int, row: Mapping[str, float]) -> None:
        """Write a row of train.csv."""
        self._log(self.train_log, step, row)

    def sync(self) -> None:
        """Flush the rows to the disk: a resumed run does not write those before its checkpoint again."""
        for log in (self.train_log, self.eval_log):
            log.sync()
        files.sync(self.run.folder)

    def close(self) -> None:
        """Close the sinks."""
        self._sinks.close()

    def _log(self, log: CsvLogger, step: int, row: Mapping[str, float]) -> None:
        for destination in (log, self._sinks):
            destination.log(step, dict(row))
