"""A process that ends by SIGKILL at a chosen point of floq.

At a point that writes, a number counts what is done to files within a function: the process ends before that operation,
or, where it is a write, with half of it done. At the others it ends soon after the call of the function that has this
number has begun. Nothing in floq knows of this: functions are wrapped from outside, and operations are seen by an audit
hook.
"""

import contextlib
import importlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

WRITING = {
    "create": ("floq.runs.run", "Run.create"),
    "keep": ("floq.runs.run_data", "save_random_data"),
    "json": ("floq.runs.run", "Run.write_json"),
    "find": ("floq.training.resume", "newest_common"),
    "cut back": ("floq.training.resume", "cut_back"),
    "cut csv": ("floq.runs.run", "cut_csv"),
    "log": ("floq.runs.loggers", "CsvLogger.log"),
    "save": ("floq.runs.checkpoint", "save"),
    "draw": ("floq.analysis.pictures", "draw_pictures"),
}
"""Functions that change files, by the name of the point: module and attribute through which they are called."""
WORKING = {
    "advance": ("floq.training.fleet", "Fleet.advance"),
    "evaluate": ("floq.evaluation.rollouts", "Evaluator.rollout"),
    "held out": ("floq.evaluation.held_out", "HeldOutEvaluator.__call__"),
}
"""Functions that compute, likewise."""
SOON = 0.05  # seconds, at most, into a call of those
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def end() -> NoReturn:
    """End this process as a power failure would."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    raise AssertionError("still alive")


class Countdown:
    """Ends the process at the `number`-th operation while something of interest is going on in this thread. Operations
    are `write` and `append`, of which half is done, and what an audit hook tells of."""

    def __init__(self, number: int, end: Callable[[], NoReturn] = end):
        self._left, self._inside, self._end = number, threading.local(), end

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """What is done to files in here counts."""
        before, self._inside.yes = getattr(self._inside, "yes", False), True
        try:
            yield
        finally:
            self._inside.yes = before

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What the interpreter tells before it does something: see `sys.addaudithook`."""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in CHANGES) and self._is_last():
            self._end()

    def torn(self, write: Callable[..., Any]) -> Callable[..., Any]:
        """A function that writes bytes to a path, which may do half of that."""

        def wrapper(path: Any, content: bytes) -> Any:
            if self._is_last():
                write(path, content[: len(content) // 2])
                self._end()
            return write(path, content)

        return wrapper

    def counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function what is done in which counts."""

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.inside():
                return function(*args, **kwargs)

        return wrapper

    def _is_last(self) -> bool:
        if not getattr(self._inside, "yes", False):
            return False
        self._left -= 1
        return self._left == 0


def wrap(where: tuple[str, str], wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put a wrapper around a function."""
    owner: Any = importlib.import_module(where[0])
    *path, name = where[1].split(".")
    for part in path:
        owner = getattr(owner, part)
    if isinstance(vars(owner).get(name), classmethod):
        setattr(owner, name, classmethod(wrapper(vars(owner)[name].__func__)))
    else:
        setattr(owner, name, wrapper(getattr(owner, name)))


def end_while_writing(point: str, number: int) -> None:
    """Prepare the end at an operation of a function that writes."""
    countdown = Countdown(number)
    for name in ("write", "append"):
        wrap(("floq.utils.files", name), countdown.torn)
    wrap(WRITING[point], countdown.counted)
    sys.addaudithook(countdown.on_event)


def end_while_working(point: str, number: int) -> None:
    """Prepare the end within a call of a function that computes."""
    calls = iter(range(1, sys.maxsize))

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                threading.Timer(random.Random(number).uniform(0, SOON), end).start()
            return function(*args, **kwargs)

        return wrapper

    wrap(WORKING[point], timed)


def prepare(point: str, number: int) -> None:
    """Have this process end at a point."""
    (end_while_writing if point in WRITING else end_while_working)(point, number)
