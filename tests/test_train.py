"""The training loop: how steps are divided does not matter, seeds reproduce, signals leave a checkpoint."""

import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import TINY
from helpers import ACTOR, FLOQ, SCALAR, agent_config

from floq import checkpoint
from floq.config import Config
from floq.data.transitions import Dataset
from floq.fleet import Fleet, FleetData
from floq.keys import Keys
from floq.weights import make_agent

ROWS = 60


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 20 == 0
    return Dataset.from_rows(
        rng.normal(5.0, 2.0, (ROWS, 3)), rng.uniform(-1, 1, (ROWS, 2)), -np.ones(ROWS), np.ones(ROWS), ends
    )


def trained(data, calls, critic=FLOQ, seed=0):
    config = Config(agent=agent_config(critic, ACTOR, n_step=2), seed=seed, normalize_observations=True)
    both, keys = FleetData.of([data]), Keys.of(seed)
    fleet = Fleet([make_agent(config, data)], [0], both, both, [keys.batches], [keys.validation])
    for steps in calls:
        (info,) = fleet.advance(steps)
    return fleet.agent(0), info


def same(a, b) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True))


@pytest.mark.parametrize("critic", [FLOQ, SCALAR], ids=["floq", "scalar"])
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
    config = Config(agent=agent_config(FLOQ, ACTOR, n_step=2), normalize_observations=True)
    agent = make_agent(config, data)
    for step in range(3):
        key = jax.random.fold_in(Keys.of(0).batches, step)
        agent, _ = agent.update(data.sample(key, 8, 2, agent.hypers.discount))
    for a, b in zip(jax.tree.leaves(agent.params), jax.tree.leaves(compiled.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_observations_are_normalised_with_the_datas_own_statistics(data):
    agent, _ = trained(data, [1])
    np.testing.assert_allclose(agent.obs_stats.mean, np.mean(np.asarray(data.observations), axis=0), rtol=1e-5)
    assert agent.value_range.r_min == -1.0
    assert agent.value_range.r_max == 0.0


ENDLESS, NEVER = 100_000_000, 100_000_000


def floq_train(*flags) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "floq", "train", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("agent", "signum", "code"),
    [
        ("fql", signal.SIGINT, 130),
        pytest.param("floq", signal.SIGTERM, 143, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_another_process_goes_on_from_it(dataset_dir, tmp_path, agent, signum, code):
    """As a user does it, across processes; the end is that of an undisturbed process, byte by byte."""
    own = ["--agent.block_width=8", "--agent.block_depth=1"] if agent == "floq" else []
    flags = [*TINY, *own, f"--agent={agent}", f"--dataset_dir={dataset_dir}"]
    flags += [f"--{name}_interval={NEVER}" for name in ("log", "eval", "save")]
    process = floq_train(*flags, f"--save_dir={tmp_path / 'a'}", f"--offline_steps={ENDLESS}")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("**/eval.csv")) and time.monotonic() < deadline:
        time.sleep(0.2)  # the first evaluation is over: training goes on
    time.sleep(0.5)
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, output + errors
    assert len(errors.splitlines()) == 1, errors
    assert "go on with floq train --resume" in errors
    (folder,) = tmp_path.glob("a/floq/debug/*/*")
    step = int(checkpoint.load(folder / "checkpoints").agent.step)
    assert step > 1
    assert not (folder / "summary.json").exists()
    assert json.loads((folder / "config.json").read_text())["offline_steps"] == ENDLESS

    last = step + 3
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
