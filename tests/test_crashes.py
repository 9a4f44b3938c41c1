"""The harness that crashes trainings: that it kills, and that it would see what is lost. All of it:
`python benchmarks/crashes.py --kills 120 --seed 0`."""

import csv
import functools
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash_inside import WORKING, WRITING
from crash_scenarios import SCENARIOS, damage, losses
from crashes import crash

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SAME = SCENARIOS[0]  # what has to be the same bit by bit until the end


@pytest.fixture
def copies(held_out_runs, tmp_path):
    return [shutil.copytree(folder, tmp_path / folder.name) for folder in held_out_runs]


def rewrite(path: Path, change):
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *change(rows)])


SPOILED = {
    "train.csv: row 4 lost": lambda run: rewrite(run / "train.csv", lambda rows: [rows[0], *rows[2:]]),
    "train.csv: row 12 lost": lambda run: rewrite(run / "train.csv", lambda rows: rows[:-1]),
    "eval.csv: row 6 doubled": lambda run: rewrite(run / "eval.csv", lambda rows: [*rows, rows[1]]),
    "train.csv: rows differ": lambda run: rewrite(
        run / "train.csv", lambda rows: [[*rows[0][:-4], "7", *rows[0][-3:]], *rows[1:]]
    ),
    "checkpoint 5 lost": lambda run: shutil.rmtree(run / "checkpoints" / "5"),
    "another last checkpoint": lambda run: (run / "checkpoints" / "12").rename(run / "checkpoints" / "13"),
    "checkpoint 10: other bits": lambda run: (run / "checkpoints" / "10" / "state.safetensors").write_bytes(b"other"),
    ".train.csv.partial left behind": lambda run: (run / ".train.csv.partial").touch(),
    "not finished": lambda run: (run / "summary.json").unlink(),
}


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_lost_is_seen(held_out_runs, copies, what):
    assert losses(SAME, held_out_runs, copies) == []
    SPOILED[what](copies[1])
    assert any(found.startswith(f"{copies[1].name}: {what}") for found in losses(SAME, held_out_runs, copies))


def test_an_unreadable_checkpoint_is_seen(copies):
    assert damage(copies) == []
    newest = copies[0] / "checkpoints" / "12" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    (found,) = damage(copies)
    assert found.startswith(f"unreadable: {newest} is damaged")


def test_every_point_is_a_function_of_floq():
    points = WRITING | WORKING
    assert {point for scenario in SCENARIOS for point in scenario.points} <= points.keys()
    for module, path in points.values():
        assert callable(functools.reduce(getattr, path.split("."), importlib.import_module(module)))


DYING = """
import sys
from pathlib import Path
from crash_inside import Countdown
from floq.utils import files

folder, countdown = Path(sys.argv[1]), Countdown(int(sys.argv[2]))
write = countdown.torn(files.write)
sys.addaudithook(countdown.on_event)
(folder / "before").write_bytes(b"of no interest")
with countdown.inside():
    write(folder / "file", b"0123456789")
    (folder / "file").rename(folder / "renamed")
"""


@pytest.mark.parametrize(
    ("number", "left"),
    [(1, {"file": b"01234"}), (2, {}), (3, {"file": b"0123456789"}), (4, {"renamed": b"0123456789"})],
    ids=["half of the write", "before the file is opened", "before it is renamed", "not at all"],
)
def test_a_process_ends_before_an_operation_or_in_the_midst_of_it(tmp_path, number, left):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, "-c", DYING, str(tmp_path), str(number)]
    code = subprocess.run(words, env=environment, check=False).returncode
    assert code == (0 if number == 4 else -signal.SIGKILL)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "before"} == left


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_nothing_is_lost(tmp_path, scenario):
    tally = crash(4, 0, tmp_path, per_round=4, scenarios=[scenario])
    assert tally.lost == []
    assert tally.total == 4
