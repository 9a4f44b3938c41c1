"""Signals that end a command: at once, or when a training is ready to."""

import _thread
import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
AGAIN = 0.05  # seconds after which a signal that came at a bad moment comes again


class Stopped(KeyboardInterrupt):
    """A signal came. Raised where Python raises KeyboardInterrupt: whatever is open is closed."""

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
    """Let SIGINT, SIGTERM and SIGHUP raise `Stopped`, instead of ending the process without a word and with its workers
    at work. Whoever ignores SIGINT, or handles it, goes on doing so."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if _extension_begins(frame):  # some of JAX's abort the process if anything is raised now
            threading.Timer(AGAIN, _thread.interrupt_main, [signum]).start()
        else:
            raise Stopped(signum)

    ours = [s for s in ENDING if s != signal.SIGINT or signal.getsignal(s) == signal.default_int_handler]
    with _handled(ours, stop):
        yield


def _extension_begins(frame: FrameType | None) -> bool:
    """Whether a module that is written in another language is being imported."""
    loader = ExtensionFileLoader
    while frame is not None and frame.f_code not in (loader.create_module.__code__, loader.exec_module.__code__):
        frame = frame.f_back
    return frame is not None


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
