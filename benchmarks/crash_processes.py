"""Processes that run `floq` for `crashes.py`: fresh ones, or forked from one that has imported it already, which saves
most of the time that a process lives. `python crash_processes.py` is the one to fork from."""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE = 600.0  # seconds that a process may take
ORPHANS = 30.0  # seconds that its workers may live on
IMPORTED = (
    "floq.cli",
    "floq.training.resume",
    "floq.analysis.pictures",
    "gymnasium",
    "matplotlib.pyplot",
    "crash_inside",
)


class Process:
    """A process that runs floq, in a process group of its own; its output goes to a file."""

    def __init__(self, pid: int):
        self.pid = pid

    def wait(self, timeout: float) -> int | None:
        """Its exit code, or minus the signal that ended it; None if it goes on for longer than that."""
        raise NotImplementedError

    def signal(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.wait(0.0) is None:
            os.kill(self.pid, signum)

    def end(self) -> tuple[int, bool]:
        """Its exit code, when it and its workers have ended; and whether workers had to be ended."""
        code, deadline, orphans = self.wait(PATIENCE), time.monotonic() + ORPHANS, False
        while not self._is_alone():
            if code is None or time.monotonic() > deadline:
                orphans = True
                os.killpg(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        if code is None:
            raise RuntimeError(f"it took longer than {PATIENCE:g} seconds")
        return code, orphans

    def _is_alone(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


class Fresh(Process):
    """`python -m floq`, as a user has it."""

    def __init__(self, words: Sequence[str], output: Path, environment: Mapping[str, str]):
        with open(output, "wb") as file:
            command = [sys.executable, "-m", "floq", *words]
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        super().__init__(self._process.pid)

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


class Forked(Process):
    """A fork of a `Forks`."""

    def __init__(self, pid: int, answers: int):
        super().__init__(pid)
        self._answers, self._code = answers, None

    def wait(self, timeout: float) -> int | None:
        if self._code is None and select.select([self._answers], [], [], timeout)[0]:
            self._code = int(os.read(self._answers, 100))
        return self._code


class Forks:
    """The process to fork from, for one process at a time. A context manager."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment

    def __enter__(self) -> "Forks":
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment, bufsize=0
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.close()
        self._server.wait(PATIENCE)
        self._server.stdout.close()

    def start(self, words: Sequence[str], output: Path, point: str | None = None, number: int = 0) -> Forked:
        """Run floq with these words, with the end at a point of `crash_inside` prepared."""
        assert self._server.stdin
        assert self._server.stdout
        output.write_bytes(b"")
        request = {"words": list(words), "output": str(output), "point": point, "number": number}
        self._server.stdin.write((json.dumps(request) + "\n").encode())
        return Forked(int(self._server.stdout.readline()), self._server.stdout.fileno())


def serve() -> None:
    """Fork a process for each line of standard input; answer with its number, and when it has ended with its code."""
    for module in IMPORTED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            _become(request)
        os.write(1, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _become(request: dict[str, Any]) -> None:
    """Run floq in this process, which has just been forked."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for old, new in ((null, 0), (output, 1), (output, 2)):
        os.dup2(old, new)
    sys.argv = ["floq", *request["words"]]
    from crash_inside import prepare

    import floq.__main__

    if request["point"]:
        prepare(request["point"], request["number"])
    floq.__main__.main()


if __name__ == "__main__":
    serve()
