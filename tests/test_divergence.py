"""What is not finite never reaches weights: the run stops, or goes back, and the others of its fleet go on."""

import dataclasses
import itertools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import online_runs
import pytest
from conftest import TINY
from episodes import make_episodes, write_folder
from helpers import ACTOR, FLOQ, SCALAR, agent_config, make_batch

import floq
from floq import cli
from floq.agent.agent import Agent
from floq.agent.finite import ACTION, OK, TERMS, first_nonfinite
from floq.agent.state import Keys
from floq.analysis.health import health_warnings, run_problems
from floq.data.dataset import Dataset
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.record import RunRecord, read_run
from floq.runs.run import make_agent
from floq.training import divergence
from floq.training.divergence import what_helps
from floq.training.fleet import Fleet, FleetData, Layout
from floq.training.resume import resume
from floq.training.train import train_fleet
from floq.utils.errors import Failed, UserError
from floq.utils.schema import Mark, marked

HUGE = 1e30  # its square is infinite in float32


def same(one, other) -> bool:
    def raw(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(raw(x), raw(y)) for x, y in leaves)


@pytest.mark.parametrize("number", range(ACTION - 1))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_the_first_term_that_is_not_finite_is_named(number, bad):
    some = {"a": jnp.zeros((2, 2)), "b": None}
    terms = [jnp.zeros(3), jnp.ones(()), some, jnp.ones(()), [jnp.zeros(1)], jnp.ones(2), jnp.ones(2)]
    assert int(first_nonfinite(tuple(terms))) == OK
    for later in range(number, len(terms)):
        terms[later] = jax.tree.map(lambda x: x.at[(-1,) * x.ndim].set(bad), terms[later])
    assert TERMS[int(first_nonfinite(tuple(terms))) - 1] == TERMS[number]


def test_what_adam_cannot_square_is_a_fault_and_a_large_loss_is_none():
    small, large = jnp.ones(3), jnp.full(3, HUGE)
    assert int(first_nonfinite((small, jnp.float32(HUGE), small))) == OK
    assert int(first_nonfinite((small, jnp.float32(HUGE), large))) == 3


@pytest.mark.parametrize(
    "critic", [pytest.param(FLOQ, id="floq", marks=pytest.mark.slow), pytest.param(SCALAR, id="scalar")]
)
def test_a_guarded_update_is_an_update_or_none(critic):
    agent, batch = Agent.init(jax.random.key(0), 3, 2, agent_config(critic)), make_batch()
    updated, info = agent.update(batch)
    guarded, its_info, fault = agent.update_if_finite(batch)
    assert int(fault) == OK
    assert float(info["critic/critic_loss"]) == pytest.approx(float(its_info["critic/critic_loss"]), rel=1e-5)
    assert int(updated.step) == int(guarded.step) == 1
    bad = batch | {"rewards": batch["rewards"].at[3].set(math.nan)}
    guarded, info, fault = agent.update_if_finite(bad)
    assert TERMS[int(fault) - 1] == "TD target"
    assert same(guarded, agent)
    assert math.isnan(float(info["critic/critic_loss"]))
    assert not same(agent.update(bad)[0].params, agent.params)  # the plain one takes what it is given


@pytest.mark.parametrize(
    ("batch", "term"),
    [
        ({"rewards": jnp.full(8, 3e17)}, "critic's gradient"),
        ({"actions": jnp.full((8, 2), math.nan)}, "critic's loss"),
    ],
    ids=["gradient", "input"],
)
def test_which_term_went_first(batch, term):
    config = dataclasses.replace(SCALAR, layer_norm=False)
    agent = Agent.init(jax.random.key(0), 3, 2, agent_config(config))
    big = jax.tree.map(lambda x: 30 * x, agent.params.critic)
    agent = dataclasses.replace(agent, params=agent.params._replace(critic=big))
    fault = agent.update_if_finite(make_batch() | batch)[2]
    assert TERMS[int(fault) - 1] == term


@pytest.mark.parametrize("part", ["critic", "actor"])
def test_a_weight_that_overflows_is_a_fault(part):
    """Adam steps by the learning rate in each weight, however small the gradient; the other part is held by moments."""
    agent = Agent.init(jax.random.key(0), 3, 2, agent_config(SCALAR))
    other = "actor" if part == "critic" else "critic"
    held = getattr(agent.opt_state, other)
    held = held._replace(nu=jax.tree.map(lambda x: jnp.full_like(x, 1e37), held.nu))
    states, hypers = agent.opt_state._replace(**{other: held}), agent.hypers._replace(lr=jnp.float32(1e24))
    agent = dataclasses.replace(agent, opt_state=states, hypers=hypers)
    after, _, fault = agent.update_if_finite(make_batch())
    assert TERMS[int(fault) - 1] == f"{part}'s new weight"
    assert same(after.params, agent.params)


# --- in a fleet ---

ROWS = 400  # for all, so that they share programs


def rows(spoiled: int | None = None) -> Dataset:
    rng = np.random.default_rng(0)
    rewards = -np.ones(ROWS, np.float32)
    if spoiled is not None:
        rewards[spoiled] = -HUGE
    ends = np.arange(1, ROWS + 1) % 20 == 0
    return Dataset.from_rows(rng.normal(size=(ROWS, 3)), rng.uniform(-1, 1, (ROWS, 2)), rewards, np.ones(ROWS), ends)


def fleet_of(data, batched, lrs=(1e-3, 1e25, 1e-3)):
    configs = [Config(agent=agent_config(SCALAR, ACTOR, lr=lr), seed=seed) for seed, lr in enumerate(lrs)]
    keys = [Keys.of(config.seed) for config in configs]
    both = FleetData.of([data])
    layout = Layout((jax.devices()[0],), batched)
    agents = [make_agent(config, data) for config in configs]
    streams = [k.batches for k in keys], [k.validation for k in keys]
    return Fleet(agents, [0] * len(lrs), both, both, *streams, layout)


@pytest.mark.parametrize(
    "batched", [pytest.param(True, id="vmapped", marks=pytest.mark.slow), pytest.param(False, id="mapped")]
)
def test_the_others_of_a_fleet_go_on(batched):
    fleet, sound = fleet_of(rows(), batched), fleet_of(rows(), batched, (1e-3, 1e-3, 1e-3))
    for steps in (1, 4, 5):
        infos = fleet.advance(steps)
        sound.advance(steps)
    assert [bool(fault) for fault in fleet.faults] == [False, True, False]
    assert [int(fleet.agent(run).step) for run in range(3)] == [10, int(fleet.agent(1).step), 10]
    assert int(fleet.agent(1).step) < 5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(fleet.agent(1).params))
    assert infos[1]["critic/critic_loss"] == 0.0  # it made no update
    for run in (0, 2):
        for x, y in zip(
            jax.tree.leaves(fleet.agent(run).params), jax.tree.leaves(sound.agent(run).params), strict=True
        ):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)
    assert fleet.step == 10


@pytest.mark.parametrize(
    "batched", [pytest.param(True, id="vmapped", marks=pytest.mark.slow), pytest.param(False, id="mapped")]
)
def test_a_run_that_is_replaced_catches_up(batched):
    fleet, alone = fleet_of(rows(), batched), fleet_of(rows(), batched, (1e-3,))
    fleet.advance(6)
    other = dataclasses.replace(alone.agent(0), step=jnp.int32(2))
    before = fleet.agent(0)
    fleet.replace(1, other)
    assert fleet.faults == [OK] * 3
    info = fleet.advance(0)[1]
    assert [int(fleet.agent(run).step) for run in range(3)] == [6, 6, 6]
    assert info["critic/critic_loss"] > 0
    assert same(fleet.agent(0), before)


# --- in a run ---

INTERVALS = {"offline_steps": 120, "log_interval": 10, "eval_interval": 0, "save_interval": 20}


def config_of(tmp_path, **settings):
    size = {"batch_size": 8, "value_hidden_dims": (8,), "actor_hidden_dims": (8,), "precision": "f32"}
    return floq.configure(None, "fql", dataset="given", save_dir=str(tmp_path), **(INTERVALS | size | settings))


def the_run(folder, seed=0):
    (found,) = folder.glob(f"floq/debug/*/sd{seed:03d}*")
    return floq.Run.open(found)


def test_a_run_that_diverges_stops_with_its_last_good_state(tmp_path):
    data = rows()
    configs = [config_of(tmp_path, seed=seed, lr=lr) for seed, lr in ((0, 1e-3), (1, 1e24))]
    with pytest.raises(
        Failed, match=r"seed 1 diverged at step \d+: the \w+('s \w+)?.* is not finite.*what helps: --agent.lr"
    ):
        train_fleet(configs, data, show=False)
    sound, sick = the_run(tmp_path, 0), the_run(tmp_path, 1)
    assert (sound.is_finished, sound.diverged, sound.has_ended) == (True, {}, True)
    assert (sick.is_finished, sick.has_ended) == (False, True)
    at = sick.diverged["step"]
    assert sick.diverged["term"] in TERMS
    assert checkpoint.steps(sick.folder / "checkpoints")[-1] == at
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(sick.load_agent().params))
    assert json.loads((sick.folder / "diverged.json").read_text(), parse_constant=pytest.fail)  # strict JSON
    record = read_run(sick.folder)
    assert isinstance(record, RunRecord)
    assert run_problems(record) == [f"diverged at step {at}: the {sick.diverged['term']} was not finite"]
    log = sick.folder / "train.csv"
    assert not log.exists() or "nan" not in log.read_text()
    (other,) = train_fleet([config_of(tmp_path / "alone", lr=1e-3)], data, show=False)
    assert same(other.load_agent(), sound.load_agent())  # as if it had been alone
    with pytest.raises(Failed, match=f"diverged at step {at}"):  # the same again, and nothing else
        resume(sick.folder, data, show=False)


def spoiled():
    """Whoever draws the bad transition has a target that is not finite."""
    return rows(spoiled=203)


REWINDING = {"seed": 3}  # which draws it five times, twice between two checkpoints


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewound")
    return floq.train(config_of(folder, on_divergence="rewind", **REWINDING), spoiled(), show=False)


def test_a_run_may_go_back_and_on(rewound):
    every, steps = INTERVALS["save_interval"], [rewind["step"] for rewind in rewound.rewinds]
    assert len(steps) > 1
    assert {rewind["term"] for rewind in rewound.rewinds} == {"TD target"}
    for number, (step, rewind) in enumerate(zip(steps, rewound.rewinds, strict=True)):
        newest = step - step % every
        before = len([earlier for earlier in steps[:number] if earlier >= newest])
        assert rewind["to"] == newest - before * every  # each time since the newest, one further back
    assert any(rewind["to"] < rewind["step"] - every for rewind in rewound.rewinds)
    assert (int(rewound.load_agent().step), rewound.summary["steps"], rewound.diverged) == (120, 120, {})
    log = read_csv(rewound.folder / "train.csv")
    assert log["step"] == [float(step) for step in range(10, 121, 10)]
    assert np.isfinite(log["training/critic/critic_loss"]).all()
    record = read_run(rewound.folder)
    assert isinstance(record, RunRecord)
    assert f"went back to earlier weights {len(steps)} times" in run_problems(record)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_run_that_goes_back_is_resumed_exactly(rewound, tmp_path, moment):
    at = rewound.rewinds[1]["step"]
    cut = at if moment == "before" else at + 2
    config = config_of(tmp_path, on_divergence="rewind", **REWINDING, offline_steps=cut)
    again = floq.train(config, spoiled(), show=False)
    assert len(again.rewinds) == (1 if moment == "before" else 2)
    again = resume(again.folder, spoiled(), show=False, offline_steps=120)
    assert again.rewinds == rewound.rewinds
    assert same(again.load_agent(), rewound.load_agent())


def test_a_run_that_goes_back_again_and_again_stops(rewound, tmp_path, monkeypatch):
    monkeypatch.setattr(divergence, "MAX_REWINDS", 1)
    with pytest.raises(Failed, match="gone back as often as it may"):
        floq.train(config_of(tmp_path, on_divergence="rewind", **REWINDING), spoiled(), show=False)
    steps = [rewind["step"] for rewind in rewound.rewinds]
    sick, every = the_run(tmp_path, REWINDING["seed"]), INTERVALS["save_interval"]
    second = next(later for one, later in itertools.pairwise(steps) if one // every == later // every)
    assert sick.diverged["step"] == second
    assert sick.rewinds == [rewind for rewind in rewound.rewinds if rewind["step"] < second]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path):
    with pytest.raises(Failed, match="has no checkpoint to go back to"):
        floq.train(config_of(tmp_path, on_divergence="rewind", lr=1e24), rows(), show=False)
    assert the_run(tmp_path).rewinds == []


@pytest.mark.slow
def test_as_a_user_types_it(tmp_path, capsys):
    episodes = make_episodes([(20, False)] * 4)
    logs = write_folder(tmp_path / "logs", episodes)
    flags = [*TINY, "--agent=fql", f"--dataset={logs}", f"--save_dir={tmp_path / 'exp'}", "--agent.lr", "1e-3", "1e24"]
    assert cli.run(["train", *flags, "--env_name=None"]) == 1
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert re.search(r"^floq: seed 0 diverged at step \d+: the .* is not finite; its last good state is .*; what", line)
    assert "--on_divergence=rewind" in line
    folders = sorted((tmp_path / "exp").glob("floq/debug/*/sd000*"))
    assert sorted((f / "summary.json").exists() for f in folders) == [False, True]


# --- online ---


def with_a_bad_reward(count=600) -> Dataset:
    """Episodes of the probe Choice, in one of which the reward is beyond all bounds."""
    data = online_runs.episodes(count)
    return data.relabelled(data.rewards.at[2 * count // 2].set(-HUGE), data.masks)


@pytest.mark.slow
def test_online_the_others_go_on_with_their_environments(tmp_path):
    sick = agent_config(SCALAR, ACTOR, lr=1e24)
    configs = [online_runs.config(tmp_path, "Choice"), online_runs.config(tmp_path, "Choice", seed=1, agent=sick)]
    with pytest.raises(Failed, match=r"^seed 1 diverged at step \d+: the \D+ is not finite"):
        train_fleet(configs, online_runs.episodes(), show=False)
    runs = [floq.Run.open(next(tmp_path.glob(f"floq/debug/*/sd00{seed}*"))) for seed in (0, 1)]
    assert [run.is_finished for run in runs] == [True, False]
    assert runs[0].summary["steps"] == 11
    assert checkpoint.steps(runs[1].folder / "checkpoints")[-1] == runs[1].diverged["step"]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(runs[1].load_agent().params))


ONLINE = {"seed": 7, "online_steps": 60, "utd": 4.0, "save_interval": 10, "eval_interval": 100}


@pytest.mark.slow
def test_online_a_run_goes_back_and_on(tmp_path):
    config = online_runs.config(tmp_path, "Choice", on_divergence="rewind", **ONLINE)
    run = floq.train(config, with_a_bad_reward(), show=False)
    assert len(run.rewinds) > 0
    assert all(rewind["to"] < rewind["step"] and rewind["to"] % 10 == 0 for rewind in run.rewinds)
    assert run.summary["steps"] == 63
    assert read_csv(run.folder / "train.csv")["step"] == [2.0, 3.0, *map(float, range(4, 64, 2)), 63.0]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run.load_agent().params))


# --- keeping, saving, signs ---


def test_old_checkpoints_go(tmp_path):
    kept = floq.train(config_of(tmp_path / "kept", keep_checkpoints=2), rows(), show=False)
    everything = floq.train(config_of(tmp_path / "all"), rows(), show=False)
    assert checkpoint.steps(kept.folder / "checkpoints") == [100, 120]
    assert sorted(p.name for p in (kept.folder / "checkpoints").iterdir()) == ["100", "120"]
    assert checkpoint.steps(everything.folder / "checkpoints") == [20, 40, 60, 80, 100, 120]
    assert same(kept.load_agent(), everything.load_agent())
    with pytest.raises(UserError, match="keep_checkpoints=1: must be at least 2"):
        config_of(tmp_path, keep_checkpoints=1)


def test_checkpoints_by_the_clock(tmp_path):
    """So short a time that every chunk is followed by one; what is learned does not change."""
    run = floq.train(config_of(tmp_path / "a", checkpoint_minutes=1e-9, save_interval=10**6), rows(), show=False)
    steps = checkpoint.steps(run.folder / "checkpoints")
    assert set(steps) > {10, 20, 120}
    plain = floq.train(config_of(tmp_path / "b", save_interval=10**6), rows(), show=False)
    assert checkpoint.steps(plain.folder / "checkpoints") == [120]
    assert same(run.load_agent(), plain.load_agent())


def test_settings_that_old_runs_lack_do_not_change_their_names(tmp_path):
    config = config_of(tmp_path)
    assert config.digest() == dataclasses.replace(config, keep_checkpoints=3, checkpoint_minutes=5.0).digest()
    assert config.digest() != dataclasses.replace(config, on_divergence="rewind").digest()
    assert config.digest() != dataclasses.replace(config, deterministic=True).digest()
    younger = marked(Config, Mark.NOT_HASHED, Mark.HASHED_IF_SET)
    old = {k: v for k, v in config.to_json().items() if k not in younger}
    assert Config.from_json(old | {"seed": 0}).digest() == config.digest()


def test_values_that_leave_their_range_are_told_early():
    quiet = {"training/critic/q": -50.0, "validation/critic/outside_histogram": 0.001}
    assert health_warnings({}, quiet, (-100.0, 0.0)) == {}
    assert health_warnings({}, quiet | {"validation/critic/outside_histogram": 0.2}, (-100.0, 0.0)) == {
        "histogram": "20% of z outside the histogram's support"
    }
    assert health_warnings({}, {"training/critic/q": 30.0, "validation/critic/mass_at_ends": 0.5}, (-100.0, 0.0)) == {
        "histogram": "50% of the histogram's mass at its ends",
        "range": "Q is 30, and no return is above 0",
    }
    assert health_warnings({"q_agg": "lcb"}, quiet | {"training/critic/q": -130.0}, (-100.0, 0.0)) == {}  # pessimism


def test_training_says_so_once(tmp_path, capsys):
    """A learning rate at which a scalar critic's values soon leave what rewards of -1 can come to."""
    floq.train(config_of(tmp_path, lr=3.0, tau=1.0), rows())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning seed 0, step")]
    assert len(lines) == 1
    assert re.search(r"Q is \S+, and no return is (above 0|below -100)", lines[0])


@pytest.mark.parametrize(
    ("settings", "term", "said", "unsaid"),
    [
        ({}, "critic's loss", ["--agent.lr=0.0001", "--agent.q_agg=min", "--on_divergence=rewind"], ["layer_norm"]),
        ({"layer_norm": False, "tau": 0.1}, "TD target", ["--agent.layer_norm=True", "--agent.tau=0.005"], ["alpha"]),
        ({"on_divergence": "rewind"}, "actor's loss", ["--agent.normalize_q_loss=True"], ["on_divergence", "q_agg"]),
    ],
    ids=["critic", "target", "actor"],
)
def test_what_helps(settings, term, said, unsaid):
    helps = " ".join(what_helps(floq.configure(None, "fql", dataset="given", **settings), term))
    assert [word for word in said if word not in helps] == []
    assert [word for word in unsaid if word in helps] == []
