"""Runs that version 0.1 left (see `fixtures/v0.1`) are evaluated, reported and resumed."""

import json
import shutil
from pathlib import Path

import pytest
from hostile import sign_manifest

from floq import cli
from floq.runs.config import Config
from floq.runs.run import RECORDS, Run
from floq.utils.errors import UserError

FIXTURES = Path(__file__).parent / "fixtures" / "v0.1"


@pytest.fixture
def old_run(tmp_path, no_pictures, monkeypatch):
    """Copies a run to a folder of its own, whose path replaces FIXTURE in its files."""
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")

    def copy(name: str) -> Path:
        shutil.copytree(FIXTURES, tmp_path / "old")
        for path in (tmp_path / "old" / name).rglob("*.json"):
            path.write_text(path.read_text().replace("FIXTURE", str(tmp_path / "old")))
            if path.name == "manifest.json":
                sign_manifest(path)
        return tmp_path / "old" / name

    return copy


@pytest.mark.parametrize(("name", "digest"), [("offline", "7a6420ab"), ("online", "4f18cc71")])
def test_the_hash_of_a_run_stays(name, digest):
    """A sweep finds its runs by it. Some of their settings were removed since."""
    values = json.loads((FIXTURES / name / "config.json").read_text())
    assert Config.from_json({key: x for key, x in values.items() if key not in RECORDS}).digest() == digest


def test_a_setting_that_was_removed_must_be_at_its_default():
    values = json.loads((FIXTURES / "offline" / "config.json").read_text())
    values = {key: x for key, x in values.items() if key not in RECORDS} | {"old_data_share": 0.25}
    with pytest.raises(UserError, match=r"old_data_share=0\.25: this setting was removed"):
        Config.from_json(values)


def test_a_finished_run_is_evaluated_and_reported(old_run, tmp_path, capsys):
    folder = old_run("offline")
    assert cli.run(["eval", str(folder)]) == 0
    assert "worth 0.1303" in capsys.readouterr().out  # as version 0.1 said when it had trained it
    assert cli.run(["report", str(folder), f"--out={tmp_path / 'report.md'}"]) == 0
    assert "choice" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_finished_run_goes_on(old_run):
    folder = old_run("offline")
    assert cli.run(["train", "--resume", str(folder), "--offline_steps=12"]) == 0
    assert Run.open(folder).evaluations()["step"] == [1, 5, 10, 12]


def test_one_that_was_stopped_online_with_an_evaluation_to_be_made(old_run):
    folder = old_run("online")
    before = (FIXTURES / "online" / "train.csv").read_text().splitlines()
    assert cli.run(["train", "--resume", str(folder)]) == 0
    assert Run.open(folder).evaluations()["step"] == [1, 4, 8, 12]
    after = (folder / "train.csv").read_text().splitlines()
    assert after[:5] == before[:5]
    assert [row.split(",")[0] for row in after] == [row.split(",")[0] for row in before]
