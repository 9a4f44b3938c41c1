"""Checkpoints that a crash or an accident has damaged: the run goes on from the one before, and ends the same."""

import errno
import json
import shutil
import sys

import pytest
from crash_inside import CHANGES, Countdown
from crash_scenarios import SCENARIOS, losses
from online_runs import only_run

from floq import cli
from floq.runs import checkpoint
from floq.runs.checkpoint import repair, steps
from floq.runs.config import Config
from floq.runs.run import Run
from floq.training.resume import resume_fleet
from floq.utils import files
from floq.utils.errors import UserError

SAME = SCENARIOS[0]  # what has to be the same bit by bit until the end
LAST = 12  # checkpoints are at 5, 10 and 12


pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def copy(held_out_runs, tmp_path):
    """A copy of the first run."""
    return shutil.copytree(held_out_runs[0], tmp_path / held_out_runs[0].name)


def flip(path, at=-20):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tensors cut off": lambda at: (at / "state.safetensors").write_bytes((at / "state.safetensors").read_bytes()[:900]),
    "tensors emptied": lambda at: (at / "state.safetensors").write_bytes(b""),
    "tensors missing": lambda at: (at / "state.safetensors").unlink(),
    "a bit of a parameter": lambda at: flip(at / "state.safetensors"),
    "a bit of the header": lambda at: flip(at / "state.safetensors", 20),
    "manifest cut off": lambda at: (at / "manifest.json").write_text((at / "manifest.json").read_text()[:200]),
    "manifest missing": lambda at: (at / "manifest.json").unlink(),
    "a digit of the manifest": lambda at: (at / "manifest.json").write_text(
        (at / "manifest.json").read_text().replace('"alpha": ', '"alpha": 1')
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_run_goes_back_to_the_checkpoint_before_a_damaged_one(held_out_runs, copy, capsys, how):
    DAMAGE[how](copy / "checkpoints" / str(LAST))
    before = steps(copy / "checkpoints")
    if before[-1] == LAST:
        with pytest.raises(UserError, match=r"damaged .*: floq train --resume goes back to that of step 10, floq eval"):
            Run.open(copy).load_agent()
    assert cli.run(["train", f"--resume={copy}"]) == 0
    said = capsys.readouterr().out
    assert "12.damaged" in said
    assert "resume  from step 10" in said
    assert (copy / "checkpoints" / "12.damaged").is_dir()
    assert losses(SAME, held_out_runs[:1], [copy]) == []


def test_without_a_readable_checkpoint_nothing_is_trained(copy, capsys):
    for step in (5, 10, LAST):
        DAMAGE["tensors cut off"](copy / "checkpoints" / str(step))
    rows = (copy / "train.csv").read_bytes()
    assert cli.run(["train", f"--resume={copy}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no checkpoint left that can be read: start the run again" in line
    assert (copy / "train.csv").read_bytes() == rows
    assert len(list((copy / "checkpoints").glob("*.damaged"))) == 3


def test_a_checkpoint_that_cannot_be_read_today_is_not_damaged(copy, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint.hashlib, "file_digest", refuse)
    assert cli.run(["train", f"--resume={copy}", "--offline_steps=13"]) == 2
    assert "cannot be read (Permission denied): fix this, and try again" in capsys.readouterr().err
    assert steps(copy / "checkpoints") == [5, 10, LAST]


def test_a_fleet_goes_back_together(held_out_runs, tmp_path):
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in held_out_runs]
    flip(copies[0] / "checkpoints" / "12" / "state.safetensors")
    flip(copies[0] / "checkpoints" / "10" / "state.safetensors")
    resume_fleet(copies, show=False)
    assert losses(SAME, held_out_runs, copies) == []


def test_what_a_fleets_run_had_ahead_of_the_others_is_forgotten_before_its_rows(held_out_runs, tmp_path, monkeypatch):
    """One run had saved step 12 when the fleet was killed. Resumed, the fleet goes back to step 10, and is killed again
    when the rows after that are gone: then the first run must not go on from step 12, alone."""
    copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in held_out_runs]
    shutil.rmtree(copies[1] / "checkpoints" / "12")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("floq.training.resume.run_to_completion", killed)
        with pytest.raises(KeyboardInterrupt):
            resume_fleet(copies, show=False)
    assert [steps(copy / "checkpoints")[-1] for copy in copies] == [10, 10]
    for copied in copies:
        resume_fleet([copied], show=False)
    assert losses(SAME, held_out_runs, copies) == []


class Killed(BaseException):
    """Stands in for SIGKILL: nothing that writes files catches it."""


def killed():
    raise Killed


active: list[Countdown] = []
sys.addaudithook(lambda event, arguments: active[0].on_event(event, arguments) if active else None)


def dies_at(number, function, *args, **kwargs) -> bool:
    """Call a function that ends at so many operations on files; whether there were so many."""
    countdown = Countdown(number, killed)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "append"):
            patch.setattr(files, name, countdown.torn(getattr(files, name)))
        active.append(countdown)
        try:
            countdown.counted(function)(*args, **kwargs)
        except Killed:
            return True
        finally:
            active.clear()
    return False


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_at_any_operation_of_a_save_leaves_a_whole_checkpoint(held_out_runs, tmp_path, again):
    """Of a new step, or of one that had been saved before, with other clocks."""
    assert "os.rename" in CHANGES
    saved = checkpoint.load(held_out_runs[0] / "checkpoints")
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoint.save(folder, saved.agent, saved.config, step=5)
        arguments = folder, saved.agent, saved.config, {"seconds": 2.0}
        if not dies_at(number, checkpoint.save, *arguments, step=5 if again else 6):
            break
        assert checkpoint.load(folder).step in (5, 6)
        repair(folder)
        assert checkpoint.load(folder).step in (5, 6)
        assert not [path for path in folder.iterdir() if not path.name.isdecimal()]
    assert number > 8


def test_a_kill_at_any_operation_of_a_resume_costs_nothing(held_out_runs, tmp_path, monkeypatch):
    """From step 10, since the last checkpoint is damaged; the run that comes next is let through."""
    monkeypatch.setattr("floq.training.resume.run_to_completion", lambda runs, *_: runs)
    expected = shutil.copytree(held_out_runs[0], tmp_path / "expected")
    flip(expected / "checkpoints" / "12" / "state.safetensors")
    prepared = shutil.copytree(expected, tmp_path / "prepared")
    resume_fleet([expected], show=False)
    for number in range(1, 100):
        copied = shutil.copytree(prepared, tmp_path / str(number))
        if not dies_at(number, resume_fleet, [copied], show=False):
            break
        resume_fleet([copied], show=False)
        for name in ("train.csv", "eval.csv"):
            assert (copied / name).read_bytes() == (expected / name).read_bytes()
        assert {path.name for path in copied.iterdir()} == {path.name for path in expected.iterdir()}
        assert steps(copied / "checkpoints") == [5, 10]
        assert Run.open(copied).config == Run.open(expected).config
    assert number > 8


def test_a_kill_while_a_run_folder_is_made_leaves_no_half_run(held_out_runs, tmp_path):
    config = Config.from_json(
        json.loads((held_out_runs[0] / "checkpoints" / "12" / "manifest.json").read_text())["config"]
        | {"save_dir": str(tmp_path)}
    )
    for number in range(1, 100):
        if not dies_at(number, Run.create, config, {}):
            break
        for hidden in Run.parent(config).glob("*") if Run.parent(config).exists() else ():
            assert hidden.name.startswith(".") or Run.open(hidden)
            shutil.rmtree(hidden)
    assert only_run(tmp_path).config == config
    assert number > 4
