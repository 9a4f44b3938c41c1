"""Handlers of the signals that end a command: at once, or after the current training step."""

import _thread
import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any

TERMINATION_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
RETRY_S = 0.05  # seconds after which a signal that could not be raised is sent again


class Stopped(KeyboardInterrupt):
    """A signal that ends the process was received. A KeyboardInterrupt, so that context managers close what is open."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


def signal_of(stop: KeyboardInterrupt) -> signal.Signals:
    """Return the signal that raised this."""
    return signal.Signals(stop.signum if isinstance(stop, Stopped) else signal.SIGINT)


@contextlib.contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Append received SIGINT, SIGTERM and SIGHUP to the list that is yielded, instead of ending the process at once."""
    received: list[int] = []
    with install_handler(TERMINATION_SIGNALS, lambda signum, _: received.append(signum)):
        yield received


@contextlib.contextmanager
def raise_signals() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise `Stopped`, instead of ending the process without a message and leaving its
    workers running. Where SIGINT is ignored, or has a handler, that stays. A signal is sent again if it cannot be
    raised where it arrives, or if Python ignores the exception, as in a `__del__`."""

    def stop(signum: int, frame: FrameType | None) -> None:
        loading = (ExtensionFileLoader.create_module.__code__, ExtensionFileLoader.exec_module.__code__)
        while frame is not None:
            if frame.f_code in loading:  # some of JAX's compiled modules abort the process if an exception is raised
                return _send_again(signum)
            frame = frame.f_back
        raise Stopped(signum)

    def on_ignored(ignored: Any) -> None:
        if isinstance(ignored.exc_value, Stopped):
            _send_again(ignored.exc_value.signum)
        else:
            before(ignored)

    ours = [s for s in TERMINATION_SIGNALS if s != signal.SIGINT or signal.getsignal(s) == signal.default_int_handler]
    before = sys.unraisablehook
    with install_handler(ours, stop):
        sys.unraisablehook = on_ignored
        try:
            yield
        finally:
            sys.unraisablehook = before


def _send_again(signum: int) -> None:
    """Send a signal to the main thread a little later, whose system calls it interrupts where threads get signals."""
    if hasattr(signal, "pthread_kill"):
        send = functools.partial(signal.pthread_kill, threading.main_thread().ident or 0, signum)
    else:
        send = functools.partial(_thread.interrupt_main, signal.Signals(signum))
    threading.Timer(RETRY_S, send).start()


@contextlib.contextmanager
def install_handler(signals: list[signal.Signals], handler: Any) -> Iterator[None]:
    """Install a handler for these signals within the context, except for SIGHUP where it is ignored, as under nohup."""
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
