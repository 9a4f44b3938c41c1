"""`floq watch` as a user types it."""

import json
import re

import pytest
from rich.console import Console
from run_folders import TASK, make_run

from floq import cli
from floq.analysis.report import watch
from floq.runs.record import find_runs
from floq.utils.files import lock_folder


def shown(found, width=80, height=None) -> list[str]:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(watch.screen(found, width, height))
    return console.export_text().splitlines()


@pytest.fixture
def exp(tmp_path):
    make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1, finished=False, offline_steps=200)
    make_run(tmp_path, seed=2, diverged=100)
    (make_run(tmp_path, seed=3) / "config.json").write_text("{}")
    return tmp_path


def test_once(exp, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.run(["watch", str(exp), "--once"]) == 0
    text = capsys.readouterr().out
    assert "1 diverged, 1 damaged, 1 stopped, 1 finished" in text
    assert re.search(r"1 +200 / 200 +0\.60 +-10 +1 +stopped", text)
    assert re.search(r"2 +200 / 200 +0\.60 +-10 +1 +diverged", text)
    assert "config.json: not the configuration of a run" in text
    assert cli.run(["watch", "--once"]) == 2
    assert cli.run(["watch", str(exp), "--seconds=0"]) == 2
    assert "--seconds=0: give at least 0.5" in capsys.readouterr().err


@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_the_terminal(exp, width):
    lines = shown(watch.look(find_runs([exp]), {}), width)
    assert max(map(len, lines)) <= width
    header = next(line for line in lines if "step / total" in line)
    for name in ("seed", "success", "Q", "loss", "steps/s", "left", "state"):
        assert name in header


def test_many_runs_in_a_small_window(tmp_path):
    for seed in range(60):
        make_run(tmp_path, TASK if seed % 2 else "Ant-v5", seed, finished=seed != 41, offline_steps=2_000)
    found = watch.look(find_runs([tmp_path]), {})
    lines = shown(found, 80, 24)
    assert len(lines) <= 24
    assert "stopped" in lines[3]  # what has not ended comes first
    assert re.match(r"\.\.\. and \d+ more", lines[-1])
    assert len(shown(found)) == 60 + 2 + 2  # a head, names, and two headings


def test_a_run_that_trains(tmp_path):
    folder = make_run(tmp_path, finished=False, offline_steps=10_000)
    with lock_folder(folder, "busy"):
        lines = shown(watch.look(find_runs([tmp_path]), {}))
    assert re.search(r"0 +200 / 10k +0\.60 +-10 +1 +100 +98s +running", lines[-1])
    assert lines[0].startswith("1 running")


def test_what_changes_is_read_again(tmp_path):
    folder = make_run(tmp_path, finished=False, offline_steps=10_000)
    cache = {}
    with lock_folder(folder, "busy"):
        (running,) = watch.look(find_runs([tmp_path]), cache).values()
        assert (watch.state(running), running.step) == ("running", 200)  # type: ignore
        with open(folder / "eval.csv", "a") as file:
            file.write("300,0.9,-1,40\n")
        assert next(iter(watch.look(find_runs([tmp_path]), cache).values())).step == 300  # type: ignore
    assert watch.state(next(iter(watch.look(find_runs([tmp_path]), cache).values()))) == "stopped"
    make_run(tmp_path, seed=1)
    assert len(watch.look(find_runs([tmp_path]), cache)) == 2


def test_it_ends_when_all_runs_have(tmp_path, monkeypatch):
    folder = make_run(tmp_path, finished=False, offline_steps=300)
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            (folder / "summary.json").write_text(json.dumps({"seconds": 1.0}))

    monkeypatch.setattr(watch.time, "sleep", sleep)
    console = Console(force_terminal=True, width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with lock_folder(folder, "busy"), console.file:
        watch.watch([tmp_path], seconds=3.0, console=console)
    assert looks == [3.0, 3.0]
    assert "1 finished" in console.export_text()


def test_ctrl_c_ends_the_looking(tmp_path, monkeypatch, capsys):
    folder = make_run(tmp_path, finished=False, offline_steps=300)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", interrupt)
    with lock_folder(folder, "busy"):
        assert cli.run(["watch", str(tmp_path)]) == 0
    assert "1 running" in capsys.readouterr().out
