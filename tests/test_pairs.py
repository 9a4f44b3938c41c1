"""Other actors and critics than the published pairs, as a user types them: trained, loaded, evaluated again."""

import csv
import json
import re

import jax
import numpy as np
import pytest
from conftest import TINY, undrawn

from floq import cli
from floq.agent.config import AgentConfig
from floq.runs import checkpoint
from floq.runs.config import configure
from floq.runs.run import Run
from floq.utils.errors import UserError


@pytest.fixture(scope="module")
def train(dataset_dir, tmp_path_factory):
    def run(*flags: str) -> Run:
        save_dir = tmp_path_factory.mktemp("pairs")
        own = [f"--dataset_dir={dataset_dir}", f"--save_dir={save_dir}"]
        with undrawn():
            assert cli.run(["train", *TINY, *own, *flags]) == 0
        (folder,) = save_dir.glob("floq/debug/*/*")
        return Run.open(folder)

    return run


@pytest.fixture(scope="module")
def ranking(train):
    """A run whose policy asks the flow itself which of its actions is best."""
    return train(
        *("--agent.actor=best_of_n", "--agent.actor_climbs=flow", "--agent.num_candidates=3"),
        *("--agent.block_width=8", "--agent.block_depth=1", "--agent.critic_flow_steps=3"),
    )


def columns(run: Run, name: str) -> list[str]:
    return next(csv.reader((run.folder / name).read_text().splitlines()))


@pytest.mark.slow
def test_a_policy_that_ranks_by_the_flow(ranking, capsys):
    """Its checkpoint acts as it did, and K may change when it acts."""
    agent = ranking.load_agent()
    assert agent.params.critic.distilled is None
    logged = columns(ranking, "train.csv")
    assert {"validation/critic/contraction", "validation/critic/value_after_3", "validation/critic/feature_rank"} <= {
        *logged
    }
    assert "training/critic/distilled_critic_loss" not in logged
    capsys.readouterr()
    outputs = []
    for steps in ([], ["--acting_flow_steps=3"], ["--acting_flow_steps=1"]):
        assert cli.run(["eval", str(ranking.folder), "--eval_episodes=2", *steps]) == 0
        outputs.append(re.sub(r"(?m)^evaluate .*$", "", capsys.readouterr().out))  # without the clock
    assert outputs[0] == outputs[1]


@pytest.mark.slow
def test_changing_k_needs_a_policy_that_ranks_by_the_flow(run_dir, ranking, capsys):
    assert cli.run(["eval", str(run_dir), "--acting_flow_steps=4"]) == 2
    assert "with one candidate nothing is ranked" in capsys.readouterr().err
    assert cli.run(["eval", str(ranking.folder), "--acting_flow_steps=0"]) == 2
    assert "must be greater than 0" in capsys.readouterr().err


def test_best_of_many_at_test_time(run_dir, capsys):
    """Of a run that was trained with one candidate, whose actor climbs the distilled critic."""
    for choice in ("--num_candidates=1", "--num_candidates=8 --rank_by=flow --acting_flow_steps=2"):
        assert cli.run(["eval", str(run_dir), "--eval_episodes=2", "--workers=1", *choice.split()]) == 0
    assert cli.run(["eval", str(run_dir), "--num_candidates=0"]) == 2
    assert "num_candidates=0: must be greater than 0" in capsys.readouterr().err


def test_a_slow_actor_and_the_next_action_survive_a_checkpoint(train):
    """ReBRAC's tricks, with a categorical critic; resumed, it ends where it would have ended."""
    flags = ("--agent=fql", "--agent.critic=categorical", "--agent.actor=deterministic", "--agent.alpha_critic=0.1")
    once, parts = train(*flags), train(*flags, "--offline_steps=4")
    assert cli.run(["train", f"--resume={parts.folder}", "--offline_steps=6"]) == 0
    a, b = once.load_agent(), Run.open(parts.folder).load_agent()
    assert a.target_actor is not None
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(x, y)
    assert "validation/critic/mass_at_ends" in columns(once, "train.csv")


@pytest.mark.slow
def test_a_gaussian_that_learns_its_temperature(train):
    run = train("--agent=fql", "--agent.actor=gaussian", "--agent.temperature=0.5", "--agent.learn_temperature=True")
    found = checkpoint.load(run.folder / "checkpoints").agent.params.actor.log_temperature
    assert float(found) != pytest.approx(np.log(0.5), abs=1e-6)
    assert {"training/actor/entropy", "training/actor/temperature"} <= {*columns(run, "train.csv")}


def test_another_actor_does_not_take_the_familys_alpha():
    """It weighs another loss, in units of its own."""
    task = "cube-double-play-singletask-v0"
    assert configure(task, "floq").agent.actor.alpha == 300
    assert configure(task, "floq", actor="deterministic").agent.actor.alpha == 0.1
    assert configure(task, "floq", actor="deterministic", alpha=0.5).agent.actor.alpha == 0.5
    assert configure(task, "floq", actor="deterministic").agent.critic.block_depth == 2
    assert configure(task, "floq", actor="best_of_n").agent.actor.actor_hidden_dims == (512,) * 4


@pytest.mark.parametrize("critic", ["floq", "scalar", "quantile", "categorical"])
@pytest.mark.parametrize("actor", ["fql", "gaussian", "deterministic", "best_of_n"])
def test_every_pair_has_its_flags(critic, actor, capsys):
    assert cli.run(["train", f"--agent.critic={critic}", f"--agent.actor={actor}", "--dry_run"]) == 0
    shown = json.loads(capsys.readouterr().out)["agent"]
    assert (shown["critic"], shown["actor"]) == (critic, actor)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_flow_steps": 0}, "critic_flow_steps=0"),
        ({"acting_flow_steps": 0, "actor_climbs": "flow"}, "acting_flow_steps=0"),
        ({"acting_flow_steps": 4}, "give --agent.actor_climbs=flow"),
        ({"actor_noise_samples": 4}, "the distilled critic has no source samples"),
        ({"rho": -1.0, "q_agg": "lcb"}, "rho=-1.0"),
        ({"rho": 1.0}, "only q_agg=lcb"),
    ],
)
def test_dials_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        AgentConfig.from_flat("floq", "fql", settings)
