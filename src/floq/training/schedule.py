"""When logs, evaluations and checkpoints of a run are due, and how far one call should go."""

import time
from collections.abc import Mapping

from floq.runs.config import Config

CHUNK_SECONDS = 0.5  # a call takes about this long, so that a signal is answered soon


class Schedule:
    """The steps of a run: first gradient steps, one by one, then environment steps, as many at once as there are
    environments. Where those do not meet a multiple of an interval, the next one after it counts."""

    def __init__(self, config: Config):
        self._config = c = config
        self.first_step = 1 if c.offline_steps else c.num_envs
        self.last_step = c.total_steps

    def is_online(self, step: int) -> bool:
        """Whether what follows this step is one of the environments."""
        return step >= self._config.offline_steps

    def due(self, step: int, interval: int) -> bool:
        """Whether what is due at every multiple of the interval, and where a phase ends, is due at this step; with an
        interval of 0 it never is."""
        c = self._config
        if not interval:
            return False
        before = step - (c.num_envs if step > c.offline_steps else 1)
        return step // interval > before // interval or step in (c.offline_steps, self.last_step)

    def log_due(self, step: int) -> bool:
        return self.due(step, self._config.log_interval)

    def evaluation_due(self, step: int) -> bool:
        """The first evaluation comes after the first step, unless there is none at all."""
        interval = self._config.eval_interval
        return bool(interval) and (step == self.first_step or self.due(step, interval))

    def save_due(self, step: int) -> bool:
        return self.due(step, self._config.save_interval)

    def next_stop(self, step: int, most: int) -> int:
        """The next step at which something is due or the warm-up is over, or that `most` updates or ticks lead to."""
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
    """Where the time of a run went, over all processes that worked at it.

    Args:
        known: what the checkpoint says of it; empty for fresh runs.
        started: when this process began with the run, by `time.monotonic`.
    """

    def __init__(self, known: Mapping[str, float], started: float):
        self._origin = started - known.get("seconds", 0.0)
        self.updates = Rate(known.get("update_seconds", 0.0), known.get("timed_steps", 0.0))
        self.env_steps = Rate(known.get("online_seconds", 0.0), known.get("timed_env_steps", 0.0))
        self.warm_up = Rate()  # of environment steps without updates, which are faster
        self.to_first_update = known.get("to_first_update")

    @property
    def seconds(self) -> float:
        """Since the run's very beginning, without the time between processes."""
        return time.monotonic() - self._origin

    def count(self, rate: "Rate", steps: int, before: float) -> None:
        """So many steps were made since `before`."""
        rate.count(steps, time.monotonic() - before)
        if rate is not self.warm_up:
            self.to_first_update = self.to_first_update or self.seconds

    def to_json(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {
            "seconds": self.seconds,
            "update_seconds": self.updates.seconds,
            "timed_steps": self.updates.steps,
            "to_first_update": self.to_first_update or 0.0,
            "online_seconds": self.env_steps.seconds,
            "timed_env_steps": self.env_steps.steps,
        }


class Rate:
    """How many steps there are per second. The first call compiles, so its time says nothing.

    Args:
        seconds, steps: what is known from before.
    """

    def __init__(self, seconds: float = 0.0, steps: float = 0.0):
        self.seconds, self.steps = seconds, steps
        self._compiled = False

    def count(self, steps: int, seconds: float) -> None:
        """A call made so many steps in so many seconds."""
        if self._compiled:
            self.steps += steps
            self.seconds += seconds
        self._compiled = True

    @property
    def per_second(self) -> float | None:
        """None before anything is known."""
        return self.steps / self.seconds if self.steps else None

    def per_call(self, size: int = 1) -> int:
        """How many times `size` steps a call should make."""
        return max(1, round(CHUNK_SECONDS * self.per_second / size)) if self._compiled and self.per_second else 1
