"""Worker processes that step environments, for evaluation and for collection.

Each worker owns one object, made in its own process, and answers calls to its methods in order. Workers are spawned,
not forked, since a process that runs JAX must not be forked, and they do not import JAX themselves.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from floq.utils.errors import Failed, UserError, in_one_line
from floq.utils.signals import TERMINATION_SIGNALS, install_handler

START_TIMEOUT_S = 300.0  # allowed for a worker to make its environments
CLOSE_TIMEOUT_S = 5.0  # allowed for all workers together to end by themselves


class RemoteException(NamedTuple):
    """Exception of a worker's object, as its process reports it."""

    line: str
    traceback: str
    is_users: bool  # whether it was a UserError


class WorkerError(RuntimeError):
    """A worker raised or died; the message holds its traceback, `line` is one line."""

    def __init__(self, message: str, line: str = "", is_users: bool = False):
        super().__init__(message)
        self.line, self._is_users = line or message, is_users

    def to_error(self, what: str) -> Exception:
        """Return the exception to raise if the worker is not replaced: UserError if the worker's object raised one,
        otherwise Failed. `what` describes the worker's task."""
        return UserError(self.line) if self._is_users else Failed(f"{what} failed: {self.line}")


class WorkerDied(WorkerError):
    """A worker's process ended by itself; `Workers.restart` replaces it."""


class WorkerLate(WorkerDied):
    """A worker has not answered in time. Its answer may still come, so it must be replaced like one that died."""

    def __init__(self, worker: int, timeout: float):
        super().__init__(f"worker {worker} has not answered within {timeout:g} seconds")
        self.timeout = timeout


class Workers:
    """Pool of `len(arguments)` processes; number i owns `factory(*arguments[i])`. Leaving the context ends them."""

    def __init__(self, factory: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]):
        self._factory, self._arguments = factory, list(arguments)
        started = [_start(factory, args) for args in arguments]
        self._processes, self._pipes = ([pair[i] for pair in started] for i in (0, 1))
        atexit.register(self.close)  # before multiprocessing waits for its children

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def try_call(self, method: str, arguments: Sequence[tuple[Any, ...]], timeout: float | None = None) -> list[Any]:
        """Call `method` on every worker at once, with `arguments[i]` on worker i. Returns the results in that order; in
        place of one, the WorkerError of a worker that has raised or died, or takes longer than `timeout` seconds."""
        return self.answers(self.begin_call(method, arguments), timeout)

    def begin_call(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[WorkerDied | None]:
        """Start a `try_call` without waiting. Pass the returned list to `answers` for the results."""
        begun: list[WorkerDied | None] = []
        for i, args in enumerate(arguments):
            try:
                begun.append(self._send(i, method, args))
            except WorkerDied as died:
                begun.append(died)
        return begun

    def answers(self, begun: Sequence[WorkerDied | None], timeout: float | None = None) -> list[Any]:
        """Return the results of `begin_call`, as `try_call` does."""
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
        """Replace a worker by a new one, made with the same arguments."""
        self._pipes[worker].close()
        self._processes[worker].kill()
        self._processes[worker].join()
        self._processes[worker], self._pipes[worker] = _start(self._factory, self._arguments[worker])

    def map(self, method: str, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Call `method(item)` for each item on the next free worker. Yields (index, result) as they finish."""
        waiting = iter(enumerate(items))
        busy: dict[Any, tuple[int, int]] = {}

        def assign(worker: int) -> None:
            if (item := next(waiting, None)) is not None:
                self._send(worker, method, (item[1],))
                busy[self._pipes[worker]] = (worker, item[0])

        for worker in range(len(self._pipes)):
            assign(worker)
        while busy:
            for pipe in multiprocessing.connection.wait(list(busy)):
                worker, index = busy.pop(pipe)
                result = self._receive(worker)
                assign(worker)
                yield index, result

    def kill(self) -> None:
        """Kill the processes, from any thread: a call that waits for them then raises WorkerDied."""
        for process in self._processes:
            process.kill()

    def close(self) -> None:
        """End the processes; those that do not end within `CLOSE_TIMEOUT_S` are killed. May be called repeatedly."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
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
        """Return a worker's answer, received within `timeout` seconds of `since`, by default now."""
        try:
            if timeout is not None:
                elapsed = 0.0 if since is None else time.monotonic() - since
                if not self._pipes[worker].poll(max(0.0, timeout - elapsed)):
                    raise WorkerLate(worker, timeout)
            result = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError) as error:
            raise self._died(worker) from error
        if isinstance(result, RemoteException):
            raise WorkerError(f"worker {worker} failed:\n{result.traceback}", result.line, result.is_users)
        return result

    def _died(self, worker: int) -> WorkerDied:
        self._processes[worker].join(timeout=1)
        return WorkerDied(f"worker {worker} died with exit code {self._processes[worker].exitcode}")


def _start(factory: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Start a worker. Returns its process, and the parent's end of the pipe to it."""
    context = multiprocessing.get_context("spawn")
    # An early Ctrl-C shall not make the child print a traceback.
    with _without_main_module(), install_handler([signal.SIGINT], signal.SIG_IGN):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, factory, args), daemon=True)
        process.start()
    theirs.close()
    return process, ours


def _serve(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    for signum in TERMINATION_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # they may reach the whole process group; the parent handles them
    _answer(pipe, factory, args)


def _answer(pipe: Any, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Create the object, and answer calls to its methods until the pipe is closed."""
    owned, failure = None, None
    try:
        owned = factory(*args)  # at once, so that it is ready when it is first needed
    except Exception as error:
        failure = _describe_error(error)
    while True:
        try:
            method, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return  # the parent has died, or has closed the pool
        try:
            answer = failure or getattr(owned, method)(*arguments)
        except Exception as error:
            answer = _describe_error(error)
        with contextlib.suppress(BrokenPipeError):
            pipe.send(answer)


def _describe_error(error: Exception) -> RemoteException:
    return RemoteException(in_one_line(error), traceback.format_exc(), isinstance(error, UserError))


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Spawn without importing the caller's main module, so that a user's script needs no `__main__` guard."""
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        main.__spec__ = None
        vars(main).pop("__file__", None)
        yield
    finally:
        vars(main).update(hidden)
