"""Environments that fail in the online phase or in evaluations: nothing learned is lost."""

import numpy as np
import pytest
from online_runs import FLAGS, config, episodes, only_run, write_data

from floq import cli
from floq.agent.state import Keys
from floq.runs import checkpoint
from floq.runs.loggers import read_csv
from floq.runs.run import make_agent
from floq.training import online
from floq.training.fleet import Fleet, FleetData
from floq.training.online import Online
from floq.utils.progress import Display

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("no_pictures")]


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "choice.npz")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "environment 0 of probe_envs:Fragile-raises-v0 (seed 0) failed: RuntimeError: a joint broke"),
        pytest.param("hangs", "did not answer within 3 seconds", marks=pytest.mark.slow),
        ("dies", "died with exit code 3"),
    ],
)
def test_an_environment_that_fails_ends_the_run_with_a_checkpoint_and_can_be_survived(
    tmp_path, npz, capsys, how, words
):
    """In its fifth step, which comes in tick 7: after two steps it is reset. The two evaluations make four steps."""
    data = [f"--dataset={npz}", f"--env_name=probe_envs:Fragile-{how}-v0", f"--save_dir={tmp_path}"]
    assert cli.run(["train", *FLAGS, *data, "--offline_steps=1", "--online_steps=9", "--env_timeout=3"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    run = only_run(tmp_path)
    assert words in error
    assert "--restart_failed_envs=True would go on with a fresh one" in error
    assert f"at step 8; go on with floq train --resume {run.folder}" in error
    assert int(run.load_agent(8).step) == 8
    assert (
        len(checkpoint.load_replay(run.folder / "checkpoints", 8).ends) == 8
    )  # all but the last tick, and an empty one
    goes_on = ["train", f"--resume={run.folder}", "--restart_failed_envs=True", "--online_steps=16"]
    assert cli.run(goes_on) == 0  # its third instance fails as well, in tick 14
    printed = capsys.readouterr().out
    assert "each begins a new episode" in printed
    assert any(words in line and ("replaced" in line or "restarted" in line) for line in printed.splitlines())
    assert int(run.load_agent().step) == 17


@pytest.mark.parametrize("online_steps", [7, 9])
def test_what_is_due_where_an_environment_fails_is_done(tmp_path, npz, capsys, online_steps):
    """It fails at step 8, which is the last or one with an evaluation."""
    for how, code in (("not", 0), ("raises", 1)):
        data = [f"--dataset={npz}", f"--env_name=probe_envs:Fragile-{how}-v0", f"--save_dir={tmp_path / how}"]
        steps = ["--offline_steps=1", f"--online_steps={online_steps}", "--eval_interval=8"]
        assert cli.run(["train", *FLAGS, *data, *steps]) == code
    sound, failed = only_run(tmp_path / "not"), only_run(tmp_path / "raises")
    assert "at step 8; go on with" in capsys.readouterr().err
    assert not failed.is_finished
    assert cli.run(["train", f"--resume={failed.folder}", "--restart_failed_envs=True"]) == 0
    for name in ("train.csv", "eval.csv"):
        assert read_csv(failed.folder / name)["step"] == read_csv(sound.folder / name)["step"]
    assert 8 in read_csv(failed.folder / "eval.csv")["step"]


class Seen:
    """Stands in for an `OnlineFleet`: it learns nothing, and remembers what it was given."""

    is_busy = False

    def __init__(self, *_):
        self.experience = []

    def explore(self, obs, tick):
        return lambda: np.full((*obs.shape[:2], 1), 0.1 * tick, np.float32)

    def learn(self, new, num_updates, offline_share):
        self.experience.append(new)


@pytest.mark.parametrize(("how", "lost"), [("raises", 1), ("dies", None)])
def test_what_a_fleet_saw_beside_an_environment_that_failed_is_kept(tmp_path, monkeypatch, how, lost):
    """Two runs with two environments each. One raises in tick 7, in which the others step; or dies, and takes along
    those that are in its process, whose first tick anew is a reset."""
    monkeypatch.setenv("PROBE_LICENCE", str(tmp_path / "licence"))
    monkeypatch.setattr(online, "OnlineFleet", Seen)
    data = episodes()
    own = {"num_envs": 2, "online_steps": 18, "restart_failed_envs": True}

    def played(env):
        configs = [config(tmp_path, env, **own, seed=seed) for seed in (0, 1)]
        agents, keys = [make_agent(c, data) for c in configs], [Keys.of(c.seed) for c in configs]
        both = FleetData.of([data])
        batches, others = [key.batches for key in keys], [key.validation for key in keys]
        fleet = Fleet(agents, [0, 0], both, both, batches, others)
        with Online(configs, fleet, 0, [None, None], Display(show=False)) as playing:
            playing.advance(8)
            seen = [*playing.fleet.experience, playing._pending]
            return seen, [playing.statistics(run)["exploration/episode.length"] for run in (0, 1)]

    (sound, _), (seen, lengths) = played("Fragile-not"), played(f"Fragile-{how}-once")
    failed = ~seen[7].stepped
    assert 1 <= failed.sum() == (lost or failed.sum())
    for before, after in zip(sound, seen, strict=True):
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one[~failed], other[~failed])
    for before, after in zip(sound[:7], seen[:7], strict=True):
        np.testing.assert_array_equal(before.stepped, after.stepped)
    assert lengths == [2.0, 2.0]


def test_an_environment_that_cannot_be_made_anew_ends_the_run_with_a_checkpoint(tmp_path, npz, capsys, monkeypatch):
    monkeypatch.setenv("PROBE_LICENCE", str(tmp_path / "licence"))
    (tmp_path / "licence").touch()
    data = [f"--dataset={npz}", "--env_name=probe_envs:Fragile-vanishes-v0", f"--save_dir={tmp_path / 'exp'}"]
    steps = ["--offline_steps=1", "--online_steps=9", "--restart_failed_envs=True"]
    assert cli.run(["train", *FLAGS, *data, *steps]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "could not be made: RuntimeError: no licence left (3 times in a row); at step 8" in error
    assert checkpoint.steps(only_run(tmp_path / "exp").folder / "checkpoints")[-1] == 8


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_evaluation_that_fails_ends_the_run_with_a_checkpoint_and_one_that_hangs_begins_again(
    tmp_path, npz, capsys, how
):
    """Each evaluation makes two steps of its environment: the third is that of step 4, or the last but one."""
    data = [f"--dataset={npz}", f"--env_name=probe_envs:Fragile-{how}-v0", f"--save_dir={tmp_path}"]
    code = cli.run(["train", *FLAGS, *data, "--offline_steps=6", "--eval_interval=2", "--env_timeout=2"])
    run, error = only_run(tmp_path), capsys.readouterr().err
    if how == "raises":
        assert code == 1
        (line,) = error.splitlines()
        what = f"the evaluation of {run.config.env_name} at step 4 failed: RuntimeError: a joint broke"
        assert line.startswith(f"floq: {what}; at step ")
        assert cli.run(["train", f"--resume={run.folder}"]) == 0
    else:
        assert code == 0
    assert read_csv(run.folder / "eval.csv")["step"] == [1, 2, 4, 6]
