"""The training loop: how steps are divided does not matter, seeds reproduce, signals leave a checkpoint."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import online_runs
import pytest
from conftest import TINY
from helpers import ACTOR, FLOQ, SCALAR, agent_config

from floq.agent.state import Keys
from floq.data.dataset import Dataset
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.runs.run import make_agent
from floq.training.fleet import Fleet, FleetData

ROWS = 60


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 20 == 0
    return Dataset.from_rows(
        rng.normal(5.0, 2.0, (ROWS, 3)), rng.uniform(-1, 1, (ROWS, 2)), -np.ones(ROWS), np.ones(ROWS), ends
    )


def trained(data, calls, critic=SCALAR, seed=0):
    config = Config(agent=agent_config(critic, ACTOR, n_step=2), seed=seed, normalize_observations=True)
    both, keys = FleetData.of([data]), Keys.of(seed)
    fleet = Fleet([make_agent(config, data)], [0], both, both, [keys.batches], [keys.validation])
    for steps in calls:
        (info,) = fleet.advance(steps)
    return fleet.agent(0), info


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True))


@pytest.mark.parametrize(
    "critic", [pytest.param(FLOQ, id="floq", marks=pytest.mark.slow), pytest.param(SCALAR, id="scalar")]
)
def test_the_division_into_device_calls_does_not_matter(data, critic):
    once, info = trained(data, [6], critic)
    parts, info_of_parts = trained(data, [1, 3, 2], critic)
    assert int(once.step) == int(parts.step) == 6
    assert same(once, parts)
    assert {k: float(v) for k, v in info.items()} == {k: float(v) for k, v in info_of_parts.items()}


def test_seeds_reproduce_and_differ(data):
    assert same(trained(data, [3])[0], trained(data, [3])[0])
    assert not same(trained(data, [3])[0], trained(data, [3], seed=1)[0])


def test_the_compiled_loop_equals_a_users_own_loop(data):
    """`agent, info = agent.update(batch)` in plain Python, with the same batches."""
    compiled, _ = trained(data, [3])
    config = Config(agent=agent_config(SCALAR, ACTOR, n_step=2), normalize_observations=True)
    agent, sample = make_agent(config, data), jax.jit(Dataset.sample, static_argnums=(2, 3))
    for step in range(3):
        key = jax.random.fold_in(Keys.of(0).batches, step)
        agent, _ = agent.update(sample(data, key, 8, 2, agent.hypers.discount))
    for a, b in zip(jax.tree.leaves(agent.params), jax.tree.leaves(compiled.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_observations_are_normalised_with_the_datas_own_statistics(data):
    agent, _ = trained(data, [1])
    np.testing.assert_allclose(agent.obs_stats.mean, np.mean(np.asarray(data.observations), axis=0), rtol=1e-5)
    assert agent.value_range.r_min == -1.0
    assert agent.value_range.r_max == 0.0


ENDLESS = 100_000_000
NEVER = [f"--{name}_interval={ENDLESS}" for name in ("log", "eval", "save")]


def floq_train(*flags) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "floq", "train", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stopped_by(signum: signal.Signals, code: int, save_dir, flags) -> Path:
    """The folder of an endless run that another process has begun and a signal ended."""
    process = floq_train(*flags, f"--save_dir={save_dir}", f"--offline_steps={ENDLESS}")
    deadline = time.monotonic() + 120
    while not list(save_dir.glob("**/eval.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)  # the first evaluation is over: training goes on
    time.sleep(0.5)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, output + errors
    assert len(errors.splitlines()) == 1, errors
    assert "go on with floq train --resume" in errors
    (folder,) = save_dir.glob("floq/debug/*/*")
    assert not (folder / "summary.json").exists()
    assert json.loads((folder / "config.json").read_text())["offline_steps"] == ENDLESS
    return folder


def test_a_signal_leaves_a_checkpoint(tmp_path):
    data = online_runs.write_data(tmp_path / "choice.npz")
    folder = stopped_by(signal.SIGINT, 130, tmp_path / "a", [*online_runs.FLAGS, f"--dataset={data}", *NEVER])
    assert int(checkpoint.load(folder / "checkpoints").agent.step) > 1


@pytest.mark.slow
@pytest.mark.parametrize(("agent", "signum", "code"), [("fql", signal.SIGINT, 130), ("floq", signal.SIGTERM, 143)])
def test_another_process_goes_on_from_it(dataset_dir, tmp_path, agent, signum, code):
    """As a user does it, across processes; the end is that of an undisturbed process, byte by byte."""
    own = ["--agent.block_width=8", "--agent.block_depth=1"] if agent == "floq" else []
    flags = [*TINY, *own, f"--agent={agent}", f"--dataset_dir={dataset_dir}", *NEVER]
    folder = stopped_by(signum, code, tmp_path / "a", flags)
    last = int(checkpoint.load(folder / "checkpoints").agent.step) + 3
    commands = (
        [f"--resume={folder}", f"--offline_steps={last}"],
        [*flags, f"--save_dir={tmp_path / 'b'}", f"--offline_steps={last}"],
    )
    for process in [floq_train(*command) for command in commands]:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, output + errors
    (undisturbed,) = tmp_path.glob("b/floq/debug/*/*")
    states = [run / "checkpoints" / str(last) / "state.safetensors" for run in (folder, undisturbed)]
    assert states[0].read_bytes() == states[1].read_bytes()
