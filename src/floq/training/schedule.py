"""When logs, evaluations and checkpoints of a run are due, and how far one call should go."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from floq.runs.config import Config

CHUNK_SECONDS = 0.5  # a call takes about this long, so that a signal is answered soon


class Schedule:
    """The steps of a run: gradient steps one by one, then environment steps, as many at once as there are environments.
    Where those skip a multiple of an interval, the next step counts."""

    def __init__(self, config: Config):
        self._config = c = config
        self.first_step = 1 if c.offline_steps else c.num_envs
        self.last_step = c.total_steps

    def is_online(self, step: int) -> bool:
        """Return whether the step after this one is an environment step."""
        return step >= self._config.offline_steps

    def due(self, step: int, interval: int) -> bool:
        """Return whether this step is a multiple of the interval or ends a phase; never with an interval of 0."""
        c = self._config
        if not interval:
            return False
        before = step - (c.num_envs if step > c.offline_steps else 1)
        return step // interval > before // interval or step in (c.offline_steps, self.last_step)

    def log_due(self, step: int) -> bool:
        """Return whether a row of train.csv is due."""
        return self.due(step, self._config.log_interval)

    def evaluation_due(self, step: int) -> bool:
        """Return whether an evaluation is due; the first comes after the first step."""
        interval = self._config.eval_interval
        return bool(interval) and (step == self.first_step or self.due(step, interval))

    def save_due(self, step: int) -> bool:
        """Return whether a checkpoint is due."""
        return self.due(step, self._config.save_interval)

    def next_stop(self, step: int, most: int) -> int:
        """Return the next step at which something is due or the warm-up ends, at most `most` updates or ticks ahead."""
        c = self._config
        if step == 0:
            return self.first_step
        intervals = [interval for interval in (c.log_interval, c.eval_interval, c.save_interval) if interval]
        due = [interval * (step // interval + 1) for interval in intervals]
        if not self.is_online(step):
            return min(*due, c.offline_steps, step + most)
        phases = c.offline_steps + c.steps_without_updates, self.last_step
        ticks = [-(-(at - step) // c.num_envs) for at in (*due, *phases) if at > step]
        return step + c.num_envs * min(*ticks, most)


class Clocks:
    """Time spent on a run, over all processes that trained it. `known` are the values of the checkpoint, empty for
    fresh runs; this process began with the run when `time.monotonic` was `started`."""

    def __init__(self, known: Mapping[str, float], started: float):
        self._origin = started - known.get("seconds", 0.0)
        self.updates = Rate(known.get("update_seconds", 0.0), known.get("timed_steps", 0.0))
        self.env_steps = Rate(known.get("online_seconds", 0.0), known.get("timed_env_steps", 0.0))
        self.warm_up = Rate()  # of environment steps without updates, which are faster
        self.to_first_update = known.get("to_first_update")

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without the time between processes."""
        return time.monotonic() - self._origin

    @contextlib.contextmanager
    def timed(self, rate: "Rate", steps: int) -> Iterator[None]:
        """Count what is done within as so many steps of this rate, unless it raises."""
        before = time.monotonic()
        yield
        rate.count(steps, time.monotonic() - before)
        if rate is not self.warm_up:
            self.to_first_update = self.to_first_update or self.seconds

    def to_json(self) -> dict[str, float]:
        """Return the values that a checkpoint keeps."""
        return {
            "seconds": self.seconds,
            "update_seconds": self.updates.seconds,
            "timed_steps": self.updates.steps,
            "to_first_update": self.to_first_update or 0.0,
            "online_seconds": self.env_steps.seconds,
            "timed_env_steps": self.env_steps.steps,
        }


class Rate:
    """Steps per second, with those counted before. The first call compiles, so its time is not counted."""

    def __init__(self, seconds: float = 0.0, steps: float = 0.0):
        self.seconds, self.steps = seconds, steps
        self._compiled = False

    def count(self, steps: int, seconds: float) -> None:
        """Count a call that made so many steps in so many seconds."""
        if self._compiled:
            self.steps += steps
            self.seconds += seconds
        self._compiled = True

    @property
    def per_second(self) -> float | None:
        """Steps per second; None before the second call."""
        return self.steps / self.seconds if self.steps else None

    def per_call(self, size: int = 1) -> int:
        """Return how many times `size` steps a call should make, to take about `CHUNK_SECONDS`."""
        return max(1, round(CHUNK_SECONDS * self.per_second / size)) if self._compiled and self.per_second else 1
