"""TensorBoard and Weights & Biases on request: the rows of the CSV files, and training that does without."""

import importlib.util
import json
import struct
import subprocess
import sys
import types

import pytest
from conftest import TINY
from tensorboardX.proto import event_pb2

from floq import cli
from floq.runs import loggers
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.run import Run
from floq.utils.errors import UserError

FLAGS = [*TINY, "--agent=fql"]


def events(folder) -> list:
    """What TensorBoard's files say, record by record: a length, its checksum, an event, its checksum."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        left = path.read_bytes()
        while left:
            (size,) = struct.unpack("<Q", left[:8])
            found.append(event_pb2.Event.FromString(left[12 : 12 + size]))
            left = left[16 + size :]
    return found


def test_tensorboard_has_the_rows_of_the_csv_files(dataset_dir, tmp_path, no_pictures):
    words = [*FLAGS, f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}", "--logger=tensorboard"]
    assert cli.run(["train", *words]) == 0
    (folder,) = tmp_path.glob("floq/debug/*/*")
    assert json.loads((folder / "config.json").read_text())["logger"] == ["tensorboard"]
    assert Run.open(folder).config.logger == ("tensorboard",)
    written: dict[str, dict[int, float]] = {}
    for event in events(folder):
        for value in event.summary.value:
            written.setdefault(value.tag, {})[event.step] = value.simple_value
    for name in ("eval.csv", "train.csv"):
        columns = read_csv(folder / name)
        for metric in set(columns) - {"step", "time/total_time"}:
            rows = zip(columns["step"], columns[metric], strict=True)
            assert written[metric] == {int(step): pytest.approx(x, rel=1e-6) for step, x in rows}, metric


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
    sink = loggers.TensorBoard(tmp_path, Config(), 4)
    sink.log(5, {"a": 1.0, "b": float("nan")})
    sink.close()
    started = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.session_log.status, event.step) for event in started] == [(event_pb2.SessionLog.START, 5)]
    assert [value.tag for event in events(tmp_path) for value in event.summary.value] == ["a"]


def test_where_a_run_logs_changes_no_name():
    config = Config()
    values = {**config.to_json(), "agent": config.to_json()["agent"]}
    assert Config.from_json({**values, "logger": ["wandb"]}).digest() == config.digest()
    del values["logger"]  # as older runs lack it
    assert Config.from_json(values) == config


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_is_one_line(dataset_dir, tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    words = ["train", *FLAGS, f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}", f"--logger={name}"]
    assert cli.run(words) == 2
    package = loggers.PACKAGES[name]
    assert capsys.readouterr().err == f"floq: --logger={name} needs the package {package}: pip install {package}\n"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_logger_is_one_line(capsys):
    assert cli.run(["train", "--logger=excel", "--dry_run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_mirror_that_fails_ends_nothing(tmp_path, monkeypatch, capsys):
    class Broken:
        def __init__(self, folder, config, step):
            self.rows = 0

        def log(self, step, metrics):
            raise OSError("disk full")

        def close(self):
            raise AssertionError("it was dropped")

    monkeypatch.setitem(loggers.METRIC_SINKS, "tensorboard", Broken)
    sink = loggers.MetricSinks(tmp_path, Config(logger=("tensorboard",)), 0)
    sink.log(1, {"a": 1.0})
    sink.log(2, {"a": 1.0})
    sink.close()
    said = capsys.readouterr().err
    assert said == "floq: --logger=tensorboard failed (OSError('disk full')); training goes on without it\n"


WANDB = """
import sys
from pathlib import Path
from floq.runs.config import Config
from floq.runs.loggers import MetricSinks
config = Config(logger=("wandb",))
both = [MetricSinks(Path(folder), config, 0) for folder in sys.argv[1:]]
for sink in both:
    sink.log(5, {"training/critic/q": 1.0})
    sink.log(1, {"evaluation/success": 0.5})
    sink.close()
"""


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path):
    """In a process of its own, since that package leaves threads behind."""
    folders = [tmp_path / "sd000_a", tmp_path / "sd001_b"]
    for folder in folders:
        folder.mkdir()
    environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    environment["PYTHONPATH"] = ":".join(path for path in sys.path if path)
    words = [sys.executable, "-c", WANDB, *map(str, folders)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    for folder in folders:
        (written,) = folder.glob("wandb/offline-run-*/*.wandb")
        text = written.read_bytes()
        assert b"evaluation/success" in text
        assert b"training/critic/q" in text


def test_wandb_without_an_account_is_one_line(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("no API key\nconfigured")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    says = r"^--logger=wandb cannot be opened \(RuntimeError: no API key configured\): log in with wandb login, or"
    with pytest.raises(UserError, match=says):
        loggers.MetricSinks(tmp_path, Config(logger=("wandb",)), 0)
