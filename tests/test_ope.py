"""Off-policy evaluation: intervals that cover, and an evaluation that is right, whole, and goes on where it stopped."""

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import SCALAR, agent_config, benchmark
from online_runs import episodes

import floq
from floq import cli
from floq.actors import BestOfNConfig, FixedConfig
from floq.agent.state import Keys
from floq.analysis.off_policy import (
    OffPolicyEvaluation,
    PolicyValue,
    far_actions,
    rank_correlation,
    standard_error,
    still_falls,
    warnings_of,
)
from floq.analysis.statistics import bootstrap_estimate, mean_interval
from floq.data.dataset import Dataset, PolicyActions
from floq.envs.environments import EnvFactory
from floq.evaluation.fixed_policy import Episodes, FixedPolicy, first_observations, measured_returns
from floq.export.export_run import ExportOptions, export_run
from floq.export.exported import load_policy
from floq.runs.config import Config
from floq.runs.run import Run, make_agent
from floq.training.fitted_q import unlimited
from floq.training.fleet import Fleet, FleetData, Layout
from floq.training.off_policy import evaluation_config
from floq.utils.errors import Interrupted, UserError
from floq.utils.obs_spec import ObsSpec

# --- Intervals and ranks ---


def test_the_interval_of_bootstrap_estimates_covers_the_truth_and_that_of_their_mean_does_not():
    """A mean of thirty numbers, estimated from five resamples, four thousand times."""
    rng = np.random.default_rng(0)
    covered = {bootstrap_estimate: 0, mean_interval: 0}
    for _ in range(4000):
        data = rng.normal(size=30)
        values = [rng.choice(data, 30).mean() for _ in range(5)]
        for how in covered:
            low, high = how(values)[-2:]
            covered[how] += low <= 0 <= high
    assert 0.92 < covered[bootstrap_estimate] / 4000 < 0.96
    assert covered[mean_interval] / 4000 < 0.75


def test_intervals_need_five_seeds():
    value, low, high = bootstrap_estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (value, high - value) == (3.0, pytest.approx(2.7764 * np.sqrt(2.5) * np.sqrt(1.2), rel=1e-4))
    assert low == pytest.approx(6.0 - high)
    assert bootstrap_estimate([1.0, 2.0, 3.0, 4.0])[1:] == (-np.inf, np.inf)


def test_ranks_count_the_pairs_that_the_truth_tells_apart():
    noise = np.array([-0.1, 0.1, -0.1, 0.1])
    truths = np.array([noise, 1 + 2 * noise, 1 - 2 * noise])  # the last two differ by 0 +- 0.2
    assert rank_correlation([0.0, 2.0, 1.0], truths) == 1.0
    assert rank_correlation([1.5, 2.0, 1.0], truths) == 0.0
    assert rank_correlation([1.0, 2.0], truths[1:]) is None


def test_what_is_said_of_several_policies():
    made = lambda name, seeds, truth: PolicyValue(name, seeds, -1.0, None, 0.1, 0.0, truth=truth)  # noqa: E731
    one = made("one", (1.0, 2.0, 3.0, 4.0, 5.0), (0.0, 0.2))
    two = made("two", (2.0, 3.0, 4.0, 5.0, 7.0), (-1.0, -0.8))
    found = OffPolicyEvaluation(0.9, "env", (-10.0, 0.0), (one, two))
    assert found.best is two
    value, low, high = found.difference(one)  # paired: the spread of the seeds themselves is far wider
    assert (value, high - value) == (pytest.approx(-1.2), pytest.approx(2.7764 * np.sqrt(0.2 * 1.2), rel=1e-4))
    assert low < value
    assert (found.regret, found.rank_correlation) == (pytest.approx(1.0), -1.0)
    assert found.imprecision == pytest.approx(standard_error([0.0, 0.2]) / 10)
    first = found.to_json()["policies"][0]
    assert (first["truth"], first["error"], first["training_critic"]) == (pytest.approx(0.1), pytest.approx(2.9), None)


# --- Warnings ---


def test_actions_far_from_those_of_near_states_are_found():
    rng = np.random.default_rng(0)
    states = rng.normal(size=(500, 3))
    actions = np.tanh(states[:, :2]) + rng.normal(0, 0.1, (500, 2))
    assert far_actions(states, actions, np.tanh(states[:, :2])) < 0.1
    assert far_actions(states, actions, -np.tanh(states[:, :2])) > 0.7
    assert far_actions(states, actions, actions) <= 0.05


def test_warnings():
    rng = np.random.default_rng(0)
    falling, flat = np.linspace(3, 1, 30) + 0 * rng.normal(size=(2, 30)), 1 + 0.1 * rng.normal(size=(2, 30))
    assert still_falls(falling)
    assert not still_falls(flat)
    assert warnings_of(-5.0, 0.0, flat, (-10.0, 0.0), 100, 100) == ()
    found = warnings_of(3.0, 0.5, falling, (-10.0, 0.0), 99, 100)
    assert [
        word for word, text in zip(("above", "far", "falls", "fewer"), found, strict=True) if word not in text
    ] == []


# --- Episodes and actions ---


def three_episodes() -> Dataset:
    """Of three, one and two transitions; the last of the second terminates."""
    ends = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1], bool)
    rewards, masks = np.array([1.0, 2, 4, 9, 5, 9, 3, 3, 9]), np.array([1.0, 1, 1, 1, 0, 1, 1, 1, 1])
    return Dataset.from_rows(np.arange(9.0)[:, None], np.zeros((9, 1)), rewards, masks, ends)


def test_episodes_know_what_they_earned_and_what_was_cut_off():
    data = three_episodes()
    found = Episodes.of(data, 0.5)
    assert found.first.tolist() == [0, 4, 6]
    assert found.last.tolist() == [3, 5, 8]
    np.testing.assert_allclose(found.returns, [1 + 0.5 * 2 + 0.25 * 4, 5, 3 + 0.5 * 3])
    np.testing.assert_allclose(found.carry, [0.125, 0.0, 0.25])
    twice = Episodes(*(values[[2, 0, 2]] for values in found))
    assert twice.transitions(data).tolist() == [6, 7, 0, 1, 2, 6, 7]
    assert set(found.resample(1).first) <= set(found.first)
    assert Episodes.of(data.for_chunks(3), 0.5).first.tolist() == [0, 4]  # the last is too short for a chunk
    assert Episodes.of(data.for_chunks(3), 0.5).transitions(data.for_chunks(3)).tolist() == [0, 4]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_transition_has_the_evaluated_policys_actions_where_it_leads(chunk):
    data = three_episodes().for_chunks(chunk)
    draws = jnp.arange(2 * 9 * 4.0).reshape(2, 9, 4, 1)
    tasks = [dataclasses.replace(data, policy_actions=PolicyActions(draws, jnp.int32(policy))) for policy in (0, 1)]
    of_fleet = FleetData.of(tasks)
    for policy in (0, 1):
        got = of_fleet.task(jnp.int32(policy)).transition(jnp.int32(0), 1, 0.5)["policy_actions"]
        np.testing.assert_array_equal(got, draws[policy, chunk])


def test_actions_of_the_wrong_shape_are_refused_by_the_name_of_the_policy():
    states = jnp.zeros((5, 3))
    right = FixedPolicy("right", lambda states, rng: 2 * np.ones((len(states), 2)))
    assert right.draw(states, 4, 2, ObsSpec.of(3)).shape == (5, 4, 2)
    assert float(right.draw(states, 4, 2, ObsSpec.of(3)).max()) == 1.0
    with pytest.raises(UserError, match=r"wide returns actions of shape \(5, 3\), not \(5, 2\) as the data has"):
        FixedPolicy("wide", lambda states, rng: states).draw(states, 4, 2, ObsSpec.of(3))
    with pytest.raises(UserError, match="lost returns actions that are not finite"):
        FixedPolicy("lost", lambda states, rng: np.full((5, 2), np.nan)).draw(states, 1, 2, ObsSpec.of(3))


# --- In the environment ---


def test_the_truth_goes_on_where_the_time_limit_would_end_it():
    """Reward 1 forever, in an environment with a limit of 30 steps."""
    config = Config(env_name="probe_envs:Loop-v0", dataset="x", agent=agent_config(discount=0.9))
    policy = FixedPolicy("still", lambda states, rng: np.zeros((len(states), 1)))
    found = measured_returns([policy], unlimited(config, 66), 2, 1)
    np.testing.assert_allclose(found, [[(1 - 0.9**66) / 0.1] * 2], rtol=1e-6)


def test_policies_of_both_kinds_are_measured_from_the_same_starts():
    make_env = EnvFactory("Pendulum-v1", discount=0.9)
    agent = make_agent(Config(env_name="Pendulum-v1", dataset="x", agent=agent_config(SCALAR)), pendulum())
    policies = [
        FixedPolicy("agent", agent.policy),
        FixedPolicy("still", lambda states, rng: np.zeros((len(states), 1))),
    ]
    found = np.array(measured_returns(policies, make_env, 3, 1))
    assert found.shape == (2, 3)
    angle, speed = np.arctan2(*first_observations(make_env, 3).T[[1, 0]]), first_observations(make_env, 3)[:, 2]
    costs = angle**2 + 0.1 * speed**2
    assert (found <= -costs + 1e-3).all()  # the first reward is the same for both but for the torque's cost
    assert (found > -16.3 / 0.1).all()


def pendulum() -> Dataset:
    rng = np.random.default_rng(0)
    ends = np.arange(1, 41) % 20 == 0
    rows = rng.normal(size=(40, 3)), rng.uniform(-1, 1, (40, 1)), -np.ones(40), np.ones(40), ends
    return Dataset.from_rows(*rows)


# --- Whole evaluations ---

QUICK = ["--offline_steps=20", "--log_interval=2", "--save_interval=10", "--eval_interval=10", "--agent.batch_size=8"]
QUICK += ["--agent.policy_samples=2", "--agent.lr=0.01"]


@pytest.fixture(scope="module")
def evaluated(held_out_runs, once):
    """The folder of an evaluation of three checkpoints of a run without an environment."""

    def evaluate(folder):
        assert cli.run(["ope", str(held_out_runs[0]), "--steps", "all", *QUICK, f"--save_dir={folder}"]) == 0

    (folder,) = once("ope", evaluate).glob("ope_*")
    return folder


def test_an_evaluation_is_a_folder_with_its_runs_and_the_result(evaluated, held_out_runs):
    found = json.loads((evaluated / "ope.json").read_text())
    names = [f"{held_out_runs[0].name}_{step}" for step in (5, 10, 12)]
    assert [policy["policy"] for policy in found["policies"]] == names == found["request"]["policies"]
    rows = list(csv.DictReader((evaluated / "ope.csv").read_text().splitlines()))
    assert [row["policy"] for row in rows] == names
    for policy, row in zip(found["policies"], rows, strict=True):
        assert policy["low"] < policy["estimate"] < policy["high"]
        assert policy["estimate"] == pytest.approx(np.mean(policy["seeds"])) == pytest.approx(float(row["estimate"]))
        assert len(policy["seeds"]) == len(set(policy["seeds"])) == 5
        assert any("fewer than" in warning for warning in policy["warnings"])
    assert min(abs(policy["difference"]) for policy in found["policies"]) == 0
    runs = [Run.open(path.parent) for path in evaluated.glob("*/*/*/config.json")]
    assert len(runs) == 15
    assert all(run.is_finished and run.config.agent.actor_name == "fixed" for run in runs)
    assert {run.config.agent.discount for run in runs} == {Run.open(held_out_runs[0]).config.agent.discount}


def test_a_report_has_the_estimates(evaluated, tmp_path):
    assert cli.run(["report", str(evaluated), "--out", str(tmp_path / "report.md")]) == 0
    text = (tmp_path / "report.md").read_text().replace("\\", "")
    section = text[text.index("## Off-policy evaluation") :]
    for policy in json.loads((evaluated / "ope.json").read_text())["policies"]:
        (line,) = (line for line in section.splitlines() if line.startswith(f"| {policy['policy']} | choice |"))
        value, low, high = (f"{policy[name]:.4g}" for name in ("estimate", "low", "high"))
        assert f"{value} [{low}, {high}]" in line


def test_a_stopped_evaluation_goes_on_exactly(evaluated, tmp_path, monkeypatch):
    folder = tmp_path / evaluated.name
    shutil.copytree(evaluated, folder)
    before = json.loads((folder / "ope.json").read_text())
    (folder / "ope.json").write_text(json.dumps({"request": before["request"]}))
    for run in folder.glob("*/*/*"):
        shutil.rmtree(run / "checkpoints" / "20")
        (run / "summary.json").unlink()
    assert cli.run(["ope", "--resume", str(folder)]) == 0
    assert json.loads((folder / "ope.json").read_text()) == before
    assert cli.run(["ope", "--resume", str(folder)]) == 0  # which has ended

    def stopped(*_):
        raise Interrupted("at step 10", 15)

    (next(iter(folder.glob("*/*/*"))) / "summary.json").unlink()
    monkeypatch.setattr("floq.training.fitted_q.run_to_completion", stopped)
    with pytest.raises(Interrupted, match=f"go on with floq ope --resume {folder}"):
        floq.resume_ope(folder)


def test_an_evaluation_without_data_of_its_own_is_no_run_to_train(evaluated, capsys):
    run = str(next(iter(evaluated.glob("*/*/*"))))
    for arguments, told in (
        (["train", "--resume", run], "floq ope evaluates one, and has a --resume of its own"),
        (["ope", run], "is part of an evaluation and has no policy"),
        (["ope", "--resume", run], "is not the folder of an evaluation"),
        (["ope", "--resume", str(evaluated), "--truth=3"], "give nothing else"),
        (["train", "--agent.actor=fixed"], "learns no policy"),
    ):
        assert cli.run(arguments) == 2
        assert told in capsys.readouterr().err


def test_bad_input_is_one_line(held_out_runs, capsys):
    run = str(held_out_runs[0])
    for arguments, told in (
        ([], "which policies? Give the folders of runs: floq ope RUN_DIR"),
        ([run, "--steps", "7"], "has no checkpoint of this step; it has 5 10 12"),
        ([run, "--steps", "seven"], "give steps of checkpoints, as in --steps 2500 5000, or all"),
        ([run, run], "two policies are called"),
        ([run, "--truth=3"], "need an environment, and the run has none"),
        ([run, "--starts=env"], "need an environment, and the run has none"),
        ([run, "--truth=-3"], "truth=-3: must be at least 0"),
        ([run, "--agent.q_agg=min"], "this evaluation has mean, leave it out"),
        ([run, "--agent.discount=0.5"], "give --discount instead"),
        ([run, "--agent.alpha=3"], "unknown flag --agent.alpha"),
        ([run, "--seeds", "x"], "give whole numbers"),
    ):
        assert cli.run(["ope", *arguments]) == 2, arguments
        assert told in capsys.readouterr().err, arguments


@pytest.mark.parametrize(("critic", "kept"), [("looped", 3.0), ("categorical", 0.75)])
def test_another_critic_takes_what_means_the_same(critic, kept):
    """`sigma` smooths an input of floq's, and the target of a categorical critic."""
    run: Any = SimpleNamespace(config=floq.configure(critic="floq", sigma=3.0, value_hidden_dims=(8, 8)))
    found = evaluation_config(run, critic, None, None, {}).agent.critic
    assert (found.sigma, found.value_hidden_dims) == (kept, (8, 8))


def test_runs_that_cannot_be_compared_are_refused(held_out_runs, tmp_path, capsys):
    """By what differs in their settings, and the remedy."""
    other = tmp_path / "other"
    shutil.copytree(held_out_runs[1], other)
    for name, value, told in (
        ("discount", 0.5, "discount is 0.99"),
        ("reward_scale", 2.0, "reward_scale is 1.0"),
    ):
        config = json.loads((held_out_runs[1] / "config.json").read_text())
        config["agent"][name] = value
        (other / "config.json").write_text(json.dumps(config))
        assert cli.run(["ope", str(held_out_runs[0]), str(other)]) == 2
        assert told in capsys.readouterr().err


def another(states, rng):
    """Half of the way in state 0, a quarter in state 1."""
    return np.where(states < 0.5, 0.5, 0.25)


def test_a_function_is_evaluated_and_measured(tmp_path):
    """In the probe Choice: 0.5 at once, and minus 0.25 after it, where the data's actions earn much less."""
    settings = {"lr": 1e-2, "tau": 0.05, "batch_size": 32, "value_hidden_dims": (16, 16), "policy_samples": 1}
    found = floq.ope(
        {"another": another},
        episodes(200, low=-1.0, high=1.0),
        critic="scalar",
        discount=0.5,
        seeds=[0],
        truth=3,
        offline_steps=600,
        env_name="probe_envs:Choice-v0",
        save_dir=str(tmp_path),
        show=False,
        **settings,
    )
    (policy,) = found.policies
    assert policy.truth == (0.375,) * 3
    assert policy.estimate.value == pytest.approx(0.375, abs=0.1)
    assert policy.data_return == pytest.approx(0.0, abs=0.1)
    assert policy.training_critic is None
    assert policy.far_actions == 0.0


@pytest.mark.slow
def test_policies_that_rank_chunks_of_actions_are_evaluated_and_exports_of_them_too(tmp_path):
    """They decide on two actions at once, and the export on the same ones, but with other noise."""
    agent = agent_config(SCALAR, BestOfNConfig(actor_hidden_dims=(16, 16), num_candidates=4), action_chunk=2)
    config = Config(env_name=None, dataset="x", offline_steps=3, eval_interval=0, save_dir=str(tmp_path), agent=agent)
    run = floq.train(config, episodes(100), show=False)
    export_run(ExportOptions(str(run.folder)))
    policies = {"run": run, "export": load_policy(run.folder / "export")}
    found = floq.ope(policies, episodes(100), offline_steps=300, lr=1e-2, save_dir=str(tmp_path / "ope"), show=False)
    one, other = found.policies
    assert one.estimate.value == pytest.approx(other.estimate.value, abs=0.1)
    assert one.estimate.low < other.estimate.value < one.estimate.high
    assert -2 <= one.estimate.value <= 2
    assert (one.training_critic is None, other.training_critic is None) == (False, True)


# --- Coverage ---

REPEATS, OWN, SEEDS = 100, 40, 5


@pytest.mark.slow
def test_intervals_cover_the_value():
    """A hundred sets of forty episodes of the probe Choice, whose actions are -1 or 1 and whose rewards are noisy. The
    evaluated policy always takes 1, so it is worth 1 - g; the intervals of five resamples each contain that 88 times
    or more, as those with a coverage of 0.95 do with probability 0.999."""
    rng, discount = np.random.default_rng(0), 0.5
    count = REPEATS * OWN
    actions = rng.choice([-1.0, 1.0], (count, 2, 1))
    rewards = actions[..., 0] * [1.0, -1.0] + rng.normal(size=(count, 2))
    data = Dataset.from_episodes(
        {
            "observations": np.array([[0.0], [1.0], [1.0]]),
            "actions": actions[number],
            "rewards": rewards[number],
            "terminations": np.array([False, True]),
        }
        for number in range(count)
    )
    own = agent_config(SCALAR, FixedConfig(), lr=3e-3, tau=0.05, discount=discount, batch_size=32)
    drawn = PolicyActions(jnp.ones((1, len(data.ends), 1, 1)), jnp.int32(0))
    every = Episodes.of(data, discount)
    tasks = []
    for repeat in range(REPEATS):
        episodes = Episodes(*(values[repeat * OWN : (repeat + 1) * OWN] for values in every))
        for seed in range(SEEDS):
            rows = episodes.resample(SEEDS * repeat + seed).transitions(data)
            tasks.append(dataclasses.replace(data, starts=jnp.asarray(rows), policy_actions=drawn))
    agents = [make_agent(Config(agent=own, seed=seed), data) for seed in range(len(tasks))]
    keys = [Keys.of(seed).batches for seed in range(len(tasks))]
    both = FleetData.of(tasks)
    fleet = Fleet(agents, range(len(tasks)), both, both, keys, keys, Layout((jax.devices()[0],), True))
    fleet.advance(1500)
    value = jax.jit(jax.vmap(lambda agent: agent.value(jnp.zeros(1), jnp.ones(1), jax.random.key(0))))
    values = np.asarray(value(fleet.agents)).reshape(REPEATS, SEEDS)
    found = [bootstrap_estimate(seeds) for seeds in values]
    assert sum(one.low <= 1 - discount <= one.high for one in found) >= 88


def test_the_scores_of_the_experiment_with_known_values():
    """Truths 0, 10, 20, 30, of two runs, and a reference that is off by 1. Estimates that are 1 and 3 too high have an
    error of 2, by 1 more, and the right order; those in the opposite order a rank correlation of -1."""
    scores, truths = benchmark("ope", "experiments").scores, np.array([0.0, 10.0, 20.0, 30.0])
    off, trajectories = np.array([1.0, 3.0, 1.0, 3.0]), np.array([0, 0, 1, 1])
    assert scores(truths + off, truths, trajectories)["error low"] == 2.0  # the runs have the same mean error
    found = scores(truths + off, truths, np.arange(4), truths - 1)
    assert found["error"] == 2.0
    assert (found["error low"], found["error high"]) == mean_interval(off)
    assert (found["to the reference"], found["difference low"]) == (1.0, mean_interval(off - 1)[0])
    assert found["error / spread"] == pytest.approx(2 / truths.std())
    assert found["rank correlation"] == pytest.approx(1.0)
    assert scores(30 - truths, truths, trajectories)["rank correlation"] == pytest.approx(-1.0)
