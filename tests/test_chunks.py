"""`--agent.action_chunk` as a user types it: training, evaluation, pictures, going on, and from Python."""

import shutil

import jax
import numpy as np
import pytest
from conftest import TINY, undrawn
from episodes import write_folder
from helpers import SCALAR, agent_config

import floq
from floq import cli
from floq.agent.agent import Agent
from floq.analysis.evaluate_run import evaluate_run
from floq.analysis.inspect_run import inspect_run
from floq.data.dataset import Dataset
from floq.evaluation.rollouts import Controller, Evaluation

CHUNKS = ["--agent.action_chunk=3", "--agent.n_step=3"]
SMALL = [*TINY, "--agent=fql", *CHUNKS, "--eval_episodes=2"]


@pytest.fixture(scope="module")
def finished(dataset_dir, tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("exp")
    flags = [f"--dataset_dir={dataset_dir}", f"--save_dir={save_dir}"]
    with undrawn():
        assert cli.run(["train", *SMALL, *flags]) == 0
    (folder,) = save_dir.glob("floq/debug/*/*")
    return floq.Run.open(folder)


def test_a_run_with_chunks(finished):
    """The networks decide on three actions of two numbers each."""
    agent = finished.load_agent()
    act = agent.act(np.zeros(2, np.float32), jax.random.key(0))
    assert act.shape == (6,)
    assert finished.config.agent.action_chunk == 3


@pytest.mark.slow
def test_its_pictures(finished, tmp_path):
    assert inspect_run(str(finished.folder), episodes=1, video=False, out=str(tmp_path), show=False)
    assert (tmp_path / "value_map.png").exists()


def test_its_evaluation_again_with_any_number_of_workers(finished):
    one, two = (evaluate_run(str(finished.folder), eval_episodes=2, workers=n, show=False) for n in (1, 2))
    assert isinstance(one, Evaluation)
    assert isinstance(two, Evaluation)
    assert one.episodes == two.episodes
    assert one.summary()["evaluation/episode.return"] == finished.evaluations()["evaluation/episode.return"][-1]


def test_it_goes_on_bit_by_bit(finished, tmp_path, no_pictures):
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    shutil.rmtree(copy / "checkpoints" / "6")
    (copy / "summary.json").unlink()
    assert cli.run(["train", f"--resume={copy}"]) == 0
    states = [folder / "checkpoints" / "6" / "state.safetensors" for folder in (finished.folder, copy)]
    assert states[0].read_bytes() == states[1].read_bytes()


def test_its_weights_start_another_run(finished, dataset_dir, tmp_path, no_pictures, capsys):
    flags = [*SMALL, f"--dataset_dir={dataset_dir}", f"--save_dir={tmp_path}", f"--restore_path={finished.folder}"]
    assert cli.run(["train", *flags, "--agent.action_chunk=2"]) == 2
    assert "its networks do not fit (action_chunk is 2 here and 3 there)" in capsys.readouterr().err
    assert cli.run(["train", *flags, "--agent.lr=1e-30", "--offline_steps=1"]) == 0
    (folder,) = tmp_path.glob("floq/debug/*/*")
    pairs = (jax.tree.leaves(run.load_agent().params) for run in (floq.Run.open(folder), finished))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_array_equal(a, b)


def logs(length):
    rng = np.random.default_rng(0)
    shapes = {"observations": (length + 1, 3), "actions": (length, 1), "rewards": (length,)}
    return [{key: rng.uniform(-1, 0, shape) for key, shape in shapes.items()} for _ in range(3)]


@pytest.mark.slow
def test_without_an_environment(tmp_path, no_pictures):
    folder = write_folder(tmp_path / "logs", logs(30))
    assert cli.run(["train", *SMALL, f"--dataset={folder}", f"--save_dir={tmp_path}"]) == 0
    (found,) = tmp_path.glob("floq/debug/logs/*")
    run = floq.Run.open(found)
    again = evaluate_run(str(found), show=False).summary()
    assert again["evaluation/td_error"] == run.evaluations()["evaluation/td_error"][-1]


def test_trajectories_that_are_too_short_get_one_line(tmp_path, capsys):
    folder = write_folder(tmp_path / "logs", logs(2))
    assert cli.run(["train", *SMALL, f"--dataset={folder}", f"--save_dir={tmp_path / 'exp'}"]) == 2
    assert "no trajectory is as long as --agent.action_chunk=3: give a smaller one" in capsys.readouterr().err
    assert not (tmp_path / "exp").exists()


def test_a_users_own_loop():
    """What an agent with chunks wants of the data, as the README says."""
    data = Dataset.from_episodes(logs(30)).for_chunks(3)
    agent = Agent.init(jax.random.key(0), 3, 3 * 1, agent_config(SCALAR, action_chunk=3))
    batch = data.sample(jax.random.key(1), 8, n_step=2, discount=agent.hypers.discount, action_chunk=3)
    agent, info = agent.update(batch)
    assert np.isfinite(float(info["critic/q"]))
    assert agent.act(np.zeros(3, np.float32), jax.random.key(2)).shape == (3,)


def test_a_chunk_is_executed_to_its_end():
    def never():
        raise AssertionError("no chunk begins")

    controller = Controller(2)  # two environments, one number an action
    act = lambda elapsed, *given: controller.act(np.array(elapsed), *given)[:, 0].tolist()  # noqa: E731
    assert act([0, 0], lambda: [[1, 2], [3, 4]]) == [1, 3]
    assert act([1, 1], never) == [2, 4]
    assert act([2, 0], lambda: [[5, 6], [7, 8]], np.array([True, False])) == [5, 3]
    assert act([3, 1], never) == [6, 4]
    assert Controller(3).act(0, lambda: np.arange(6)).tolist() == [0, 1]  # one environment, two numbers an action
