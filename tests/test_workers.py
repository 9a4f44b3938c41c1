"""Worker processes: order, errors, death, and that they stay light."""

import os
import subprocess
import sys
import textwrap
import time

import pytest

from floq.envs.workers import WorkerError, WorkerLate, Workers
from floq.utils.machine import CORES, cores

pytestmark = pytest.mark.processes


class Adder:
    """Owned by a worker."""

    def __init__(self, start):
        self.total = start

    def add(self, number):
        self.total += number
        return self.total

    def fail(self, message):
        raise ValueError(message)

    def wait(self, seconds):
        time.sleep(seconds)
        return self.total

    def die(self, code):
        os._exit(code)

    def has_jax(self):
        return "jax" in sys.modules


def test_each_worker_keeps_its_own_object():
    with Workers(Adder, [(0,), (100,)]) as workers:
        assert workers.try_call("add", [(1,), (2,)]) == [1, 102]
        assert workers.try_call("add", [(1,), (2,)]) == [2, 104]
        assert sorted(i for i, _ in workers.map("add", [0] * 7)) == list(range(7))


def test_an_error_in_a_worker_carries_its_traceback_and_the_worker_lives_on():
    with Workers(Adder, [(0,)]) as workers:
        with pytest.raises(WorkerError, match="ValueError: out of cheese"):
            workers.call_one(0, "fail", ("out of cheese",))
        assert workers.try_call("add", [(1,)]) == [1]


def test_a_dead_worker_is_noticed():
    with Workers(Adder, [(0,)]) as workers, pytest.raises(WorkerError, match="died with exit code 7"):
        workers.call_one(0, "die", (7,))


def test_a_script_without_a_main_guard_may_use_workers_and_they_do_not_import_jax(tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(
        textwrap.dedent("""
        import jax
        from floq.envs.environments import EnvFactory
        from floq.envs.vector import EnvSlots
        from floq.envs.workers import Workers
        print("main runs once")
        env = EnvFactory("pointmaze-medium-navigate-singletask-v0", "post")
        with Workers(EnvSlots, [(env, [(0, 0)], 1)]) as workers:
            print(workers.try_call("start", [([(env.name, (0,))], 1)])[0].shape)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "main runs once\n(1, 2)\n"
    with Workers(Adder, [(0,)]) as workers:
        assert workers.try_call("has_jax", [()]) == [False]


def test_a_call_in_two_halves_and_one_that_takes_too_long():
    with Workers(Adder, [(0,), (100,)]) as workers:
        begun = workers.begin_call("add", [(1,), (2,)])
        assert workers.answers(begun, timeout=60.0) == [1, 102]
        begun = workers.begin_call("wait", [(0.0,), (60.0,)])
        first, second = workers.answers(begun, timeout=1.0)
        assert first == 1
        assert isinstance(second, WorkerLate)
        workers.restart(1)
        assert workers.try_call("add", [(1,), (1,)]) == [2, 101]
        with pytest.raises(WorkerLate, match=r"has not answered within 0\.5 seconds"):
            workers.call_one(0, "wait", (60.0,), timeout=0.5)
        workers.restart(0)


def test_fewer_cores_on_request(monkeypatch):
    monkeypatch.delenv(CORES, raising=False)
    most = cores()
    for given, used in (("1", 1), ("100000", most), ("0", 1), ("many", most), ("", most)):
        monkeypatch.setenv(CORES, given)
        assert cores() == used
