"""The online phase: what is learned there, that fleets and stops leave it as it should be."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import matplotlib.axes
import numpy as np
import pytest
from helpers import ACTOR, CATEGORICAL, SCALAR, agent_config, optimised
from online_runs import FLAGS, config, episodes, only_run, params, write_data

from floq import cli
from floq.actors import DeterministicConfig
from floq.analysis.figures.training import draw_learning_curve
from floq.data.dataset import Dataset
from floq.runs import checkpoint
from floq.runs.loggers import CsvLogger, read_csv
from floq.runs.run import Run
from floq.training.online import HEADROOM, MIN_WIDENING, Online, OnlineFleet, widened
from floq.training.resume import resume
from floq.training.train import train, train_fleet
from floq.utils.errors import Interrupted, UserError

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data") / "choice.npz")


def test_new_logs_refine_an_agent_without_its_environment(tmp_path, npz, capsys):
    data = [f"--dataset={npz}", "--offline_steps=4"]
    assert cli.run(["train", *FLAGS, *data, "--env_name=probe_envs:Choice-v0", f"--save_dir={tmp_path / 'a'}"]) == 0
    old = only_run(tmp_path / "a")
    new = [f"--restore_path={old.folder}", *data, "--log_interval=4", f"--save_dir={tmp_path / 'b'}"]
    capsys.readouterr()
    assert cli.run(["train", *new, "--offline_share=0.5", "--agent.lr=1e-30"]) == 0
    said = capsys.readouterr().out
    assert f"old     50% of each batch from the data of {old.folder}" in said
    assert "the agent's settings are those of" in said
    run = only_run(tmp_path / "b")
    assert run.config.agent == dataclasses.replace(old.config.agent, lr=1e-30)
    assert "beside old data" in run.records["data"]["provenance"]
    for a, b in zip(params(run), params(old), strict=True):
        np.testing.assert_array_equal(a, b)
    assert cli.run(["train", f"--resume={run.folder}", "--offline_steps=6"]) == 0
    assert cli.run(["train", *new, "--agent=floq", "--dry_run"]) == 0  # an agent that is named is that agent
    assert '"critic": "floq"' in capsys.readouterr().out
    for flags, words in (
        (["--offline_share=1.5"], "offline_share=1.5: must be between 0 and 1"),
        (["--offline_share=0.5", "--offline_share_steps=2"], "over these steps of the online phase"),
    ):
        assert cli.run(["train", *new, *flags]) == 2
        assert words in capsys.readouterr().err
    assert cli.run(["train", f"--resume={run.folder}", "--offline_share=0"]) == 2
    assert "from its beginning to its end" in capsys.readouterr().err


@pytest.mark.slow
def test_several_environment_steps_share_an_update(tmp_path):
    run = train(config(tmp_path, num_envs=4, utd=0.25, online_steps=12), episodes(), show=False)
    assert int(run.load_agent().step) == run.config.offline_steps + 12 // 4


def test_updates_of_a_tick_are_a_whole_number(tmp_path):
    assert config(tmp_path, num_envs=4, utd=0.25, online_steps=12).updates_per_tick == 1
    rounded = config(tmp_path, num_envs=25, utd=0.28, online_steps=25)  # 0.28 * 25 is 7.000000000000001
    assert rounded.updates_per_tick == 7
    with pytest.raises(UserError, match=r"--utd=0.25 with --num_envs=2: .* makes 0.5 gradient steps"):
        config(tmp_path, num_envs=2, utd=0.25)


def test_an_agent_learns_online_what_the_data_does_not_show(tmp_path):
    """In the data the first action is always a bad one. Q(0, 0) is what the second action earns, discounted."""
    actor = DeterministicConfig(actor_hidden_dims=(32,), alpha=0.0, exploration_noise=0.3)
    agent = agent_config(
        dataclasses.replace(SCALAR, value_hidden_dims=(32,)), actor, batch_size=64, lr=3e-3, tau=0.05, discount=0.5
    )
    many = {"offline_steps": 1, "online_steps": 1200, "num_envs": 4, "utd": 2.0, "log_interval": 600}
    with optimised():
        run = train(config(tmp_path, "Choice", agent=agent, **many), episodes(), show=False)
    learned = run.load_agent()
    acts = [float(learned.act(np.array([s], np.float32), jax.random.key(0))[0]) for s in (0.0, 1.0)]
    assert acts[0] > 0.5
    assert acts[1] < -0.5
    value = learned.value(jnp.zeros(1), jnp.zeros(1), jax.random.key(1))
    assert float(value) == pytest.approx(0.5 * -acts[1], abs=0.25)
    assert int(learned.step) == 1 + 2 * 1200
    assert run.summary["steps"] == 1201
    assert run.summary["env_steps_per_second"] > 0
    logged = read_csv(run.folder / "train.csv")
    assert logged["step"] == [1, 601, 1201]
    assert np.isnan(logged["exploration/episode.return"][0])
    assert logged["exploration/episode.return"][-1] > 0.8
    assert logged["exploration/episode.length"][1:] == [2.0, 2.0]
    assert read_csv(run.folder / "eval.csv")["step"] == [1, 1201]


def end_early(folder, monkeypatch):
    return train(config(folder, **STOPPED | {"online_steps": 5}), episodes(), show=False).folder


def stop_at_step_six(folder, monkeypatch):
    advance, calls = Online.advance, []

    def interrupted(self, num_ticks):
        calls.append(num_ticks)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return advance(self, num_ticks)

    with monkeypatch.context() as patch:
        patch.setattr(Online, "advance", interrupted)
        with pytest.raises(Interrupted, match="at step 6; go on with floq train --resume"):
            train(config(folder, **STOPPED), episodes(), show=False)
    (found,) = folder.glob("floq/debug/*/*")
    return found


STOPPED = {"utd": 2.0, "save_interval": 4}


@pytest.mark.parametrize("stop", [stop_at_step_six, pytest.param(end_early, marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_online_ends_as_if_it_had_not_been(tmp_path, monkeypatch, stop):
    """Bit by bit, in an environment whose episodes all look alike: nothing else starts anew."""
    whole = train(config(tmp_path / "a", **STOPPED), episodes(), show=False)
    stopped = resume(stop(tmp_path / "b", monkeypatch), episodes(), online_steps=8, show=False)
    assert stopped.summary["steps"] == 11
    for a, b in zip(params(whole), params(stopped), strict=True):
        np.testing.assert_array_equal(a, b)
    columns = [read_csv(run.folder / "train.csv") for run in (whole, stopped)]
    for name in columns[0]:
        if not name.startswith(("time/", "exploration/")):
            np.testing.assert_array_equal(columns[0][name], columns[1][name], err_msg=name)


@pytest.mark.parametrize("utd", [1.0, 3.0])
def test_who_is_late_decides_about_the_order_and_not_about_the_result(tmp_path, utd):
    found = []
    for late in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(OnlineFleet, "is_busy", late)
            found.append(params(train(config(tmp_path / str(late), utd=utd), episodes(), show=False)))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def pendulum_data() -> Dataset:
    rng = np.random.default_rng(0)
    ends = np.arange(1, 41) % 20 == 0
    return Dataset.from_rows(rng.normal(size=(40, 3)), rng.uniform(-1, 1, (40, 1)), -np.ones(40), np.ones(40), ends)


FLEETS = {
    "choice": (episodes, {"env_name": "probe_envs:Choice-v0"}),
    "pendulum": (  # which draws its states, with two of it for each run
        pendulum_data,
        {"env_name": "Pendulum-v1", "num_envs": 2, "agent": agent_config(SCALAR, ACTOR, n_step=2)},
    ),
}


@pytest.mark.parametrize("name", ["choice", pytest.param("pendulum", marks=pytest.mark.slow)])
def test_a_fleet_of_online_runs_equals_the_runs_alone(tmp_path, name):
    data, own = FLEETS[name][0](), FLEETS[name][1] | {"online_steps": 12, "eval_interval": 0}
    runs = [config(tmp_path / "together", **own, seed=seed) for seed in (0, 1)]
    together = train_fleet(runs, data, show=False)
    for run in together:
        alone = train(dataclasses.replace(run.config, save_dir=str(tmp_path / "alone")), data, show=False)
        for a, b in zip(params(run), params(alone), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        explored = [read_csv(r.folder / "train.csv")["training/critic/q"] for r in (run, alone)]
        assert explored[0] == pytest.approx(explored[1], rel=1e-3, abs=1e-4)
    assert not np.array_equal(params(together[0])[0], params(together[1])[0])
    replays = [(run.folder / "checkpoints" / "15" / "replay.safetensors").read_bytes() for run in together]
    assert replays[0] != replays[1]


def test_the_picture_has_both_phases_and_marks_the_boundary(tmp_path, monkeypatch):
    run = Run.create(config(tmp_path, offline_steps=4, online_steps=6), {})
    evals, logs = CsvLogger(run.folder / "eval.csv"), CsvLogger(run.folder / "train.csv")
    for step in (1, 4, 10):
        evals.log(step, {"evaluation/success": np.nan, "evaluation/episode.return": step / 2})
        logs.log(step, {"a": 0.0} | ({"exploration/episode.return": 1.5} if step == 10 else {}))
    seen = {}
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda self, at, **_: seen.update(line=at))
    monkeypatch.setattr("matplotlib.axes.Axes.set_xlabel", lambda self, label, **_: seen.update(label=label))
    plot, lines = matplotlib.axes.Axes.plot, []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.plot", lambda *given, **look: lines.append(given[1:3]) or plot(*given, **look)
    )
    draw_learning_curve(run, run.folder / "learning_curve.png")
    assert seen == {"line": 4, "label": "gradient steps, then environment steps"}
    assert [list(map(list, line)) for line in lines] == [[[1, 4, 10], [0.5, 2, 5]], [[10], [1.5]]]
    assert (run.folder / "learning_curve.png").stat().st_size > 5_000


# --- as a user does it ---


def test_an_offline_run_goes_online_in_its_folder_or_in_a_new_one(tmp_path, npz, capsys):
    data = [f"--dataset={npz}", "--env_name=probe_envs:Choice-v0"]
    assert cli.run(["train", *FLAGS, *data, "--offline_steps=4", f"--save_dir={tmp_path / 'a'}"]) == 0
    old = only_run(tmp_path / "a")
    weights = old.load_agent()
    more = ["--online_steps=12", "--num_envs=2", "--utd=3", "--warmup_steps=4", "--balanced_sampling=1"]
    new = ["--offline_steps=0", "--agent.lr=1e-30", f"--restore_path={old.folder}", f"--save_dir={tmp_path / 'b'}"]
    assert cli.run(["train", *FLAGS, *data, *more, *new]) == 0
    assert cli.run(["train", f"--resume={old.folder}", *more]) == 0
    capsys.readouterr()
    for run, first in ((Run.open(old.folder), 4), (only_run(tmp_path / "b"), 0)):
        assert run.summary["steps"] == first + 12
        assert int(run.load_agent().step) == first + 3 * (12 - 4)
        logged = read_csv(run.folder / "train.csv")
        assert logged["step"] == [*([2, 4] if first else []), *range(first + 2, first + 13, 2)]
        assert logged["exploration/episode.length"][-1] == 2.0
    restored = only_run(tmp_path / "b").load_agent()
    for a, b in zip(jax.tree.leaves(restored.params), jax.tree.leaves(weights.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert read_csv(only_run(tmp_path / "b").folder / "eval.csv")["step"] == [2, 12]
    for flags, words in (
        (["--utd=4"], "--utd=4: the run is online already, with 3; leave it out"),
        (["--offline_steps=9"], "--offline_steps=9: the run is online already, with 4"),
        (["--online_steps=10"], "--online_steps=10: the run is at step 16 already, give more"),
        (["--agent.alpha=1"], "and how it learns online may change"),
    ):
        assert cli.run(["train", f"--resume={old.folder}", *flags]) == 2
        assert words in capsys.readouterr().err
    assert cli.run(["train", f"--resume={old.folder}"]) == 0
    assert "finished already, at step 16" in capsys.readouterr().out
    assert cli.run(["eval", str(old.folder), "--step=16", "--eval_episodes=1"]) == 0
    assert "checkpoint of step 16" in capsys.readouterr().out


def test_what_was_seen_is_kept_and_a_run_that_lost_it_is_left_as_it_was(tmp_path):
    """All that batches are drawn from, more than the buffer, by the newest two checkpoints. In Choice two steps follow
    each reset."""
    small = {"buffer_size": 2, "online_steps": 12, "save_interval": 4}
    run = train(config(tmp_path, "Choice", **small), episodes(), show=False)
    folder = run.folder / "checkpoints"
    assert checkpoint.steps(folder) == [3, 4, 8, 12, 15]
    assert [at for at in checkpoint.steps(folder) if checkpoint.load_replay(folder, at)] == [12, 15]
    assert (~checkpoint.load_replay(folder, 15).ends).sum() == 12 - 4
    before = (run.folder / "config.json").read_bytes()
    for step in (15, 12):
        shutil.rmtree(folder / str(step))
    with pytest.raises(UserError, match=r"checkpoints/8 has no replay.*: start a new run .* --restore_epoch=8$"):
        resume(run.folder, episodes(), online_steps=14, show=False)
    assert run.is_finished
    assert (run.folder / "config.json").read_bytes() == before


def test_a_warm_up_counts_as_no_update_and_what_was_explored_before_a_stop_is_still_known(tmp_path, npz):
    """In Choice two steps follow a reset, so the tick after the stop ends no episode."""
    data = [f"--dataset={npz}", "--env_name=probe_envs:Choice-v0", f"--save_dir={tmp_path}", "--balanced_sampling=1"]
    steps = ["--offline_steps=0", "--online_steps=6", "--warmup_steps=6", "--num_envs=2", "--buffer_size=2"]
    assert cli.run(["train", *FLAGS, *data, *steps]) == 0
    run = only_run(tmp_path)
    assert int(run.load_agent().step) == 0
    assert [run.summary[name] for name in ("seconds_to_first_update", "updates_per_second")] == [None, None]
    assert cli.run(["train", f"--resume={run.folder}", "--online_steps=12"]) == 0
    assert run.summary["seconds_to_first_update"] > 0
    assert run.summary["updates_per_second"] == pytest.approx(run.summary["env_steps_per_second"])
    explored = read_csv(run.folder / "train.csv")["exploration/episode.return"]
    assert np.isfinite(explored[2])
    assert explored[3] == explored[2]


@pytest.mark.slow
def test_an_online_fleet_over_several_devices_goes_on_bit_by_bit(tmp_path, npz):
    """Three runs over two devices, so that one place is idle; stopped in between or not."""
    code = """
import sys, jax
from floq import cli
from floq.analysis import pictures
pictures.draw = lambda *_: None
for words in {commands}:
    assert cli.run(["train", *words]) == 0
assert len(jax.devices()) == 2
"""
    flags = [*FLAGS, f"--dataset={npz}", "--env_name=probe_envs:Loop-v0", "--offline_steps=2", "--seeds", "0", "1", "2"]
    steps = lambda name, count: [*flags, f"--save_dir={tmp_path}/{name}", f"--online_steps={count}"]  # noqa: E731

    def in_a_process(*commands):
        script = code.format(commands=[list(words) for words in commands])
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FLOQ_ENV_MODULES": "probe_envs"}
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, env=environment
        )
        assert done.returncode == 0, done.stderr

    in_a_process(steps("whole", 6), steps("parts", 3))
    whole, parts = (sorted(tmp_path.glob(f"{name}/floq/debug/*/*")) for name in ("whole", "parts"))
    in_a_process(["--resume", *map(str, parts), "--online_steps=6"])
    files = [[run / "checkpoints" / "8" / "state.safetensors" for run in runs] for runs in (whole, parts)]
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert len({file.read_bytes() for file in files[0]}) == 3
    for run in whole:
        seen = checkpoint.load_replay(run / "checkpoints", 8)
        assert seen is not None
        assert (~seen.ends).sum() == 6
        np.testing.assert_array_equal(seen.rewards[~seen.ends], 1.0)


def test_a_reward_beyond_those_of_the_data_widens_the_range_of_values(tmp_path, capsys):
    """The data has rewards from -1 to 0, the environment 1."""
    data = episodes(low=-1.0, high=-0.9)
    rows = data.on_host()
    data = Dataset.from_rows(*rows._replace(rewards=np.minimum(rows.rewards, 0.0)))
    steps = {"offline_steps": 0, "online_steps": 2, "eval_interval": 0, "log_interval": 9}
    narrow = train(config(tmp_path / "scalar", **steps), data)
    assert "left the range" not in capsys.readouterr().out  # which a scalar critic does not look at
    assert float(narrow.load_agent().value_range.r_max) <= 0
    run = train(config(tmp_path, **steps, agent=agent_config(CATEGORICAL, ACTOR)), data)
    said = capsys.readouterr().out
    assert "note    step 1: an online reward left the range that the data gave; for seed 0 it is [-" in said
    found = run.load_agent().value_range
    assert float(found.r_max) == pytest.approx(1.25)
    assert float(found.r_min) == pytest.approx(float(rows.rewards.min()))
    clipped = agent_config(SCALAR, ACTOR, clip_targets=True)  # the targets of any critic may be bounded
    wide = train(config(tmp_path / "clipped", **steps, agent=clipped), data)
    assert float(wide.load_agent().value_range.r_max) == pytest.approx(1.25)


def test_a_range_of_rewards_is_widened_beyond_what_leaves_it():
    assert widened((-1.0, 0.0), -1.0, 0.0) == (-1.0, 0.0)
    assert widened((-1.0, 0.0), -0.5, 4.0) == (-1.0, 4.0 + HEADROOM * 4.0)
    assert widened((-1.0, 0.0), -1.125, 0.0) == pytest.approx((-1.125 - MIN_WIDENING * 1.125, 0.0))
