"""The loop of a fleet: gradient steps on its data, many per device call, then steps of its environments with updates
beside them; between these logs and checkpoints, beside them evaluations.

A run's step counts gradient steps offline, and environment steps from there on. Everything that a gradient step does
depends on the agents, the configurations and the data alone, so a fleet that was stopped goes on as if it had not been;
online that holds but for the episodes that it was in, which begin anew.
"""

import contextlib
import math
import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from floq import checkpoint
from floq.agent import Agent
from floq.background import Background, Request
from floq.config import Config
from floq.data.replay import Recorded
from floq.errors import Failed, Interrupted
from floq.fleet import Fleet
from floq.held_out import HeldOutEvaluator
from floq.member import Member
from floq.online import Online
from floq.policy import Policy
from floq.progress import Display
from floq.results import headline, scores
from floq.schedule import Rate, Schedule

MOST_PENDING = 2  # evaluations of the fleet that may wait; then training waits for them


class Loop:
    """A fleet of runs from the step that they are at to their last.

    Args:
        members: the runs, with logs that end at their step. They agree in all that the loop goes by: numbers of
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
        members: Sequence[Member],
        fleet: Fleet,
        evaluator: Background | Sequence[HeldOutEvaluator],
        sizes: tuple[int, int],
        display: Display,
        clocks: Mapping[str, float],
        started: float,
        step: int = 0,
        recorded: Sequence[Recorded | None] = (),
    ):
        self.members, self.fleet = members, fleet
        self._config: Config = members[0].config
        self._background = evaluator if isinstance(evaluator, Background) else None
        self._held_out = None if isinstance(evaluator, Background) else evaluator
        self._sizes, self._display = sizes, display
        self._origin = started - clocks.get("seconds", 0.0)
        self._updates = Rate(clocks.get("update_seconds", 0.0), clocks.get("timed_steps", 0.0))
        self._env_steps = Rate(clocks.get("online_seconds", 0.0), clocks.get("timed_env_steps", 0.0))
        self._warm_up = Rate()  # of environment steps without updates
        self._to_first_update = clocks.get("to_first_update")
        self._step, self._schedule = step, Schedule(self._config)
        self._online: Online | None = None  # from the first environment step on
        self._recorded = list(recorded) or [None] * len(members)

    def go(self, received: list[int], pending: Sequence[Mapping[int, Policy]] = ()) -> None:
        """Train to the end.

        Args:
            received: signals appear here.
            pending: for each run by step, the policies of evaluations that the checkpoint says were not finished.

        Raises:
            Interrupted: a signal appeared in `received`; a checkpoint is written before.
            Failed: an environment failed; likewise, as before whatever else is raised.
        """
        with contextlib.ExitStack() as workers:
            try:
                self._train(received, pending, workers)
            except Interrupted:
                raise  # saved already
            except Exception as error:
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
        waiting = [(at, run, policy) for run, policies in enumerate(pending) for at, policy in policies.items()]
        for at in sorted({at for at, _, _ in waiting}):
            self._submit(at, {run: policy for step, run, policy in waiting if step == at})
        if self._held_out and first and due.evaluation_due(first):
            self._look_at_held_out(first, received)  # the run was stopped in the middle of it
        with self._display.bar("train", last, start=first) as update_bar:
            while self._step < last and not received:
                infos = self._advance_online(workers, received) if due.is_online(self._step) else self._advance()
                self._do_what_is_due(infos, received)
                self._take_evaluations()
                self._wait_for_evaluations(MOST_PENDING * len(self.members), received)
                if due.save_due(self._step) or received:
                    self._save()
                    saved_step = self._step
                update_bar(self._step, line=due.due(self._step, self._config.eval_interval), **self._state(infos))
        waiting = len(self._pending())
        self._wait_for_evaluations(0, received)
        if saved_step != self._step or waiting != len(self._pending()):
            self._save()  # the signal came after this step's turn, or what is pending, and the clock, changed since
        if received:
            name = signal.Signals(received[0]).name
            raise Interrupted(f"stopped by {name} {self._stopped}", received[0])

    def _do_what_is_due(self, infos: list[dict[str, float]], received: list[int]) -> None:
        """At this step: write the row of the log, begin the evaluation. Who goes on from here does neither again."""
        if self._schedule.log_due(self._step):
            now = time.monotonic()
            epoch_time = (now - self._logged_at) / (self._step - self._logged_step)
            self._log(self._step, infos, epoch_time, now - self._origin)
            self._logged_at, self._logged_step = now, self._step
        if self._schedule.evaluation_due(self._step):
            self._evaluate(self._step, received)

    @property
    def _stopped(self) -> str:
        folders = " ".join(str(member.run.folder) for member in self.members)
        return f"at step {self._step}; go on with floq train --resume {folders}"

    def agents(self) -> list[Agent]:
        """The agents as they are, one for each run."""
        return [self.fleet.agent(run) for run in range(len(self.members))]

    def summary(self, run: int) -> dict[str, Any]:
        """What `summary.json` of a run says at the end."""
        found = scores(self.members[run].scores)
        plays = self._config.env_name is not None
        return {
            "success": found.pop("success", None),
            "eval_episodes": self._config.eval_episodes if plays else None,
            "success_timing": self._config.success_timing if plays else None,
            "updates_per_second": self._updates_per_second,
            "env_steps_per_second": self._env_steps.per_second,
            "seconds": time.monotonic() - self._origin,
            "seconds_to_first_update": self._to_first_update,
            "steps": self._step,
            "runs_in_fleet": len(self.members),
            **found,
        }

    # --- the steps ---

    def _advance(self) -> list[dict[str, float]]:
        """Gradient steps on the data, to the next stop. Returns each run's info of the last one."""
        stop, before = self._schedule.next_stop(self._step, self._updates.per_call()), time.monotonic()
        infos = self.fleet.advance(stop - self._step)
        made, self._step = stop - self._step, stop
        self._count(self._updates, made, before)
        return infos

    def _advance_online(self, workers: contextlib.ExitStack, received: list[int]) -> list[dict[str, float]]:
        """Environment steps with updates beside them, to the next stop. Where an environment fails on the way, what is
        due at the step that it led to is done before that is raised."""
        c = self._config
        if self._online is None:
            configs, done = [member.config for member in self.members], self._step - c.offline_steps
            explored = [member.last_row for member in self.members]
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
        self._count(rate, stop - first, before)
        return infos

    @property
    def _online_rate(self) -> Rate:
        """Of the environment steps from here on: those of the warm-up are faster, and must not be mixed with others."""
        c = self._config
        return self._warm_up if self._step < c.offline_steps + c.steps_without_updates else self._env_steps

    def _count(self, rate: Rate, steps: int, before: float) -> None:
        rate.count(steps, time.monotonic() - before)
        if rate is not self._warm_up:
            self._to_first_update = self._to_first_update or time.monotonic() - self._origin

    @property
    def _updates_per_second(self) -> float | None:
        """Of one run; all runs of the fleet make them at the same time. Those offline, if there were any."""
        ticks = self._env_steps.per_second and self._env_steps.per_second / self._config.num_envs
        return self._updates.per_second or (ticks and ticks * self._config.updates_per_tick)

    def _log(self, step: int, infos: list[dict[str, float]], epoch_time: float, total_time: float) -> None:
        times = {"time/epoch_time": epoch_time, "time/total_time": total_time}
        for number, (info, held_out) in enumerate(zip(infos, self.fleet.validate(), strict=True)):
            row = _named("training", info) | _named("validation", held_out) | times
            if self._online is not None:
                row |= self._online.statistics(number)
            self.members[number].log_training(step, row)

    def _save(self) -> None:
        clocks = {
            "seconds": time.monotonic() - self._origin,
            "update_seconds": self._updates.seconds,
            "timed_steps": self._updates.steps,
            "to_first_update": self._to_first_update or 0.0,
            "online_seconds": self._env_steps.seconds,
            "timed_env_steps": self._env_steps.steps,
        }
        replays = self._online.recorded() if self._online is not None else self._recorded
        everything = zip(self.members, self.agents(), replays, strict=True)
        for number, (member, agent, replay) in enumerate(everything):
            waiting = {request.step: request.policy for request in self._pending() if request.run == number}
            folder = member.run.folder / "checkpoints"
            own = {"step": self._step, "replay": replay}
            checkpoint.save(folder, agent, self._sizes, member.config, clocks, waiting, **own)

    # --- evaluations ---

    def _is_evaluated(self, run: int, step: int) -> bool:
        return step in self.members[run].run.evaluations().get("step", [])

    def _evaluate(self, step: int, received: list[int]) -> None:
        """Have the fleet evaluated as it is at this step, in the background; or look at held-out data, now."""
        if self._held_out is not None:
            return self._look_at_held_out(step, received)
        self._submit(step, {run: agent.policy for run, agent in enumerate(self.agents())})

    def _submit(self, step: int, policies: Mapping[int, Policy]) -> None:
        assert self._background is not None
        now = time.monotonic() - self._origin
        waiting = [run for run in policies if not self._is_evaluated(run, step)]
        self._background.submit([Request(run, step, policies[run], now) for run in waiting])

    def _take_evaluations(self, wait: float = 0.0) -> None:
        if self._background is not None:
            for request, evaluation in self._background.finished(wait):
                self.members[request.run].log_evaluation(evaluation, request.seconds)

    def _wait_for_evaluations(self, most: int, received: list[int]) -> None:
        """Wait until no more than so many evaluations are pending, or a signal comes."""
        if self._background is None or len(self._pending()) <= most:
            return
        total = len(self._pending()) - most
        with self._display.bar("evaluate", total * self._config.eval_episodes) as update_bar:
            while len(self._pending()) > most and not received:
                self._take_evaluations(wait=0.2)
                finished = total - (len(self._pending()) - most)
                done = finished * self._config.eval_episodes + self._background.episodes_done
                update_bar(min(done, total * self._config.eval_episodes))

    def _look_at_held_out(self, step: int, received: list[int]) -> None:
        """Evaluate without an environment, unless a signal comes: then that is left to whoever continues."""
        assert self._held_out is not None
        for run, (member, agent, evaluator) in enumerate(zip(self.members, self.agents(), self._held_out, strict=True)):
            if self._is_evaluated(run, step):
                continue
            seconds = time.monotonic() - self._origin
            evaluation = evaluator(agent, member.config.seed, step, should_stop=lambda: bool(received))
            if evaluation is not None:
                member.log_evaluation(evaluation, seconds)

    def _pending(self) -> list[Request]:
        return self._background.pending if self._background is not None else []

    # --- what is shown ---

    def _state(self, infos: list[dict[str, float]]) -> dict[str, str]:
        """What the progress line shows: means over the fleet."""
        state = {}
        known = [headline(member.scores) for member in self.members if member.scores]
        if known:
            state[known[0][0]] = f"{np.mean([value for _, value in known]):.3g}"
        if self._online is not None and (rate := self._online_rate.per_second):
            state["env steps/s"] = f"{rate:.0f}"
        elif self._updates_per_second:
            state["updates/s"] = f"{self._updates_per_second:.0f}" + (
                f" x {len(self.members)}" if len(self.members) > 1 else ""
            )
        if self._pending():
            state["evaluating"] = f"step {self._pending()[0].step}"
        if self._online is not None and not self._online.has_learned:
            return state
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        mean = {name: float(np.mean([info[metric] for info in infos])) for name, metric in losses.items()}
        return state | {name: "diverged" if math.isnan(value) else f"{value:.3g}" for name, value in mean.items()}


def _named(prefix: str, info: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in info.items()}
