"""Processes that step environments, for evaluation and for collection.

Each worker owns one object, made in its own process, and answers calls to its methods in the order they came. Workers
are spawned, never forked, since a process that runs JAX must not be forked, and they do not import JAX themselves.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from floq.utils.errors import Failed, UserError, in_one_line
from floq.utils.signals import ENDING

START_SECONDS = 300.0  # what a worker may take to make its environments
CLOSE_SECONDS = 5.0  # what all of them may take to end by themselves


class Raised(NamedTuple):
    """What a worker's object raised, as its process tells it."""

    line: str
    traceback: str
    is_users: bool  # whether it was a UserError


class WorkerError(RuntimeError):
    """A worker raised or died; the message holds its traceback, `line` says it in one line."""

    def __init__(self, message: str, line: str = "", is_users: bool = False):
        super().__init__(message)
        self.line, self._is_users = line or message, is_users

    def to_error(self, what: str) -> Exception:
        """What to raise where nobody replaces the worker: UserError if the worker's object raised one, otherwise
        Failed. `what` was at work there."""
        return UserError(self.line) if self._is_users else Failed(f"{what} failed: {self.line}")


class WorkerDied(WorkerError):
    """A worker's process ended by itself; `Workers.restart` replaces it."""


class WorkerLate(WorkerDied):
    """A worker has not answered in time. It may still do so, so it must be replaced like one that died."""

    def __init__(self, worker: int, timeout: float):
        super().__init__(f"worker {worker} has not answered within {timeout:g} seconds")
        self.timeout = timeout


class Workers:
    """`len(arguments)` processes; number i owns `factory(*arguments[i])`. A context manager: leaving it ends them."""

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]):
        self._factory, self._arguments = factory, list(arguments)
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        for args in arguments:
            process, pipe = _start(factory, args)
            self._processes.append(process)
            self._pipes.append(pipe)
        atexit.register(self.close)  # before multiprocessing waits for its children

    def __len__(self) -> int:
        return len(self._pipes)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call `method` on every worker at once, with `arguments[i]` on worker i; the results in that order."""
        for i, args in enumerate(arguments):
            self._send(i, method, args)
        return [self._receive(i) for i in range(len(self))]

    def try_call(self, method: str, arguments: Sequence[tuple[Any, ...]], timeout: float | None = None) -> list[Any]:
        """The same, but where a worker has raised or died, its place in the list holds the WorkerError that `call`
        would raise. One that takes longer than `timeout` seconds counts as dead."""
        return self.answers(self.begin_call(method, arguments), timeout)

    def begin_call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[WorkerDied | None]:
        """The first half of `try_call`: the workers begin, and the caller may do something else. The other half is
        `answers`, of what this returns."""
        begun: list[WorkerDied | None] = []
        for i, args in enumerate(arguments):
            try:
                begun.append(self._send(i, method, args))
            except WorkerDied as died:
                begun.append(died)
        return begun

    def answers(self, begun: Sequence[WorkerDied | None], timeout: float | None = None) -> list[Any]:
        """What the workers answer, as `try_call` explains it. One that takes longer than `timeout` seconds from now
        counts as dead."""
        since = time.monotonic()
        answers: list[Any] = []
        for i, died in enumerate(begun):
            try:
                answers.append(died or self._receive(i, timeout, since))
            except WorkerError as failed:
                answers.append(failed)
        return answers

    def call_one(self, worker: int, method: str, arguments: tuple[Any, ...], timeout: float | None = None) -> Any:
        """Call `method` on one worker. Raises WorkerLate if that takes longer than `timeout` seconds."""
        self._send(worker, method, arguments)
        return self._receive(worker, timeout)

    def restart(self, worker: int) -> None:
        """Replace a worker by a fresh one, made with the same arguments."""
        self._pipes[worker].close()
        self._processes[worker].kill()
        self._processes[worker].join()
        self._processes[worker], self._pipes[worker] = _start(self._factory, self._arguments[worker])

    def map(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Call `method(item)` for each item on whichever worker is free. Yields (index, result) as they finish."""
        waiting = iter(enumerate(items))
        busy: dict[Any, tuple[int, int]] = {}

        def give(worker: int) -> None:
            for index, item in waiting:
                self._send(worker, method, (item,))
                busy[self._pipes[worker]] = (worker, index)
                return

        for worker in range(len(self)):
            give(worker)
        while busy:
            for pipe in multiprocessing.connection.wait(list(busy)):
                worker, index = busy.pop(pipe)
                result = self._receive(worker)
                give(worker)
                yield index, result

    def kill(self) -> None:
        """End the processes at once, from whichever thread: then a call that waits for them ends with WorkerDied."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End the processes, those that hang after a few seconds. Harmless when repeated."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + CLOSE_SECONDS
        for process in self._processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        self._processes, self._pipes = [], []

    def _send(self, worker: int, method: str, args: tuple[Any, ...]) -> None:
        try:
            self._pipes[worker].send((method, args))
        except (BrokenPipeError, OSError) as error:
            raise self._died(worker) from error

    def _receive(self, worker: int, timeout: float | None = None, since: float | None = None) -> Any:
        """What a worker answers, within `timeout` seconds `since` some time, by default now."""
        try:
            if timeout is not None:
                elapsed = 0.0 if since is None else time.monotonic() - since
                if not self._pipes[worker].poll(max(0.0, timeout - elapsed)):
                    raise WorkerLate(worker, timeout)
            result = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(worker) from error
        if isinstance(result, Raised):
            raise WorkerError(f"worker {worker} failed:\n{result.traceback}", result.line, result.is_users)
        return result

    def _died(self, worker: int) -> WorkerDied:
        self._processes[worker].join(timeout=1)
        return WorkerDied(f"worker {worker} died with exit code {self._processes[worker].exitcode}")


def _start(factory: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """A new worker: its process, and our end of the pipe to it."""
    context = multiprocessing.get_context("spawn")
    with _without_main_module(), _without_interrupts():
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    for signum in ENDING:
        signal.signal(signum, signal.SIG_IGN)  # they may reach the whole process group; the parent decides
    _answer(pipe, factory, args)


def _answer(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Make the object, and answer calls to its methods until the pipe is closed."""
    owned, failure = None, None
    try:
        owned = factory(*args)  # at once, so that it is ready when it is first needed
    except Exception as error:
        failure = _raised(error)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return  # the parent is gone, or is done with us
        try:
            answer = failure or getattr(owned, method)(*arguments)
        except Exception as error:
            answer = _raised(error)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(answer)


def _raised(error: Exception) -> Raised:
    return Raised(in_one_line(error), traceback.format_exc(), isinstance(error, UserError))


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Spawn without importing the caller's main module, so that a user's script needs no `__main__` guard."""
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in hidden:
            del main.__file__
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Children start with SIGINT ignored, so that an early Ctrl-C does not make them print tracebacks."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say so
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
