"""What holds in every test: shapes are checked at run time, and JAX refuses sloppy code."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("FLOQ_TEST_PLATFORM", "cpu")
# Compiling is most of the suite's time, and tests compute little: the least optimisation costs them nothing.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
# Programs are compiled once for all tests, their subprocesses and the next run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import install_import_hook

install_import_hook("floq", "beartype.beartype")  # before anything imports floq

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
if jax.__version_info__ >= (0, 10):  # older checkers take a key that is passed on within a fleet for one that is used
    jax.config.update("jax_debug_key_reuse", True)

import pytest  # noqa: E402

from floq.machine import forget_programs  # noqa: E402

MAZE_DATA = "pointmaze-medium-navigate-v0"


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    """A process that keeps every program of the suite ends at 6 GB, and its last tests crawl."""
    yield
    forget_programs()


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """A folder with four collected episodes of the demonstration dataset, one of them for validation."""
    from floq.data.collect import collect

    directory = tmp_path_factory.mktemp("data")
    collect(MAZE_DATA, directory, episodes=3, workers=2)
    return directory


TINY = [
    *("--offline_steps=6", "--log_interval=2", "--eval_interval=4", "--save_interval=4", "--eval_episodes=3"),
    *("--agent.batch_size=8", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"),
]


@pytest.fixture(scope="session")
def run_dir(dataset_dir, tmp_path_factory):
    """A finished run of six updates on that dataset, as `floq train` leaves it."""
    from floq import cli

    save_dir = tmp_path_factory.mktemp("exp")
    flags = [f"--dataset_dir={dataset_dir}", f"--save_dir={save_dir}", "--agent.block_width=8", "--agent.block_depth=1"]
    assert cli.run(["train", *TINY, *flags]) == 0
    (folder,) = save_dir.glob("floq/debug/*/*")
    return folder


@pytest.fixture(scope="session")
def held_out_runs(tmp_path_factory):
    """A finished fleet of two runs of twelve updates without an environment, with checkpoints of 5, 10 and 12."""
    from online_runs import FLAGS, write_data

    from floq import cli, pictures

    folder = tmp_path_factory.mktemp("held-out")
    data = write_data(folder / "choice.npz")
    settings = [f"--dataset={data}", "--offline_steps=12", "--eval_interval=6", "--save_interval=5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw", lambda *_: None)
        assert cli.run(["train", *FLAGS, *settings, f"--save_dir={folder / 'exp'}", "--seeds", "0", "1"]) == 0
    return sorted((folder / "exp").glob("floq/debug/*/*"))
