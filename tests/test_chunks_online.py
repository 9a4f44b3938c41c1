"""Chunks of actions in the online phase, on a probe whose returns are known; a stop with all that is new there."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACTOR, SCALAR, agent_config
from online_runs import FLAGS, config, episodes, only_run

from floq import cli
from floq.agent.state import Keys
from floq.data.mixture import Mixture, Source
from floq.data.replay import Replay
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.training.resume import resume
from floq.training.train import train

pytestmark = pytest.mark.usefixtures("no_pictures")
BEST = dataclasses.replace(ACTOR, num_candidates=3)


@pytest.fixture(scope="module")
def warmed_up(tmp_path_factory):
    """A run without updates online, in Choice: two steps follow each reset, and their rewards are a_0 and -a_1."""
    agent = agent_config(SCALAR, ACTOR, action_chunk=2)
    steps = {"offline_steps": 1, "online_steps": 18, "num_envs": 2, "warmup_steps": 18, "eval_interval": 0}
    return train(config(tmp_path_factory.mktemp("exp"), "Choice", **steps, agent=agent), episodes(), show=False)


@pytest.fixture(scope="module")
def seen(warmed_up):
    return checkpoint.load_replay(warmed_up.folder / "checkpoints", 1 + 18)


def test_a_chunk_is_executed_open_loop(warmed_up, seen):
    """Both actions of an episode were chosen in its first state, at ticks 0, 3 and 6."""
    policy, key = warmed_up.load_agent().policy, Keys.of(0).exploration
    for tick in (0, 3, 6):
        for env in range(2):
            own = jax.random.fold_in(jax.random.fold_in(jax.random.clone(key), tick), env)
            chunk = policy.explore(jnp.zeros(1), own)
            np.testing.assert_allclose(seen.actions[tick + 1 : tick + 3, env, 0], chunk, rtol=1e-5, atol=1e-6)
    assert len(np.unique(seen.actions[~seen.ends])) == 2 * 6  # no action is repeated


def test_chunks_are_replayed_from_every_offset_with_the_returns_that_are_known(seen):
    """From state 0 the return is a_0 - g a_1, from state 1, one step before the end, it is -a_1."""
    replay = Replay.of([seen], 12, action_chunk=2)
    mixture = Mixture(Source.of(episodes().for_chunks(2)), replay.of_run(jnp.int32(0)), jnp.float32(0.0))
    batch = mixture.sample(jax.random.key(0), 64, 2, 0.5, 2)
    first = np.asarray(batch["observations"][:, 0]) == 0
    act, now = np.asarray(batch["actions"]), np.asarray(batch["rewards"])
    np.testing.assert_allclose(now[first], act[first, 0] - 0.5 * act[first, 1], rtol=1e-5)
    np.testing.assert_allclose(now[~first], -act[~first, 0], rtol=1e-5)
    assert 0 < first.sum() < 64
    assert not batch["masks"].any()


def states(run: Run) -> bytes:
    (last,) = sorted(checkpoint.steps(run.folder / "checkpoints"))[-1:]
    return (run.folder / "checkpoints" / str(last) / "state.safetensors").read_bytes()


def test_a_run_goes_on_bit_by_bit_with_any_share_and_several_candidates(tmp_path):
    """In Loop nothing depends on where an episode begins. The share of the data shrinks across the stop."""
    options = {"offline_share": 0.75, "offline_share_steps": 6, "warmup_steps": 2, "eval_interval": 0}
    options |= {"agent": agent_config(SCALAR, BEST)}
    whole = train(config(tmp_path / "whole", online_steps=8, **options), episodes(), show=False)
    parts = train(config(tmp_path / "parts", online_steps=4, **options), episodes(), show=False)
    assert states(parts) != states(whole)
    assert states(resume(parts.folder, episodes(), online_steps=8, show=False)) == states(whole)


def test_a_run_that_stops_within_a_chunk_begins_another(tmp_path):
    """With its episode the rest of the chunk is lost: every resumed run is the same, and no transition crosses."""
    options = {"offline_share": 0.5, "num_envs": 2, "agent": agent_config(SCALAR, BEST, action_chunk=2, n_step=2)}
    stopped = train(config(tmp_path / "run", online_steps=10, **options), episodes(), show=False)
    shutil.copytree(stopped.folder, tmp_path / "copy")
    one, two = (
        resume(folder, episodes(), online_steps=20, show=False) for folder in (stopped.folder, tmp_path / "copy")
    )
    assert states(one) == states(two)
    seen = checkpoint.load_replay(one.folder / "checkpoints", 3 + 20)
    assert seen is not None
    np.testing.assert_array_equal(np.flatnonzero(seen.ends[:, 0]), [0, 6, 12])  # the beginning, the stop, now
    assert np.isfinite(one.training()["training/critic/q"]).all()


def test_chunks_from_scratch(tmp_path, monkeypatch):
    """Random play is the first data, of chunks from every offset as well."""
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    flags = ["--env_name=probe_envs:Choice-v0", "--offline_steps=0", "--online_steps=4", "--warmup_steps=30"]
    assert cli.run(["train", *FLAGS, *flags, "--agent.action_chunk=2", f"--save_dir={tmp_path}"]) == 0
    run = only_run(tmp_path)
    assert int(run.load_agent().step) == 4
    assert run.load_agent().action_dim == 2
