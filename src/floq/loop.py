"""The loop of a run: many gradient steps per device call, between them logs, evaluations and checkpoints."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax

from floq import checkpoint
from floq.agent import Agent, Info, zeros_like_info
from floq.data.transitions import Batch, Dataset, Splits
from floq.errors import Interrupted
from floq.evaluate import Evaluator
from floq.held_out import HeldOutEvaluator
from floq.keys import Keys
from floq.loggers import CsvLogger
from floq.progress import Display
from floq.results import headline, scores
from floq.run import Run

CHUNK_SECONDS = 0.5  # a device call takes about this long, so that a signal is answered soon


@partial(jax.jit, donate_argnums=0)
def train_steps(agent: Agent, dataset: Dataset, batch_key: jax.Array, num_steps: jax.Array) -> tuple[Agent, Info]:
    """`num_steps` updates on batches of the dataset, in one device call. Returns the agent and the last step's info.

    The batch of update number i is drawn with fold_in(batch_key, i), so the result does not depend on how the steps
    are divided into calls. `agent` is donated. The number of steps is traced: one program serves every length.
    """

    def step(_, carry):
        agent, _ = carry
        return agent.update(sample_batch(agent, dataset, batch_key))

    info = zeros_like_info(agent, jax.eval_shape(lambda: sample_batch(agent, dataset, batch_key)))
    return jax.lax.fori_loop(0, num_steps, step, (agent, info))


def sample_batch(agent: Agent, dataset: Dataset, key: jax.Array) -> Batch:
    """The batch of the agent's next update: it depends on the agent's step and settings, and on the stream `key`."""
    static = agent.static
    step_key = jax.random.fold_in(key, agent.step)
    return dataset.sample(step_key, static.batch_size, static.n_step, agent.hypers.discount)


@jax.jit
def validate(agent: Agent, dataset: Dataset, key: jax.Array) -> Info:
    """What `update` would log on one batch of held-out data."""
    batch_key, loss_key = jax.random.split(jax.random.fold_in(key, agent.step))
    return agent.evaluate_loss(sample_batch(agent, dataset, batch_key), loss_key)


class Loop:
    """One run from the step its agent is at to its last step. Everything that a step does depends on the agent, the
    configuration and the data alone, so a run that was stopped goes on as if it had not been.

    Args:
        run: its folder, with logs that end at the agent's step.
        evaluator: plays episodes, or without an environment looks at held-out data.
        agent: fresh, or from a checkpoint.
        clocks: what the checkpoint says of time spent; empty for a fresh run.
        started: when this process began with the run, by `time.monotonic`.
    """

    def __init__(
        self,
        run: Run,
        agent: Agent,
        data: Splits,
        evaluator: Evaluator | HeldOutEvaluator,
        display: Display,
        clocks: dict[str, float],
        started: float,
    ):
        self.run, self.agent, self._data = run, agent, data
        self._config = run.config
        self._keys = Keys.of(run.config.seed)
        self._evaluator, self._display = evaluator, display
        self._origin = started - clocks.get("seconds", 0.0)
        self._update_seconds, self._timed_steps = clocks.get("update_seconds", 0.0), clocks.get("timed_steps", 0.0)
        self._to_first_update = clocks.get("to_first_update")
        self._train_log, self._eval_log = CsvLogger(run.folder / "train.csv"), CsvLogger(run.folder / "eval.csv")
        self._scores = {name: column[-1] for name, column in run.evaluations().items()}
        self._compiled = False
        self._steps_per_call = 1

    def go(self, received: list[int]) -> None:
        """Train to the end.

        Raises:
            Interrupted: a signal appeared in `received`; a checkpoint is written before.
        """
        c, first = self._config, int(self.agent.step)
        step, saved_step = first, first or None
        logged_at, logged_step = time.monotonic(), first
        if first and self._evaluation_due(first) and first not in self.run.evaluations().get("step", []):
            self._evaluate(first, received)  # the run was stopped in the middle of it
        with self._display.bar("train", c.offline_steps, start=first) as update_bar:
            while step < c.offline_steps and not received:
                info = self._advance(self._next_stop(step) - step)
                step = int(self.agent.step)
                if self._due(step, c.log_interval):
                    now = time.monotonic()
                    times = {
                        "time/epoch_time": (now - logged_at) / (step - logged_step),
                        "time/total_time": now - self._origin,
                    }
                    logged_at, logged_step = now, step
                    held_out = validate(self.agent, self._data.validation, self._keys.validation)
                    self._train_log.log(step, _floats("training", info) | _floats("validation", held_out) | times)
                if self._evaluation_due(step):
                    self._evaluate(step, received)
                if self._due(step, c.save_interval) or received:
                    self._save()
                    saved_step = step
                update_bar(step, line=self._due(step, c.eval_interval), **self._state(info))
        if received:
            if saved_step != step:  # the signal came after this step's turn to save
                self._save()
            name = signal.Signals(received[0]).name
            raise Interrupted(
                f"stopped by {name} at step {step}; go on with floq train --resume {self.run.folder}", received[0]
            )

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says at the end."""
        found = scores(self._scores)
        plays = self._config.env_name is not None
        return {
            "success": found.pop("success", None),
            "eval_episodes": self._config.eval_episodes if plays else None,
            "success_timing": self._config.success_timing if plays else None,
            "updates_per_second": self._updates_per_second,
            "seconds": time.monotonic() - self._origin,
            "seconds_to_first_update": self._to_first_update,
            "steps": int(self.agent.step),
            **found,
        }

    def _next_stop(self, step: int) -> int:
        """The next step at which something is due, or as far as one device call should go."""
        c = self._config
        if step == 0:
            return 1  # the first evaluation comes after the first step
        due = [interval * (step // interval + 1) for interval in (c.log_interval, c.eval_interval, c.save_interval)]
        return min(*due, c.offline_steps, step + self._steps_per_call)

    def _due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._config.offline_steps

    def _evaluation_due(self, step: int) -> bool:
        return step == 1 or self._due(step, self._config.eval_interval)

    def _advance(self, num_steps: int) -> Info:
        before = time.monotonic()
        self.agent, info = train_steps(self.agent, self._data.train, self._keys.batches, num_steps)
        jax.block_until_ready(info)
        seconds = time.monotonic() - before
        if not self._compiled:
            self._compiled = True  # this call compiled: its time says nothing about speed
            self._to_first_update = self._to_first_update or time.monotonic() - self._origin
        else:
            self._update_seconds += seconds
            self._timed_steps += num_steps
            self._steps_per_call = max(1, round(CHUNK_SECONDS * self._timed_steps / self._update_seconds))
        return info

    @property
    def _updates_per_second(self) -> float | None:
        return self._timed_steps / self._update_seconds if self._timed_steps else None

    def _evaluate(self, step: int, received: list[int]) -> None:
        """Evaluate and log, unless a signal comes: then the evaluation is left to whoever continues the run."""
        if received:
            return
        with self._display.bar("evaluate", self._config.eval_episodes) as update:
            evaluation = self._evaluator(
                self.agent,
                self._config.seed,
                step,
                on_progress=lambda done, _: update(done),
                should_stop=lambda: bool(received),
            )
        if evaluation is not None:
            self._scores = evaluation.summary()
            self._eval_log.log(step, self._scores | {"time/total_time": time.monotonic() - self._origin})

    def _save(self) -> None:
        sizes = self._data.train.observations.shape[1], self._data.train.actions.shape[1]
        clocks = {
            "seconds": time.monotonic() - self._origin,
            "update_seconds": self._update_seconds,
            "timed_steps": self._timed_steps,
            "to_first_update": self._to_first_update or 0.0,
        }
        checkpoint.save(self.run.folder / "checkpoints", self.agent, sizes, self._config, clocks)

    def _state(self, info: Info) -> dict[str, str]:
        """What the progress line shows."""
        state = {}
        if self._scores:
            name, value = headline(self._scores)
            state[name] = f"{value:.3g}"
        if self._updates_per_second:
            state["updates/s"] = f"{self._updates_per_second:.0f}"
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        return state | {name: f"{float(info[metric]):.3g}" for name, metric in losses.items()}


def _floats(prefix: str, info: Info) -> dict[str, float]:
    return {f"{prefix}/{name}": float(value) for name, value in info.items()}


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are appended when they come, instead of ending the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before = {s: signal.signal(s, lambda signum, _: received.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
