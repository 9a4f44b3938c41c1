"""`floq inspect`: the numbers behind the pictures by hand, the files of every kind of run, and what it refuses."""

import dataclasses
import functools
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import make_episodes
from helpers import ACT, CATEGORICAL, FLOQ, OBS, QUANTILE, SCALAR, WIDTH, agent_config

import floq
from floq import cli
from floq.agent.agent import Agent
from floq.analysis import critic_outputs
from floq.analysis.evaluate_run import evaluate_run
from floq.analysis.figures.critic import draw_histograms, draw_members, draw_noise_left, draw_quantiles, draw_settling
from floq.analysis.figures.episodes import Played, draw_values
from floq.analysis.figures.training import draw_diagnosis
from floq.analysis.inspect_run import _dataset, discounted_rewards_to_go, inspect_run, play
from floq.analysis.pictures import PICTURES, Subject, draw, evenly_spaced
from floq.critics import CRITICS, FloqCritic
from floq.data.dataset import Dataset
from floq.data.replay import ReplaySnapshot
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec
from floq.utils.progress import Display

NEW_CRITIC = Path(__file__).parents[1] / "docs" / "tutorials" / "new_critic.md"


def make_data():
    rng = np.random.default_rng(0)
    return Dataset.from_episodes(
        {
            "observations": rng.normal(size=(9, OBS)),
            "actions": rng.uniform(-0.9, 0.9, (8, ACT)),
            "rewards": rng.uniform(-1, 0, 8),
            "terminations": True,
        }
        for _ in range(4)
    )


@functools.cache
def make_probes(critic):
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(critic, n_step=2))
    return agent, critic_outputs.take_probes(agent, make_data(), jax.random.key(1))


trajectories = jax.jit(FloqCritic.trajectories, static_argnums=5)


# --- what the agent says ---


def test_values_by_steps_are_the_read_out_of_the_flow():
    agent, probes = make_probes(FLOQ)
    assert (np.diff(probes.q) >= 0).all()
    assert probes.targets.shape == (critic_outputs.TARGET_DRAWS, critic_outputs.TRANSITIONS)
    values = critic_outputs.values_by_steps(agent, probes, [1, 4])
    units = (jnp.arange(critic_outputs.ACCURATE_SAMPLES) + 0.5) / critic_outputs.ACCURATE_SAMPLES
    row = 17
    obs, act = probes.batch["observations"][row], probes.batch["actions"][row]
    for column, steps in enumerate((1, 4)):
        paths = trajectories(agent.params.critic, agent.scale.noise(units), obs, act, agent.scale, steps)
        assert values[row, column] == pytest.approx(float(paths[..., -1].mean()), rel=1e-4)


def test_observations_are_normalised_before_they_are_asked_about():
    agent, probes = make_probes(SCALAR)
    values = jax.jit(jax.vmap(Agent.value, (None, 0, 0, 0)))
    keys = jax.random.split(jax.random.key(0), critic_outputs.TRANSITIONS)
    stats = agent.obs_stats._replace(mean=agent.obs_stats.mean + 0.5, std=2 * agent.obs_stats.std)
    for one in (agent, floq.Agent(**{**vars(agent), "obs_stats": stats})):
        own = values(one, probes.batch["observations"], probes.batch["actions"], keys)
        np.testing.assert_allclose(critic_outputs.members(one, probes).mean(axis=1), own, rtol=1e-4, atol=1e-5)


def test_the_field_is_the_velocity_along_the_paths():
    agent, probes = make_probes(FLOQ)
    for fan in critic_outputs.flow_paths(agent, probes):
        assert fan.field.shape == (len(fan.z), len(fan.t))
        steps = fan.paths.shape[-1] - 1
        first = np.diff(fan.paths, axis=-1)[..., 0].mean(axis=0) * steps  # Euler's first step, the mean over members
        drawn = np.interp(fan.paths[0, :, 0], fan.z, fan.field[:, 0])
        np.testing.assert_allclose(drawn, first, atol=0.02 * np.abs(first).max() + 0.02)


def test_td_targets_of_a_termination_are_its_reward():
    agent, _ = make_probes(SCALAR)
    batch = make_data().sample(jax.random.key(2), 8) | {"masks": jnp.zeros(8)}
    np.testing.assert_allclose(agent.td_targets(batch, jax.random.key(3)), batch["rewards"], rtol=1e-6)


def test_data_of_another_size_is_refused():
    agent, _ = make_probes(SCALAR)
    other = Dataset.from_episodes(make_episodes([(5, True)]))
    with pytest.raises(UserError, match="numbers in an observation"):
        critic_outputs.take_probes(agent, other, jax.random.key(0))


@pytest.mark.parametrize("critic", [SCALAR, QUANTILE, CATEGORICAL])
def test_what_a_critic_without_a_flow_says_is_drawn(critic, tmp_path):
    agent, probes = make_probes(critic)
    histograms, quantiles = critic_outputs.histograms(agent, probes), critic_outputs.quantiles(agent, probes)
    assert (bool(histograms), bool(quantiles)) == (critic is CATEGORICAL, critic is QUANTILE)
    members = critic_outputs.members(agent, probes)
    assert members.shape == (critic_outputs.TRANSITIONS, 2)
    for found, (_, row) in zip(histograms + quantiles, probes.examples, strict=False):
        assert found.q == pytest.approx(members[row].mean(), rel=1e-4, abs=1e-5)
    path = tmp_path / "x.png"
    assert draw_histograms(path, []) is draw_quantiles(path, []) is None
    if histograms:
        np.testing.assert_allclose(histograms[0].said.sum(axis=1), 1.0, rtol=1e-5)
        assert "low value" in (draw_histograms(path, histograms) or "")
    if quantiles:
        assert "high value" in (draw_quantiles(path, quantiles) or "")
    assert "members differ by" in draw_members(path, members, probes.targets, "title")
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(("optional", "drawn"), [(True, {"members.png", "quantiles.png"}), (False, {"members.png"})])
def test_a_new_critic_is_drawn_as_far_as_it_shows_itself(optional, drawn, tmp_path, monkeypatch):
    """The critic of the tutorial, with and without what it need not have."""
    names: dict[str, Any] = {"__name__": "tutorial"}
    monkeypatch.setitem(sys.modules, "tutorial", types.ModuleType("tutorial"))
    exec(re.findall(r"(?ms)^```python\n(.*?)^```$", NEW_CRITIC.read_text())[0], names)
    kind = names["LaplaceCritic"]
    if not optional:
        for name in ("quantiles", "diagnose", "features"):
            delattr(kind, name)
    monkeypatch.setitem(CRITICS, "laplace", (names["LaplaceConfig"], kind))
    agent, _ = make_probes(names["LaplaceConfig"](value_hidden_dims=(WIDTH, WIDTH)))
    config = floq.Config(env_name=None, dataset="own.npz")
    run: Any = types.SimpleNamespace(folder=tmp_path, config=config, training=dict, evaluations=dict)
    made = draw(PICTURES, Subject(run, agent, 0, make_data()), tmp_path, Display(False))
    assert set(made) == {path.name for path in tmp_path.iterdir()} == drawn


# --- what is said of it ---


def test_step_counts():
    assert critic_outputs.step_counts(4) == [1, 2, 4, 8, 16, 32, 64]
    assert critic_outputs.step_counts(10) == [1, 2, 4, 8, 10, 16, 32, 64]
    assert critic_outputs.step_counts(64)[-2:] == [64, 128]


def test_evenly():
    assert evenly_spaced([1, 2, 3, 4, 5], 3) == [1, 3, 5]
    assert evenly_spaced([7], 3) == [7]
    assert evenly_spaced([], 3) == []


def test_how_far_q_has_settled(tmp_path):
    values = np.zeros((100, 3))
    values[:, 1] = np.linspace(0, 1, 100)  # the error of K = 2, from 0 to 1
    found = draw_settling(tmp_path / "x.png", [1, 2, 4], values, 2)
    assert found == "with K=2, Q is within 0.9 of K=4 for 90% of states (median 0.5)"


def test_how_much_noise_is_left(tmp_path):
    z_0 = np.linspace(-10, 0, 11)
    carried = {5: np.tile(z_0 - 50, (3, 2, 1)), 9: np.full((3, 2, 11), -60.0) + 0.5 * z_0}
    found = draw_noise_left(tmp_path / "x.png", z_0, carried, [("one", 0), ("other", 2)])
    assert found.startswith("50% of the noise's spread is left")
    assert found.endswith("100% at step 5")


def test_a_log_without_a_diagnosis_gives_no_picture(tmp_path):
    path = tmp_path / "x.png"
    assert draw_diagnosis(path, {}, None, "") is None
    assert draw_diagnosis(path, {"step": [1.0], "validation/critic/q": [np.nan]}, None, "") is None
    assert not path.exists()
    columns = {"step": [10.0, 20.0], "validation/critic/curvature": [0.5, 0.25]}
    assert draw_diagnosis(path, columns, 10, "") == "curvature 0.5 at step 10, 0.25 at 20"


def test_what_an_episode_earned():
    np.testing.assert_allclose(discounted_rewards_to_go(np.array([1.0, 2.0, 4.0]), 0.5, 8.0), [4.0, 6.0, 8.0])


def played(values, succeeded=None):
    n = len(values)
    flat = np.zeros(n)
    return Played((0, 0, 0), np.arange(n), np.zeros((n, 1)), np.array(values), flat - 1, flat, succeeded, True, False)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_value_along_episodes(count, tmp_path):
    episodes = [played([-1.0, -1.0, -4.0]), *[played(np.full(200, -2.0), 200)] * (count - 1)]
    found = draw_values(tmp_path / "x.png", episodes, "title")
    assert (found or "").startswith(f"{count - 1} of {count} succeed; Q is on average 2 below")


def test_a_replay_becomes_trajectories():
    ticks, envs = 3, 2
    obs = np.arange(ticks * envs, dtype=np.float32).reshape(ticks, envs, 1)
    ends = np.array([[False, False], [True, False], [False, False]])
    zeros = np.zeros((ticks, envs), np.float32)
    data = _dataset(ReplaySnapshot(obs, np.zeros((ticks, envs, 1), np.float32), zeros, zeros + 1, ends), ObsSpec.of(1))
    assert data.observations[:, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert data.starts.tolist() == [0, 3, 4]  # the second row ends a trajectory, the last of each environment too


# --- whole runs ---


def test_a_run_and_its_checkpoints(run_dir, tmp_path, capsys):
    before = sorted(p.name for p in (run_dir / "plots").iterdir())
    out = tmp_path / "new" / "pictures"
    assert cli.run(["inspect", str(run_dir), f"--out={out}", "--episodes=1", "--video=False"]) == 0
    expected = {"flow.png", "steps.png", "noise.png", "diagnosis.png", "value_map.png", "episodes.png"}
    assert {p.name for p in out.iterdir()} == expected
    assert all(p.stat().st_size > 10_000 for p in out.iterdir())
    assert sorted(p.name for p in (run_dir / "plots").iterdir()) == before
    printed = " ".join(capsys.readouterr().out.split())
    assert "checkpoint of step 6" in printed
    assert "with K=4, Q is within" in printed
    assert "at step 4" in printed  # what was left of the noise at the first checkpoint
    assert "no success in 1000 steps" in printed or "0 of 1 succeed" in printed or "1 of 1 succeed" in printed


def test_its_episodes_are_those_of_the_evaluation(run_dir):
    run, saved = Run.open(run_dir), checkpoint.load(run_dir / "checkpoints")
    evaluation = evaluate_run(str(run_dir), eval_episodes=2, workers=1, show=False)
    for episode, result in zip(play(run, saved.agent, saved.step, 2), evaluation.episodes, strict=True):
        assert len(episode.rewards) == result.length
        assert episode.rewards.sum() == pytest.approx(result.episode_return)
        assert (episode.succeeded is not None) == bool(result.success)


def test_weights_that_are_no_numbers_are_noticed():
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config())
    assert not critic_outputs.diverged(agent)
    biases, structure = jax.tree.flatten(agent.params)
    biases[-1] = biases[-1].at[0].set(jnp.inf)
    assert critic_outputs.diverged(dataclasses.replace(agent, params=jax.tree.unflatten(structure, biases)))


def test_a_run_without_an_environment(held_out_runs, tmp_path, capsys):
    run = str(held_out_runs[0])
    made = inspect_run(run, out=str(tmp_path / "out"))
    assert {p.name for p in made} == {"members.png", "diagnosis.png"}
    printed = capsys.readouterr().out
    assert "not for this run: flow.png, steps.png, noise.png, histogram.png" in printed
    assert "value_map.png, episodes.png" in printed
    with pytest.raises(UserError, match="no environment to film"):
        inspect_run(run, video=True, show=False)


def test_training_draws_the_same_flow(run_dir):
    assert (run_dir / "plots" / "flow.png").stat().st_size > 50_000
    assert (run_dir / "plots" / "value_map.png").stat().st_size > 10_000


# --- what is wrong ---


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--episodes=0"], "between 1 and 12"),
        (["--step=5"], "choose one of 4, 6"),
        (["--out=/proc/nowhere"], "give another --out"),
        (["--video=maybe"], "video"),
        (["--bogus=1"], "unknown flag --bogus"),
    ],
)
def test_wrong_options(run_dir, flags, complaint, capsys):
    assert cli.run(["inspect", str(run_dir), *flags]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_what_is_missing_or_damaged(run_dir, tmp_path, capsys):
    assert cli.run(["inspect", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert cli.run(["inspect"]) == 2
    capsys.readouterr()
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    tensors = copy / "checkpoints" / "6" / "state.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    assert cli.run(["inspect", str(copy)]) == 2
    said = capsys.readouterr().err
    assert "is damaged" in said
    assert said.count("\n") == 1
    shutil.rmtree(copy / "checkpoints" / "6")
    (copy / "train.csv").write_text("step,validation/critic/q\n2\n4,-1.0\n")
    assert cli.run(["inspect", str(copy)]) == 2
    assert "train.csv is damaged" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    assert cli.run(["inspect", str(copy)]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err
