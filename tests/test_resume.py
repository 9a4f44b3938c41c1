"""Stopping and continuing: the end is the same, bit by bit, whenever the run was stopped."""

import contextlib
import csv
import dataclasses
import json
import re
import shutil
import signal

import jax
import numpy as np
import pytest
from conftest import undrawn

from floq import cli
from floq.agent.agent import Agent
from floq.analysis import pictures
from floq.evaluation.rollouts import Evaluator
from floq.runs import checkpoint
from floq.runs.config import Config, configure
from floq.runs.loggers import CsvLogger, cut_csv, read_csv
from floq.runs.run import Run, restore
from floq.training import loop
from floq.training.fleet import Fleet
from floq.training.resume import resume
from floq.training.train import train
from floq.utils.errors import Interrupted, UserError

SMALL = {
    "floq": {"value_hidden_dims": (8,), "block_width": 8, "block_depth": 1, "noise_samples": 2},
    "fql": {"value_hidden_dims": (8,)},
}
INTERVALS = {"offline_steps": 12, "log_interval": 2, "eval_interval": 6, "save_interval": 5, "eval_episodes": 2}


pytestmark = pytest.mark.usefixtures("no_pictures")


def small_config(dataset_dir, save_dir, agent="floq", **settings) -> Config:
    size = {"batch_size": 8, "actor_hidden_dims": (8,), **SMALL[agent]}
    folders = {"dataset_dir": str(dataset_dir), "save_dir": str(save_dir)}
    return configure(agent=agent, **(INTERVALS | size | folders | settings))


@contextlib.contextmanager
def stopped_during(what: str, number: int, signum: signal.Signals):
    """A signal arrives during the call number `number` (from 1) of: update, evaluate, save, show (after the save)."""
    places = {
        "update": (Fleet, "advance"),
        "evaluate": (Evaluator, "rollout"),
        "save": (checkpoint, "save"),
        "show": (loop.Loop, "_state"),
    }
    owner, name = places[what]
    original, calls = getattr(owner, name), 0

    def interrupted(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == number:
            signal.raise_signal(signum)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        yield


def rows_without_times(path):
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def assert_same_end(one: Run, other: Run):
    a, b = one.load_agent(), other.load_agent()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        raw = [jax.random.key_data(v) if jax.dtypes.issubdtype(v.dtype, jax.dtypes.prng_key) else v for v in (x, y)]
        np.testing.assert_array_equal(*raw)
    for name in ("train.csv", "eval.csv"):
        assert rows_without_times(one.folder / name) == rows_without_times(other.folder / name), name
    for key in ("success", "episode.return", "episode.length", "steps"):
        assert one.summary[key] == other.summary[key]


@pytest.mark.parametrize("agent", [pytest.param("floq", marks=pytest.mark.slow), "fql"])
def test_a_run_stopped_many_times_ends_as_if_it_had_not_been(dataset_dir, tmp_path, agent):
    """Evaluations are due at 1, 6, 12; logs at even steps; checkpoints at 5, 10, 12."""
    moments = [
        ("evaluate", 1, signal.SIGINT),  # the first evaluation, of step 1
        ("save", 1, signal.SIGINT),  # that evaluation redone; then the checkpoint of step 5
        ("evaluate", 1, signal.SIGTERM),  # of step 6
        ("evaluate", 1, signal.SIGINT),  # the same, while it is being redone
        ("update", 1, signal.SIGTERM),  # the very first call after that
        ("show", 2, signal.SIGINT),  # when this step's turn to save is over
        ("evaluate", 1, signal.SIGTERM),  # of step 12, the last
    ]
    undisturbed = train(small_config(dataset_dir, tmp_path / "a", agent), show=False)
    config, folder = small_config(dataset_dir, tmp_path / "b", agent), None
    for moment in moments:
        with stopped_during(*moment), pytest.raises(Interrupted, match="--resume") as stop:
            train(config, show=False) if folder is None else resume(folder, show=False)
        assert stop.value.signum == moment[2]
        (folder,) = (tmp_path / "b").glob("floq/debug/*/*")
        at = int(re.search(r"at step (\d+)", str(stop.value)).group(1))  # type: ignore[union-attr]
        assert checkpoint.steps(folder / "checkpoints")[-1] == at
    assert not Run.open(folder).is_finished
    assert_same_end(resume(folder, show=False), undisturbed)


def test_a_finished_run_can_be_extended_and_counts_its_time_on(dataset_dir, tmp_path):
    long = train(small_config(dataset_dir, tmp_path / "a", "fql"), show=False)
    short = train(small_config(dataset_dir, tmp_path / "b", "fql", offline_steps=6), show=False)
    seconds = short.summary["seconds"]
    assert resume(short.folder, show=False).summary["steps"] == 6  # nothing to do
    assert cli.run(["train", f"--resume={short.folder}", "--offline_steps=12"]) == 0
    extended = Run.open(short.folder)
    assert_same_end(extended, long)
    assert extended.config.offline_steps == 12
    assert extended.summary["seconds"] > seconds
    assert read_csv(extended.folder / "train.csv")["time/total_time"] == sorted(
        read_csv(extended.folder / "train.csv")["time/total_time"]
    )
    with pytest.raises(UserError, match="the run is at step 12 already"):
        resume(short.folder, offline_steps=10, show=False)


def test_rows_after_the_checkpoint_are_cut_and_written_again(dataset_dir, tmp_path):
    """As after a kill: the newest checkpoint is older than the newest log row, which is incomplete."""
    run = train(small_config(dataset_dir, tmp_path / "a", "fql"), show=False)
    copy = tmp_path / "copy"
    shutil.copytree(run.folder, copy)
    shutil.rmtree(copy / "checkpoints" / "12")
    (copy / "summary.json").unlink()
    with open(copy / "train.csv", "a") as file:
        file.write("13,0.5,0.")
    assert_same_end(resume(copy, show=False), run)
    for step in (5, 10, 12):
        shutil.rmtree(copy / "checkpoints" / str(step))
    (copy / "summary.json").unlink()
    assert_same_end(resume(copy, show=False), run)  # killed before its first checkpoint: from the start


def test_a_restored_agent_covers_both_reward_ranges(dataset_dir, tmp_path):
    config = small_config(dataset_dir, tmp_path, "fql", restore_path="somewhere")
    old, new = (
        Agent.init(jax.random.key(seed), 2, 2, config.agent, reward_range=rewards)
        for seed, rewards in ((0, (-5.0, 0.0)), (1, (-1.0, 3.0)))
    )
    restored = restore(new, config, checkpoint.Checkpoint(old, config, (2, 2), {}, {}))
    assert (restored.value_range.r_min, restored.value_range.r_max) == (-5.0, 3.0)
    assert not np.array_equal(jax.random.key_data(restored.key), jax.random.key_data(old.key))


@pytest.mark.parametrize("had_one", [True, False])
def test_a_restored_agent_acts_in_targets_as_the_old_one_did(dataset_dir, tmp_path, had_one):
    """With its slow copy of the actor, or with the actor itself if there was no copy."""
    config = small_config(dataset_dir, tmp_path, "fql", actor="deterministic", restore_path="somewhere")
    before = small_config(dataset_dir, tmp_path, "fql", actor="deterministic", target_actor=had_one)
    old, new = (Agent.init(jax.random.key(seed), 2, 2, c.agent) for seed, c in ((0, before), (1, config)))
    if had_one:
        old = dataclasses.replace(old, target_actor=jax.tree.map(lambda x: x + 1, old.target_actor))
    restored = restore(new, config, checkpoint.Checkpoint(old, before, (2, 2), {}, {}))
    acted = old.target_actor if had_one else old.params.actor
    for x, y in zip(jax.tree.leaves(restored.target_actor), jax.tree.leaves(acted), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_stopped_while_drawing_has_its_record_and_is_drawn_later(dataset_dir, tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pictures, "draw_pictures", stop)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT when all was trained; the rest comes with .* --resume"):
        train(small_config(dataset_dir, tmp_path, "fql", offline_steps=1), show=False)
    (folder,) = tmp_path.glob("floq/debug/*/*")
    before = Run.open(folder).summary
    drawn = []
    monkeypatch.setattr(pictures, "draw_pictures", lambda run, agent, data, display, names: drawn.extend(names))
    assert resume(folder).summary == before
    assert drawn == ["learning_curve.png", "value_map.png"]
    assert "drawing what is missing: learning_curve.png, value_map.png" in capsys.readouterr().out


def test_one_process_at_a_time_works_in_a_run_folder(old_run, capsys):
    with old_run.lock():
        assert cli.run(["train", f"--resume={old_run.folder}", "--offline_steps=7"]) == 2
    assert "another process is at work in" in capsys.readouterr().err


def test_what_cannot_be_continued(dataset_dir, tmp_path, capsys):
    run = train(small_config(dataset_dir, tmp_path / "a", "fql", offline_steps=6), show=False)
    before = (run.folder / "train.csv").read_bytes()

    def complaint(*flags):
        assert cli.run(["train", f"--resume={run.folder}", *(flags or ["--offline_steps=8"])]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--agent.alpha with --resume" in complaint("--agent.alpha=3")
    assert "must be a multiple of --num_envs=2" in complaint("--online_steps=3", "--num_envs=2")
    assert "the run is at step 6 already, give more" in complaint("--offline_steps=4")
    written = (run.folder / "config.json").read_text()
    values = json.loads(written)
    (run.folder / "config.json").write_text(json.dumps(values | {"agent": values["agent"] | {"alpha": 7.0}}))
    assert "belongs to another configuration: alpha is 7.0 here and 3.0 there" in complaint()
    values["data"]["fingerprint"] = "0-00000000"
    (run.folder / "config.json").write_text(json.dumps(values))
    assert "is not what" in complaint()
    (run.folder / "config.json").write_text(written)
    assert (run.folder / "train.csv").read_bytes() == before
    assert run.is_finished


def test_restore_path_starts_a_new_run_from_weights(dataset_dir, tmp_path):
    old = train(small_config(dataset_dir, tmp_path / "a", "fql", offline_steps=6), show=False)
    flags = {"restore_path": str(old.folder), "restore_epoch": 5, "lr": 0.0, "offline_steps": 2}
    with pytest.raises(UserError, match="lr=0"):
        small_config(dataset_dir, tmp_path / "b", "fql", **flags)
    new = train(small_config(dataset_dir, tmp_path / "b", "fql", **(flags | {"lr": 1e-30, "seed": 5})), show=False)
    agent, weights = new.load_agent(), old.load_agent(5)
    assert int(agent.step) == 2
    assert new.folder != old.folder
    for a, b in zip(jax.tree.leaves(agent.params), jax.tree.leaves(weights.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(agent.opt_state.critic.count) == int(weights.opt_state.critic.count) + 2
    assert float(agent.hypers.lr) == pytest.approx(1e-30)
    # Two steps of the average take the target towards those weights: (1 - tau)^2 of the distance is left.
    left = (1 - new.config.agent.tau) ** 2
    trees = agent.target, weights.target, weights.params.critic.target_network()
    for after, before, fast in zip(*(jax.tree.leaves(tree) for tree in trees), strict=True):
        np.testing.assert_allclose(after, fast + left * (before - fast), rtol=1e-4, atol=1e-6)
    assert new.config.restore_path == str(old.folder)
    assert new.config.restore_epoch == 5
    np.testing.assert_array_equal(agent.obs_stats.mean, weights.obs_stats.mean)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"value_hidden_dims": (9,)}, r"do not fit \(value_hidden_dims is \(9,\) here and \(8,\) there\)"),
        ({"normalize_observations": False}, "it needs --normalize_observations=True"),
        ({"restore_epoch": 3}, "has no checkpoint of step 3: choose one of 5, 6"),
        ({"restore_path": None, "restore_epoch": 3}, "give that too"),
        ({"restore_path": "/nonexistent"}, "not a run folder"),
    ],
)
def test_weights_that_cannot_be_restored(old_run, dataset_dir, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        train(
            small_config(dataset_dir, tmp_path, "fql", **({"restore_path": str(old_run.folder)} | settings)), show=False
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def old_run(dataset_dir, tmp_path_factory):
    with undrawn():
        config = small_config(dataset_dir, tmp_path_factory.mktemp("old"), "fql", offline_steps=6)
        return train(config, show=False)


def test_cutting_a_log(tmp_path):
    path = tmp_path / "log.csv"
    cut_csv(path, 3)  # nothing there: nothing to do
    log = CsvLogger(path)
    for step in (1, 2, 3):
        log.log(step, {"a": step / 3})
    with open(path, "a") as file:
        file.write("2")  # a row that a crash left incomplete
    cut_csv(path, 2)
    CsvLogger(path).log(5, {"a": 0.5})
    assert read_csv(path) == {"step": [1, 2, 5], "a": [1 / 3, 2 / 3, 0.5]}
    cut_csv(path, 0)
    assert not path.exists()
    path.write_text("step,a\n\n1,2\n\n")
    cut_csv(path, 1)
    assert read_csv(path) == {"step": [1], "a": [2]}
    path.write_text(f"step,a\n1,{'2' * 200_000}\n")
    with pytest.raises(UserError, match="is damaged"):
        cut_csv(path, 1)
