"""Signals that end a command: at once, or when a training is ready to."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """Another signal than SIGINT came. Raised where that raises KeyboardInterrupt: whatever is open is closed."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def number_of(stop: KeyboardInterrupt) -> signal.Signals:
    """The signal that raised this."""
    return signal.Signals(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """A list to which SIGINT, SIGTERM and SIGHUP are appended when they come, instead of ending the process at once."""
    received: list[int] = []
    with _handled(ENDING, lambda signum, _: received.append(signum)):
        yield received


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Stopped`, as SIGINT raises KeyboardInterrupt, instead of ending the process without
    a word and with its workers at work."""

    def stop(signum: int, _: FrameType | None) -> None:
        raise Stopped(signum)

    with _handled([signum for signum in ENDING if signum != signal.SIGINT], stop):
        yield


@contextlib.contextmanager
def _handled(signals: list[signal.Signals], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Have a handler for these signals, but not for SIGHUP where that is ignored, as under nohup."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    hangup = getattr(signal, "SIGHUP", None)
    wanted = [s for s in signals if not (s == hangup and signal.getsignal(s) == signal.SIG_IGN)]
    before = {s: signal.signal(s, handler) for s in wanted}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)
