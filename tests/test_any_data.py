"""`floq train --dataset`: on somebody's own data, with a Gymnasium environment and with none."""

import json
import re
from dataclasses import replace
from functools import partial

import gymnasium
import jax
import numpy as np
import pytest
from conftest import TINY
from episodes import make_episodes, write_folder, write_minari
from helpers import SCALAR, agent_config

import floq
from floq import cli
from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis.evaluate_run import evaluate_run
from floq.analysis.inspect_run import inspect_run
from floq.data.arrays import from_episodes
from floq.data.dataset import Dataset
from floq.data.formats.d4rl import SCORES, score_range
from floq.data.formats.open import open_splits
from floq.envs.environments import EnvFactory, SeededEnv
from floq.evaluation.held_out import ACTIONS, HeldOutEvaluator
from floq.evaluation.rollouts import play_episode
from floq.runs.config import Config
from floq.runs.run_data import with_score_range
from floq.utils.errors import UserError
from floq.utils.progress import Display

SMALL = [*TINY, "--agent=fql"]


def pendulum_episodes(count=4, length=30):
    """Of the pendulum's sizes: three numbers seen, one torque."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            "observations": rng.normal(size=(length + 1, 3)),
            "actions": rng.uniform(-1, 1, (length, 1)),
            "rewards": -rng.uniform(size=length),
        }


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("robot") / "logs", pendulum_episodes())


@pytest.fixture(scope="module")
def finished(logs, tmp_path_factory):
    """A run without an environment, and what it printed."""
    save_dir = tmp_path_factory.mktemp("exp")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(logs.parent)  # the data by a relative path, which another folder must understand
        assert cli.run(["train", *SMALL, "--dataset=logs", f"--save_dir={save_dir}"]) == 0
    (folder,) = save_dir.glob("floq/debug/logs/*")
    return folder


def test_without_an_environment_the_critic_speaks_and_success_does_not(finished, logs):
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["success"], summary["eval_episodes"], summary["success_timing"]) == (None, None, None)
    data = from_episodes(list(pendulum_episodes())[-1:])  # of four episodes the last is held out
    returns = (data.rewards[:-1] * 0.99 ** np.arange(30)).sum()
    assert summary["data_return"] == pytest.approx(returns, rel=1e-5)
    assert np.isfinite([summary["td_error"], summary["initial_value"]]).all()
    config = json.loads((finished / "config.json").read_text())
    assert (config["env_name"], config["dataset"], config["protocol"]) == (None, str(logs), "no environment")
    assert config["data"]["provenance"] == f"{logs}; its last episode held out"
    assert {p.name for p in (finished / "plots").iterdir()} == {"learning_curve.png"}
    columns = (finished / "eval.csv").read_text().splitlines()[0].split(",")
    assert columns[:4] == ["step", "evaluation/td_error", "evaluation/initial_value", "evaluation/data_return"]


def test_the_same_number_again_and_on_from_there(finished, capsys):
    before = floq.Run.open(finished).evaluations()
    assert cli.run(["eval", str(finished), "--step=4"]) == 0
    printed = capsys.readouterr().out
    assert "no environment" in printed
    assert f"TD error    {before['evaluation/td_error'][before['step'].index(4)]:.4g}" in printed
    assert cli.run(["train", f"--resume={finished}", "--offline_steps=8"]) == 0
    after = floq.Run.open(finished).evaluations()
    assert after["step"] == [1, 4, 6, 8]
    assert after["evaluation/td_error"][:3] == before["evaluation/td_error"]
    assert "according to the critic" in " ".join(capsys.readouterr().out.split())


def test_a_run_is_evaluated_elsewhere(finished, capsys):
    """Also one without an environment; and only where the policy fits."""
    elsewhere = ["eval", str(finished), "--env_name=Pendulum-v1", "--eval_episodes=2", "--step=4"]
    policy = floq.Run.open(finished).load_agent(4).policy
    for flags, gravity in (([], 10.0), (["--env_kwargs.g=2.0", "--score_range=-1000,0"], 2.0)):
        assert cli.run([*elsewhere, *flags]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        env = SeededEnv(gymnasium.make("Pendulum-v1", g=gravity), EnvFactory("Pendulum-v1"))
        returns = []
        for episode in range(2):
            key = jax.random.fold_in(jax.random.fold_in(Keys.of(0).evaluation, 4), episode)
            decide = partial(lambda key, obs, elapsed: policy.act(obs, jax.random.fold_in(key, elapsed)), key)
            *_, (_, _, last) = play_episode(env, (0, 4, episode), decide, 1)
            returns.append(last.result.episode_return)
        assert f"return {np.mean(returns):.4g} on average" in shown
        assert (f"score {100 * (1 + np.mean(returns) / 1000):.1f}, 0 for a return of -1000" in shown) == bool(flags)
    for wrong, message in {
        "--env_name=MountainCarContinuous-v0": "its observation has 2 numbers, that of the policy in .* has 3 numbers",
        "--env_name=Hopper-v5": "its observation has 11 numbers",
        "--env_kwargs.g=2.0": "--env_kwargs are the arguments of another environment, which --env_name names",
    }.items():
        assert cli.run(["eval", str(finished), wrong]) == 2
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:minari")
def test_scores_that_data_and_environments_carry(tmp_path, monkeypatch):
    """A Minari dataset's own, before D4RL's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write_minari("test/scored-v0", make_episodes([(3, True), (2, False)]))
    metadata = tmp_path / "test" / "scored-v0" / "data" / "metadata.json"
    written, hopper = json.loads(metadata.read_text()), Config(env_name="Hopper-v5", dataset="test/scored-v0")
    for scores, wanted in (({"ref_min_score": -5, "ref_max_score": 70.5}, (-5, 70.5)), ({"ref_min_score": 1}, None)):
        metadata.write_text(json.dumps(written | scores))
        splits = open_splits("test/scored-v0", "none")
        assert splits.score_range == wanted
        found = with_score_range(hopper, splits, Display(show=False)).score_range
        assert found == (wanted or (-20.272305, 3234.3))
    for name, known in {"HalfCheetah-v5": 12135.0, "AdroitHandDoorSparse-v1": 2880.5693087298737}.items():
        assert score_range(name) == (SCORES["halfcheetah" if known > 1e4 else "door"][0], known)
    assert score_range("Pendulum-v1") is None
    mine = replace(hopper, score_range=(0.0, 1.0))
    assert with_score_range(mine, splits, Display(show=False)) == mine
    blind = replace(hopper, env_name=None)
    assert with_score_range(blind, splits, Display(show=False)) == blind


def test_what_is_said_is_what_the_agent_computes():
    """The value of initial states, by a loop over states and actions."""
    data = Dataset.from_episodes(make_episodes([(3, True), (2, False), (4, True)]))
    agent = Agent.init(jax.random.key(0), 2, 1, agent_config(SCALAR))
    act, value = jax.jit(Agent.act), jax.jit(Agent.value)
    found = HeldOutEvaluator(data)(agent, seed=3, step=0)
    assert found is not None
    assert HeldOutEvaluator(data)(agent, seed=3, step=7) == found._replace(step=7)
    assert HeldOutEvaluator(data)(agent, seed=3, step=0, should_stop=lambda: True) is None
    starts, values = [0, 4, 7], []
    keys = jax.random.split(jax.random.split(Keys.of(3).evaluation)[1], (3, ACTIONS))
    for row, state_keys in zip(starts, keys, strict=True):
        for key in state_keys:
            act_key, value_key = jax.random.split(key)
            obs = data.observations[row]
            values.append(float(value(agent, obs, act(agent, obs, act_key), value_key)))
    assert found.initial_value == pytest.approx(np.mean(values), rel=1e-4)


FLOW = ["--agent=floq", "--agent.block_width=8", "--agent.block_depth=1"]


@pytest.mark.parametrize(
    ("own", "pictures"),
    [([], {"learning_curve.png"}), pytest.param(FLOW, {"learning_curve.png", "flow.png"}, marks=pytest.mark.slow)],
    ids=["fql", "floq"],
)
def test_with_a_gymnasium_environment(logs, tmp_path, capsys, own, pictures):
    flags = [f"--dataset={logs}", "--env_name=Pendulum-v1", f"--save_dir={tmp_path}", "--score_range", "-2000", "0"]
    assert cli.run(["train", *SMALL, *flags, *own]) == 0
    (folder,) = tmp_path.glob("floq/debug/Pendulum-v1/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["success"] is None
    assert (summary["eval_episodes"], summary["episode.length"]) == (3, 200)
    assert -2000 < summary["episode.return"] < 0
    run = floq.Run.open(folder)
    scores = 100 * (1 + np.array(run.evaluations()["evaluation/episode.return"]) / 2000)
    np.testing.assert_allclose(run.evaluations()["evaluation/episode.normalized_return"], scores)
    assert run.config.score_range == (-2000, 0)
    printed = capsys.readouterr().out
    assert "scores  0 stands for a return of -2000, 100 for 0, according to --score_range" in printed
    assert f"score {scores[-1]:.1f}, 0 for a return of -2000 and 100 for 0" in " ".join(printed.split())
    assert "3 episodes of Pendulum-v1" in printed
    assert "90 + 30 transitions, 0.0 MB" in printed
    low = min(float(e["rewards"].min()) for e in list(pendulum_episodes())[:3])
    assert (f"values  [{100 * low:.4g}, 0]; source noise [{10 * low:.4g}, 0]" in printed) == (own == FLOW)
    assert {p.name for p in (folder / "plots").iterdir()} == pictures


def test_data_given_from_python(tmp_path):
    data = Dataset.from_episodes(pendulum_episodes())
    config = floq.configure(
        agent="fql", dataset="mine", save_dir=str(tmp_path), offline_steps=2, batch_size=8,
        value_hidden_dims=(8,), actor_hidden_dims=(8,),
    )  # fmt: skip
    run = floq.train(config, data, show=False)
    assert run.folder.parent.name == "mine"
    with pytest.raises(UserError, match=r"was given its data from Python: do so again, as in floq\.resume"):
        floq.resume(run.folder, offline_steps=3, show=False)
    with pytest.raises(UserError, match="was given its data from Python"):
        inspect_run(str(run.folder), show=False)
    assert cli.run(["eval", str(run.folder)]) == 2
    found = evaluate_run(str(run.folder), data=data, show=False)
    assert found.summary()["evaluation/td_error"] == run.evaluations()["evaluation/td_error"][-1]
    other = Dataset.from_episodes(pendulum_episodes(count=5))
    with pytest.raises(UserError, match=r"is not what .* was trained on"):
        floq.resume(run.folder, other, offline_steps=3, show=False)
    with pytest.raises(UserError, match=r"is not what .* was trained on"):
        evaluate_run(str(run.folder), data=other, show=False)
    assert floq.resume(run.folder, data, offline_steps=3, show=False).summary["steps"] == 3
    with pytest.raises(UserError, match="the given data: observations has 3 numbers per row, MountainCar"):
        floq.train(floq.configure("MountainCarContinuous-v0", save_dir=str(tmp_path)), data, show=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env_name=HalfCheetah-v5"], "observations has 3 numbers per row, HalfCheetah-v5 has 17"),
        (["--env_name=pointmaze-medium-navigate-singletask-v0"], "observations has 3 numbers per row, pointmaze"),
    ],
)
def test_data_that_is_not_of_the_environment(logs, tmp_path, capfd, flags, message):
    assert cli.run(["train", *SMALL, *flags, f"--dataset={logs}", f"--save_dir={tmp_path}"]) == 2
    assert message in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_rewards_needs_a_task(dataset_dir, tmp_path, capsys):
    file = dataset_dir / "pointmaze-medium-navigate-v0.npz"
    assert cli.run(["train", f"--dataset={file}", f"--save_dir={tmp_path}"]) == 2
    assert "has no rewards: name the task that gives them with --env_name" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_rewards_beyond_the_training_ones_are_pointed_at(tmp_path, capsys):
    episodes = list(pendulum_episodes())
    episodes[-1]["rewards"] = episodes[-1]["rewards"] - 9
    logs = write_folder(tmp_path / "logs", episodes)
    tiny = [*TINY, "--offline_steps=1", *FLOW]
    assert cli.run(["train", *tiny, f"--dataset={logs}", f"--save_dir={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "% of the discounted returns lie outside the values" in printed


def test_the_presets_of_a_family_hold_for_its_data(capsys):
    def resolved(*flags):
        assert cli.run(["train", "--dry_run", *flags]) == 0
        return json.loads(capsys.readouterr().out)

    scene = resolved("--dataset=scene-play-singletask-v0")
    assert (scene["env_name"], scene["agent"]["alpha"]) == (None, 300.0)
    assert resolved("--dataset=mujoco/hopper/medium-v0")["agent"]["alpha"] == 10.0
    assert resolved("--dataset=/data/scene-play-v0.npz")["agent"]["alpha"] == 300.0
    both = resolved("--dataset=~/logs.hdf5", "--env_name=Hopper-v5")
    assert (both["env_name"], both["dataset"]) == ("Hopper-v5", "~/logs.hdf5")
