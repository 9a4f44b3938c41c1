"""A run folder as `floq train` leaves it: files, checkpoints, evaluation from the checkpoint."""

import csv
import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from conftest import TINY
from hostile import edit_json, sign_manifest

from floq import cli
from floq.analysis import pictures
from floq.analysis.evaluate_run import evaluate_run
from floq.networks.precision import PUBLISHED
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.loggers import CsvLogger, read_csv
from floq.runs.run import Run
from floq.sweep.jobs import runs_of
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec


def test_folder_and_files(run_dir):
    assert re.fullmatch(r"sd000_\d{8}_\d{6}_[0-9a-f]{8}", run_dir.name)
    assert {p.name for p in run_dir.iterdir()} == {
        "config.json", "train.csv", "eval.csv", "summary.json", "checkpoints", "plots"
    }  # fmt: skip
    assert {p.name for p in (run_dir / "plots").iterdir()} == {"learning_curve.png", "value_map.png", "flow.png"}
    assert all(p.stat().st_size > 10_000 for p in (run_dir / "plots").iterdir())
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"4", "6"}
    config = json.loads((run_dir / "config.json").read_text())
    assert config["agent"]["critic"] == "floq"
    assert config["agent"]["block_width"] == 8
    assert config["protocol"] == "3 episodes, success_timing=post, label_timing=pre"
    assert {"floq", "jax", "ogbench"} <= set(config["versions"])


def test_a_precision_of_auto_is_written_resolved_and_hashed_as_it_was_given(run_dir):
    """So that machines of all kinds give a run the same name, and a resumed one goes on as it began."""
    found = Run.open(run_dir).config
    given = dataclasses.replace(found, precision="auto")
    assert found.precision == given.precision_here == PUBLISHED  # layers of 8 gain nothing in bfloat16
    assert run_dir.name.endswith(given.digest())
    assert run_dir in [run.folder for run in runs_of(given)]
    assert given.precision_note == f"; precision {PUBLISHED} (auto)"


def test_logs(run_dir):
    with open(run_dir / "train.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert {"training/critic/floq_loss", "validation/critic/td_error", "training/actor/mse", "time/epoch_time"} <= set(
        rows[0]
    )
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert read_csv(run_dir / "eval.csv")["step"] == [1, 4, 6]
    summary = Run.open(run_dir).summary
    assert summary["steps"] == 6
    assert summary["eval_episodes"] == 3
    assert summary["success_timing"] == "post"
    assert summary["success"] == read_csv(run_dir / "eval.csv")["evaluation/success"][-1]
    assert summary["updates_per_second"] > 0
    assert summary["seconds"] > summary["seconds_to_first_update"] > 0


def test_without_evaluations_a_run_trains_and_says_so(dataset_dir, tmp_path, capsys, monkeypatch):
    """`--eval_interval=0`, as published: nothing acts, and whoever wants a number evaluates the checkpoint."""
    monkeypatch.setitem(pictures.PICTURES, "value_map.png", pictures.Picture("", lambda *_: ""))
    flags = [*TINY, "--agent=fql", f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}", "--eval_interval=0"]
    assert cli.run(["train", *flags, "--seeds", "0", "1"]) == 0
    printed = capsys.readouterr().out
    assert "2 runs of" in printed
    assert "none, as --eval_interval=0 asks" in printed
    first, second = sorted(tmp_path.glob("floq/debug/*/*"))
    for folder in (first, second):
        assert not (folder / "eval.csv").exists()
        assert "learning_curve.png" not in {p.name for p in (folder / "plots").iterdir()}
        summary = Run.open(folder).summary
        assert (summary["steps"], summary["success"], summary["eval_episodes"]) == (6, None, None)
    assert cli.run(["train", f"--resume={first}", "--offline_steps=8"]) == 0
    assert "none, as --eval_interval=0 asks" in capsys.readouterr().out
    assert cli.run(["eval", str(second), "--eval_episodes=2"]) == 0
    assert cli.run(["report", str(tmp_path), f"--out={tmp_path / 'r.md'}"]) == 0
    assert cli.run(["watch", str(tmp_path), "--once"]) == 0


def test_a_checkpoint_of_another_format_is_refused(run_dir, tmp_path):
    shutil.copytree(run_dir / "checkpoints", tmp_path / "checkpoints")
    edit_json(tmp_path / "checkpoints" / "6" / "manifest.json", format=2)
    with pytest.raises(UserError, match=r"has checkpoint format 2; this version of floq reads 3$"):
        checkpoint.load(tmp_path / "checkpoints")


def test_a_checkpoint_restores_every_array(run_dir, tmp_path):
    agent, config, _, pending, step = checkpoint.load(run_dir / "checkpoints")
    assert int(agent.step) == step == 6
    assert config == Run.open(run_dir).config
    assert float(agent.hypers.tau) == pytest.approx(config.agent.tau)
    assert (agent.obs_spec, agent.action_dim) == (ObsSpec.of(2), 2)
    assert pending == {}
    checkpoint.save(tmp_path, agent, config)
    again = checkpoint.load(tmp_path).agent
    assert jax.tree.structure(again) == jax.tree.structure(agent)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(agent), strict=True):
        raw = [jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
        np.testing.assert_array_equal(*raw)
    assert not list(tmp_path.glob(".*"))


def test_an_earlier_checkpoint_by_its_step(run_dir):
    run = Run.open(run_dir)
    assert int(run.load_agent(4).step) == 4
    with pytest.raises(UserError, match=r"no checkpoint of step 5: choose one of 4, 6"):
        run.load_agent(5)


def test_evaluating_again_gives_the_number_of_training(run_dir):
    again = evaluate_run(str(run_dir), eval_episodes=3, show=False)
    recorded = read_csv(run_dir / "eval.csv")
    for name, value in again.summary().items():
        assert recorded[name][-1] == pytest.approx(value, abs=1e-9)


def test_damage_is_explained(run_dir, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(run_dir, broken)
    tensors = broken / "checkpoints" / "6" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    with pytest.raises(
        UserError, match=r"is damaged \(its checksum differs\): floq train --resume goes back to that of"
    ):
        Run.open(broken).load_agent()
    manifest = broken / "checkpoints" / "4" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"block_width": 8', '"block_width": 16'))
    sign_manifest(manifest)
    with pytest.raises(UserError, match="does not fit its configuration"):
        Run.open(broken).load_agent(4)
    manifest.write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        Run.open(broken).load_agent(4)
    shutil.rmtree(broken / "checkpoints" / "6")
    shutil.rmtree(broken / "checkpoints" / "4")
    with pytest.raises(UserError, match="no complete checkpoint"):
        Run.open(broken).load_agent()
    (broken / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json is damaged"):
        Run.open(broken)
    with pytest.raises(UserError, match="not a run folder"):
        Run.open(tmp_path)


def test_a_half_written_checkpoint_is_not_one(tmp_path):
    (tmp_path / ".7.partial").mkdir()
    (tmp_path / "8").mkdir()
    assert checkpoint.steps(tmp_path) == []


def test_csv_rows_are_on_disk_at_once_and_keep_their_columns(tmp_path):
    log = CsvLogger(tmp_path / "log.csv")
    log.log(1, {"a": 0.1, "b": 2.0})
    assert read_csv(tmp_path / "log.csv") == {"step": [1.0], "a": [0.1], "b": [2.0]}
    log.log(2, {"a": 0.25, "b": 3.0})
    assert read_csv(tmp_path / "log.csv")["a"] == [0.1, 0.25]
    log.log(3, {"a": 0.5, "c": 1.0})  # a new column, and one that is missing
    columns = read_csv(tmp_path / "log.csv")
    assert list(columns) == ["step", "a", "b", "c"]
    assert columns["a"] == [0.1, 0.25, 0.5]
    np.testing.assert_array_equal(columns["b"], [2.0, 3.0, np.nan])
    np.testing.assert_array_equal(columns["c"], [np.nan, np.nan, 1.0])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("run_group", "g" * 256),
        ("run_group", "good/" + "\u8bed" * 86),  # characters of three bytes
        ("project_name", "p" * 300),
        ("save_dir", "/tmp/" + "s" * 256),
        ("run_group", "/".join(["g" * 200] * 20)),  # each name is short enough, the path is not
    ],
    ids=["ascii", "three bytes a letter", "project", "save_dir", "path"],
)
def test_names_that_no_file_system_takes(setting, value):
    with pytest.raises(UserError, match=rf"^--{setting}=.*bytes .*: shorten it$"):
        Config(**{setting: value})
    assert Config(run_group="g" * 255).run_group == "g" * 255
