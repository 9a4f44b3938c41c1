"""Data that were moved: `--dataset` with `--resume`, `eval` and `inspect` says where the same data lie now."""

import json
import shutil

import numpy as np
import pytest
from online_runs import episodes, write_data

import floq
from floq import cli
from floq.analysis.evaluate_run import evaluate_run
from floq.analysis.inspect_run import inspect_run
from floq.data.formats.convert import to_npz
from floq.runs.run import Run
from floq.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def moved(held_out_runs, tmp_path):
    """A finished run whose data are not where its record says, and the place where they lie now."""
    folder, gone = shutil.copytree(held_out_runs[0], tmp_path / "run"), tmp_path / "gone" / "choice.npz"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset": str(gone)}))
    return folder, gone, write_data(tmp_path / "now.npz")


def complaint(capsys, *argv) -> str:
    assert cli.run(list(map(str, argv))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_missing_path_is_answered_with_the_remedy(moved, tmp_path, capsys):
    folder, gone, now = moved
    for command in (["train", "--offline_steps=14", "--resume"], ["eval"], ["inspect", f"--out={tmp_path / 'out'}"]):
        command = [*command, folder] if command[0] == "train" else [command[0], folder, *command[1:]]
        line = complaint(capsys, *command)
        assert line == (
            f"floq: {gone} is missing, the data of {folder}: bring it back, or say where it lies now with "
            "--dataset=PATH"
        )
        assert cli.run([*map(str, command), f"--dataset={now}"]) == 0
        if command[0] == "train":
            config = json.loads((folder / "config.json").read_text())
            assert config["dataset"] == str(now)
            assert config["data"]["provenance"].startswith(str(now))
            assert cli.run(["train", f"--resume={folder}", "--offline_steps=16"]) == 0  # the record has the new place
            assert cli.run(["eval", str(folder)]) == 0
            (folder / "config.json").write_text(json.dumps(config | {"dataset": str(gone)}))


def test_the_same_rows_in_another_format_are_the_same_data(moved, tmp_path):
    folder, _, _ = moved
    other = to_npz(episodes().on_host(), tmp_path / "ogbench.npz")
    before = Run.open(folder).evaluations()["evaluation/td_error"][-1]
    assert evaluate_run(str(folder), dataset=str(other), show=False).summary()["evaluation/td_error"] == before
    assert inspect_run(str(folder), dataset=str(other), out=str(tmp_path / "out"), show=False)
    assert floq.resume(folder, dataset=str(other), offline_steps=13, show=False).config.dataset == str(other)


def test_other_data_are_refused_and_both_are_shown(moved, tmp_path, capsys):
    folder, _, now = moved
    arrays = dict(np.load(now))
    np.savez(tmp_path / "other.npz", **arrays | {"rewards": arrays["rewards"] * 2})
    record = Run.open(folder).records["data"]
    for command in (["train", "--resume", folder], ["eval", folder], ["inspect", folder, "--out", tmp_path / "x"]):
        line = complaint(capsys, *command, f"--dataset={tmp_path / 'other.npz'}")
        assert str(tmp_path / "other.npz") in line
        assert "is not what" in line
        assert all(record[name] in line for name in ("provenance", "fingerprint"))
        assert "--dataset=PATH" in line
        assert "is not there" in complaint(capsys, *command, f"--dataset={tmp_path / 'nowhere'}/")
    assert Run.open(folder).config.dataset != str(tmp_path / "other.npz")


def test_a_finished_run_records_the_new_place(moved, capsys):
    folder, _, now = moved
    summary = (folder / "summary.json").read_bytes()
    assert cli.run(["train", f"--resume={folder}", f"--dataset={now}"]) == 0
    assert Run.open(folder).config.dataset == str(now)
    assert (folder / "summary.json").read_bytes() == summary
    assert cli.run(["eval", str(folder)]) == 0


def test_a_record_without_a_fingerprint_cannot_tell(moved, capsys):
    folder, gone, now = moved
    config = json.loads((folder / "config.json").read_text())
    del config["data"]["fingerprint"]
    (folder / "config.json").write_text(json.dumps(config))
    line = complaint(capsys, "eval", folder, f"--dataset={now}")
    assert "has no fingerprint" in line
    assert f"bring them back to {gone}" in line


def test_data_given_from_python_may_be_a_file_now(tmp_path):
    config = floq.configure(
        agent="fql", dataset="mine", save_dir=str(tmp_path / "exp"), offline_steps=2, batch_size=8,
        value_hidden_dims=(8,), actor_hidden_dims=(8,),
    )  # fmt: skip
    run = floq.train(config, episodes(), show=False)
    with pytest.raises(UserError, match="was given its data from Python"):
        evaluate_run(str(run.folder), show=False)
    assert evaluate_run(str(run.folder), dataset=str(write_data(tmp_path / "now.npz")), show=False)


def test_the_task_s_own_data_moved(run_dir, dataset_dir, tmp_path, capsys):
    """A run on an OGBench task names a folder of datasets, from which nothing is fetched."""
    folder = shutil.copytree(run_dir, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset_dir": str(tmp_path / "gone")}))
    now = f"--dataset={dataset_dir / 'pointmaze-medium-navigate-v0.npz'}"
    line = complaint(capsys, "train", "--resume", folder, "--offline_steps=7")
    assert "say where it lies now with --dataset=PATH/pointmaze-medium-navigate-v0.npz" in line
    assert cli.run(["train", "--resume", str(folder), now]) == 0  # finished, and its data are the same
    assert Run.open(folder).config.dataset == now.removeprefix("--dataset=")


def test_a_run_from_scratch_has_its_data_itself(tmp_path):
    with pytest.raises(UserError, match="began with random play, which it holds itself; leave it out"):
        floq.runs.run_data.moved(Run(tmp_path, floq.Config(offline_steps=0, online_steps=10)), "x.npz")
