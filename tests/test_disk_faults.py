"""What the machine may do to a run: one line that says what to do, nothing lost, and then the run goes on."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crash_scenarios import SCENARIOS, losses

from floq import cli
from floq.analysis import pictures
from floq.runs import run_data
from floq.runs.checkpoint import steps
from floq.runs.loggers import CsvLogger, cut_csv, read_csv
from floq.runs.run import Run
from floq.training.fleet import Fleet
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.progress import Display
from floq.utils.signals import Stopped, catch_signals, raise_signals

SAME = SCENARIOS[0]  # what has to be the same bit by bit until the end


pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(autouse=True)
def signals_are_not_ignored():
    """As they are where the suite runs in the background, and in every process that it starts."""
    kinds = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {kind: signal.signal(kind, handler) for kind, handler in kinds.items()}
    yield
    for kind, handler in before.items():
        signal.signal(kind, handler)


@pytest.fixture
def stopped(held_out_runs, tmp_path):
    """Copies of two runs as they were at step 5."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in held_out_runs]
    for folder in copies:
        for step in (10, 12):
            shutil.rmtree(folder / "checkpoints" / str(step))
        (folder / "summary.json").unlink()
        for name in ("train.csv", "eval.csv"):
            cut_csv(folder / name, 5)
    return copies


def resumed(folders) -> int:
    return cli.run(["train", "--resume", *map(str, folders)])


def full(name: str, path: Path) -> None:
    """What writing to a file of this name does while the disk is full."""
    if name in str(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("state.safetensors", 5),
        ("manifest.json", 5),
        ("train.csv", 5),
        ("eval.csv", 5),  # of step 6, at which the rest was done: but a checkpoint of it would skip that row
        ("summary.json", 12),
        ("config.json", 5),
    ],
)
def test_a_full_disk_ends_the_run_in_one_line_and_then_it_goes_on(
    held_out_runs, stopped, capsys, monkeypatch, name, whole
):
    with monkeypatch.context() as patch:
        for writes in ("write", "append"):
            function = getattr(files, writes)
            patch.setattr(files, writes, lambda path, content, f=function: full(name, path) or f(path, content))
        assert resumed(stopped[:1]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"floq: No space left on device: {stopped[0]}")
    remedy = (
        f"the checkpoint of step {whole} is whole: free some space, then go on with floq train --resume {stopped[0]}"
    )
    assert line.endswith(remedy)
    assert steps(stopped[0] / "checkpoints")[-1] == whole
    assert not list((stopped[0] / "checkpoints").glob(".*"))
    assert resumed(stopped[:1]) == 0
    assert losses(SAME, held_out_runs[:1], stopped[:1]) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_a_row_that_does_not_fit_leaves_the_file_as_it_was(tmp_path):
    """With a real limit of the system, which cuts a write off in its middle."""
    script = (
        "import resource, sys; from pathlib import Path; from floq.runs.loggers import CsvLogger\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); log = CsvLogger(Path(sys.argv[1]))\n"
        "for step in range(1, 20): log.log(step, {'metric': step / 3})"
    )
    path = tmp_path / "train.csv"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert f"File too large: '{path}'" in done.stderr
    assert 80 < path.stat().st_size <= 100
    assert read_csv(path)["step"] == [1, 2, 3, 4]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has this disk that is always full")
def test_the_error_of_a_full_disk_names_the_file():
    for write in (files.write, files.append):
        with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
            write(Path("/dev/full"), b"something")


def test_a_number_that_was_cut_off_is_no_row(tmp_path):
    log = CsvLogger(tmp_path / "log.csv")
    log.log(1, {"a": 0.125})
    with open(tmp_path / "log.csv", "a") as file:
        file.write("2,0.12")  # of 2,0.125: as many columns as there are
    cut_csv(tmp_path / "log.csv", 5)
    assert read_csv(tmp_path / "log.csv")["step"] == [1]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_touched(stopped, capsys, monkeypatch):
    """Asked of the system; root may write anywhere, so the answer is made up."""
    before = {path: path.read_bytes() for path in stopped[0].rglob("*") if path.is_file()}
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    assert resumed(stopped[:1]) == 2
    assert "make the run's folder writable, or resume a copy of it" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in stopped[0].rglob("*") if path.is_file()}


def test_a_folder_that_becomes_read_only_ends_the_run_in_one_line(stopped, capsys, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(files, "append", refuse)
    assert resumed(stopped[:1]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line
    assert "the checkpoint of step 5 is whole: make the folder writable, then go on with" in line


def test_a_deleted_run_folder_ends_the_fleet_in_one_line_and_the_other_run_is_kept(
    held_out_runs, stopped, capsys, monkeypatch
):
    advance = Fleet.advance

    def deletes(self, steps):
        shutil.rmtree(stopped[0], ignore_errors=True)
        return advance(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", deletes)
        assert resumed(stopped) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"floq: {stopped[0]} vanished while it was trained, and what was learned there with it")
    assert line.endswith(f"the others go on with floq train --resume {stopped[1]}")
    assert not stopped[0].exists()
    assert resumed(stopped[1:]) == 0
    assert losses(SAME, held_out_runs[1:], stopped[1:]) == []


def test_a_clock_that_jumps_changes_no_duration(held_out_runs, stopped, monkeypatch):
    """Back to 1970, on to 2106, and so on: at every look another time."""
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: [0.0, 4.3e9, -1.0][next(jumps) % 3])
    assert resumed(stopped[:1]) == 0
    run = Run.open(stopped[0])
    for path in (stopped[0] / "train.csv", stopped[0] / "eval.csv"):
        times = read_csv(path)["time/total_time"]
        assert times == sorted(times)
        assert 0 < times[-1] < 1000
    assert 0 < run.summary["seconds"] < 1000
    assert run.summary["updates_per_second"] > 0
    assert losses(SAME, held_out_runs[:1], stopped[:1]) == []


def test_two_runs_of_the_same_second_do_not_share_a_folder(held_out_runs, tmp_path, monkeypatch):
    """As where a clock was put back."""
    monkeypatch.setattr(time, "strftime", lambda _: "20260101_000000")
    values = Run.open(held_out_runs[0]).config.to_json() | {"save_dir": str(tmp_path)}
    config = type(Run.open(held_out_runs[0]).config).from_json(values)
    first = Run.create(config, {})
    (first.folder / "train.csv").write_text("step\n1\n")
    with pytest.raises(UserError, match="exists already: wait a second"):
        Run.create(config, {})
    assert (first.folder / "train.csv").read_text() == "step\n1\n"
    assert [path.name for path in first.folder.parent.iterdir()] == [first.folder.name]


@pytest.mark.parametrize(
    ("signals", "code"),
    [((signal.SIGTERM, signal.SIGTERM), 143), ((signal.SIGHUP,), 129), ((signal.SIGINT, signal.SIGTERM), 130)],
)
def test_signals_in_training_end_it_with_a_checkpoint(held_out_runs, stopped, capsys, monkeypatch, signals, code):
    advance, calls = Fleet.advance, []

    def signalled(self, steps):
        calls.append(steps)
        if len(calls) == 2:
            for signum in signals:
                signal.raise_signal(signum)
        return advance(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", signalled)
        assert resumed(stopped[:1]) == code
    (line,) = capsys.readouterr().err.splitlines()
    step = steps(stopped[0] / "checkpoints")[-1]
    name = signal.Signals(code - 128).name
    assert line == f"floq: stopped by {name} at step {step}; go on with floq train --resume {stopped[0]}"
    assert step > 5
    assert resumed(stopped[:1]) == 0
    assert losses(SAME, held_out_runs[:1], stopped[:1]) == []


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_before_and_after_the_training_ends_it_in_one_line(
    held_out_runs, stopped, capsys, monkeypatch, signum, code
):
    name = signal.Signals(signum).name
    with monkeypatch.context() as patch:
        patch.setattr(run_data, "load_fleet_data", lambda *_: signal.raise_signal(signum))
        assert resumed(stopped[:1]) == code
    assert capsys.readouterr().err == f"floq: stopped by {name}\n"
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw_pictures", lambda *_: signal.raise_signal(signum))
        assert resumed(stopped[:1]) == code
    rest = f"floq train --resume {stopped[0]}"
    assert capsys.readouterr().err == f"floq: stopped by {name} when all was trained; the rest comes with {rest}\n"
    assert resumed(stopped[:1]) == 0
    assert losses(SAME, held_out_runs[:1], stopped[:1]) == []


WHILE_JAX_BEGINS = """
import enum, signal, sys
import floq.__main__

plain, sent = enum.EnumType.__prepare__, []

def prepare(*args, **how):  # extension modules of JAX make enums
    if "jaxlib.mlir._mlir_libs" in sys.modules and not sent:
        sent.append(True)
        signal.raise_signal(signal.{signal})
    return plain(*args, **how)

enum.EnumType.__prepare__ = prepare
sys.argv = ["floq", "inspect", "nowhere"]
floq.__main__.main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_jax_is_being_loaded_ends_it_in_one_line(name, code):
    """Its extension modules abort the process if Python raises anything while they begin."""
    script = [sys.executable, "-c", WHILE_JAX_BEGINS.replace("{signal}", name)]
    done = subprocess.run(script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, f"floq: stopped by {name}\n")


def test_a_signal_whose_exception_is_ignored_is_sent_again():
    class Fragile:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def drop_and_wait():
        Fragile()
        time.sleep(20)

    with pytest.raises(Stopped) as stop, raise_signals():
        drop_and_wait()
    assert stop.value.signum == signal.SIGTERM


def test_under_nohup_the_end_of_the_terminal_ends_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as received:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_output_that_nobody_reads_any_more_ends_nothing(monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "w", buffering=1) as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        os.close(read)
        display = Display()
        display.note("something")
        with display.bar("train", 10) as update:
            update(10)
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), closed.fileno())


def test_the_second_process_is_refused_and_the_first_is_not_disturbed(held_out_runs, stopped, capsys):
    with Run.open(stopped[0]).lock():
        before = {path: path.read_bytes() for path in stopped[0].rglob("*") if path.is_file()}
        assert resumed(stopped[:1]) == 2
        assert resumed(stopped) == 2  # as one of a fleet
        assert before == {path: path.read_bytes() for path in stopped[0].rglob("*") if path.is_file()}
    assert "another process is at work in" in capsys.readouterr().err
    assert resumed(stopped[:1]) == 0
    assert losses(SAME, held_out_runs[:1], stopped[:1]) == []


@pytest.mark.parametrize("how", ["held", "free"])
def test_a_lock_dies_with_its_process(tmp_path, how):
    """By SIGKILL, which leaves no time to unlock anything."""
    script = (
        "import sys, time; from floq.utils.files import lock_folder\n"
        "with lock_folder(sys.argv[1], ''): print('', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    try:
        assert files.is_locked(tmp_path)
        if how == "held":
            with pytest.raises(UserError, match="busy"), files.lock_folder(tmp_path, "busy"):
                pass
    finally:
        process.kill()
        process.communicate()
    with files.lock_folder(tmp_path, "busy"):
        pass
