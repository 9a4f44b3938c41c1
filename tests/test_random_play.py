"""Runs from scratch: random play is their data, made once and kept."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from online_runs import FLAGS, config, params

from floq import cli
from floq.data.collection import random_play
from floq.data.collection.random_play import RandomRollout
from floq.envs.environments import EnvFactory
from floq.runs import run_data
from floq.runs.run import Run
from floq.training.resume import resume
from floq.training.train import train, train_fleet
from floq.utils.errors import UserError
from floq.utils.progress import Display

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_from_scratch_random_steps_come_first(tmp_path, monkeypatch):
    own = {"offline_steps": 0, "online_steps": 6, "warmup_steps": 45, "eval_interval": 0}
    run = train(config(tmp_path, "Choice", **own, seed=1), show=False)
    assert int(run.load_agent().step) == 6  # updates begin at once: the warm-up is over
    assert run.records["data"]["provenance"].startswith("45 steps of probe_envs:Choice-v0 with random actions, seed 1")
    monkeypatch.setattr(run_data, "Workers", None)
    assert resume(run.folder, online_steps=8, show=False).summary["steps"] == 8  # which reads the data again


@pytest.mark.slow
def test_a_fleet_from_scratch_has_the_random_steps_of_its_runs(tmp_path):
    own = {"offline_steps": 0, "online_steps": 6, "warmup_steps": 45, "env_name": "Pendulum-v1"}
    runs = [config(tmp_path / "together", **own, seed=seed) for seed in (0, 1)]
    together = train_fleet(runs, show=False)
    alone = train(dataclasses.replace(runs[1], save_dir=str(tmp_path / "alone")), show=False)
    for a, b in zip(params(together[1]), params(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    data = [run.records["data"] for run in (*together, alone)]
    assert data[1] == data[2]
    assert data[0]["fingerprint"] != data[1]["fingerprint"]


def play_whole(env_name, seed, steps):
    play = RandomRollout(EnvFactory(env_name), seed, steps)
    while play.go_on() < steps:
        pass
    return play.trajectories()


def test_random_play_is_that_of_its_seed_and_ends_where_it_should():
    one, other, third = (play_whole("probe_envs:Choice-v0", seed, 7) for seed in (3, 3, 4))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.actions, third.actions)
    np.testing.assert_array_equal(one.ends, [0, 0, 1] * 3 + [0, 1])  # three whole episodes, and a step of another
    np.testing.assert_array_equal(one.masks[~one.ends], [1, 0] * 3 + [1])
    assert np.ptp(one.actions[~one.ends]) > 1


def test_random_play_is_the_same_in_one_piece_and_in_many(monkeypatch):
    whole = play_whole("Pendulum-v1", 0, 6)
    clock = itertools.count()
    monkeypatch.setattr(random_play, "time", SimpleNamespace(monotonic=lambda: next(clock) / 4))
    play, pieces = RandomRollout(EnvFactory("Pendulum-v1"), 0, 6), []
    while not pieces or pieces[-1] < 6:
        pieces.append(play.go_on())
    assert pieces == [1, 2, 3, 4, 5, 6]
    for a, b in zip(whole, play.trajectories(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_keeps_its_random_play_since_not_every_environment_makes_it_again(tmp_path):
    own = {"env_name": "probe_envs:Unseeded-v0", "offline_steps": 0, "warmup_steps": 60}
    runs, display = [Run.create(config(tmp_path, **own, seed=seed), {}) for seed in (0, 1)], Display(show=False)
    configs = [run.config for run in runs]
    first, again = (run_data.load_fleet_data(configs, display) for _ in range(2))
    for run in runs:
        made = first[run_data.data_key(run.config)]
        assert run_data.data_records(made) != run_data.data_records(again[run_data.data_key(run.config)])
        run.write_config({"data": run_data.data_records(made)})
        run_data.save_random_data(run, made)
    kept = run_data.load_fleet_data(configs, display, runs=runs)
    for run in runs:
        run_data.check_fingerprint(run, kept[run_data.data_key(run.config)])
    (runs[0].folder / "random.npz").unlink()
    with pytest.raises(UserError, match="its environment does not follow its seed alone; start a new run"):
        run_data.check_fingerprint(runs[0], run_data.load_data(configs[0], display, run=runs[0]))
    path = runs[1].folder / "random.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"random.npz cannot be read .*: delete it"):
        run_data.load_data(configs[1], display, run=runs[1])


@pytest.mark.processes
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("probe_envs:Fragile-raises-v0", 1, "(seed 0) failed: RuntimeError: a joint broke"),
        ("probe_envs:Fragile-hangs-v0", 1, "(seed 0) failed: worker 0 has not answered within 1.5 seconds"),
        ("probe_envs:Fragile-dies-v0", 1, "(seed 0) failed: worker 0 died with exit code 3"),
        ("probe_envs:Fragile-nan-v0", 1, "(seed 0) failed: its reward was nan"),
        ("Nothing-v0", 2, "unknown environment 'Nothing-v0'"),
    ],
)
def test_random_play_that_fails_is_told_in_one_line(tmp_path, capsys, monkeypatch, name, code, words):
    monkeypatch.setattr(run_data, "START_TIMEOUT_S", 0.0)  # its first call is the one that hangs
    flags = [f"--env_name={name}", f"--save_dir={tmp_path}", "--offline_steps=0", "--online_steps=4"]
    timeout = "--env_timeout=1" if "hangs" in name else "--env_timeout=60"
    assert cli.run(["train", *FLAGS, *flags, timeout]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("floq: ")
    assert words in line
    assert not list(tmp_path.iterdir())
