"""What holds in every test, and the runs that several files share.

Shapes are checked at run time (beartype) and keys for reuse where the mathematics is tested, and everywhere in the slow
run; what trains through the command line computes the same without.
"""

import contextlib
import gc
import os
import platform
import resource
import shutil
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("FLOQ_TEST_PLATFORM", "cpu")
# Compiling is most of the suite's time, and tests compute little: hardly any optimisation, none where nothing learns,
# and where JAX still has it the older of XLA's ways to write loops, which takes half the time. With fused multiply-adds
# the last bits of such loops depend on where buffers lie; AVX has none. A program is one piece of code, not thirty-two.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
if version("jax").startswith("0.8.") and platform.machine() == "x86_64":
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"
# Programs are compiled once for all tests, their subprocesses and the next run.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

from jaxtyping import config as jaxtyping_config
from jaxtyping import install_import_hook

CHECKED = ("flow", "networks", "critics", "actors", "agent", "training.fleet")
install_import_hook([f"floq.{name}" for name in CHECKED], "beartype.beartype")  # before anything imports floq

import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 50, 100)  # what is traced are many small objects, and all are looked at again and again

import filelock  # noqa: E402
import gymnasium  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadFileScheduling  # noqa: E402

from floq.analysis import pictures  # noqa: E402
from floq.envs import ogbench, workers  # noqa: E402
from floq.utils.machine import clear_jit_cache  # noqa: E402

OLD_JAX = version("jax").startswith("0.8.")  # its checker takes a key that a training loop carries for a reused one
MAZE_DATA = "pointmaze-medium-navigate-v0"
MATHEMATICS = {"flow", "embeddings", "networks", "critics", "actors", "agent", "candidates"}
MATHEMATICS |= {"golden", "probes", "policy", "cost"}
MEMORY, MAPPINGS = 4 * 2**30, 45_000  # of a test process, beyond which it lets go of its programs; Linux grants 65,530

SHARE_PROGRAMS = (
    "cli chunks decoration export fleet inspect_run logged mirrors pairs resume run sweep untrusted",
    "any_data crashes disk_faults divergence online online_failures random_play recovery",
    "agent precision train",
)


class ByPrograms(LoadFileScheduling):
    """The tests of a file go to one process, and so do files that train the same small agents."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        name = Path(file).stem.removeprefix("test_")
        return next((names for names in SHARE_PROGRAMS if name in names.split()), file)


def pytest_xdist_make_scheduler(config, log):
    return ByPrograms(config, log)


def pytest_collection_modifyitems(items):
    """The mathematics first: what is traced with its checks is not traced without them before."""
    items.sort(key=lambda item: not is_mathematics(item))


def is_mathematics(item) -> bool:
    return item.path.stem.removeprefix("test_") in MATHEMATICS


@pytest.hookimpl(tryfirst=True)  # before fixtures of any scope
def pytest_runtest_setup(item):
    """Check shapes and keys in the mathematics and in slow tests; optimise programs in the latter only."""
    slow = item.get_closest_marker("slow") is not None
    mathematics = is_mathematics(item)
    jaxtyping_config.update("jaxtyping_disable", not (slow or mathematics))
    jax.config.update("jax_debug_key_reuse", mathematics or (slow and not OLD_JAX))
    jax.config.update("jax_disable_most_optimizations", not slow)


@pytest.fixture(autouse=True, scope="module")
def _programs_do_not_pile_up():
    yield
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    if pages * resource.getpagesize() > MEMORY or Path("/proc/self/maps").read_text().count("\n") > MAPPINGS:
        clear_jit_cache()


# --- environments that cost little ---

EPISODE = 30  # steps of OGBench's single tasks, which have up to 1,000 and more
TURN = threading.RLock()  # NumPy's global generator is swapped in around each call of an environment


class Locked:
    """An object whose methods take turns with those of others."""

    def __init__(self, factory, args):
        with TURN:
            self._owned = factory(*args)

    def __getattr__(self, name):
        def call(*args):
            with TURN:
                return getattr(self._owned, name)(*args)

        return call


class ThreadProcess(threading.Thread):
    """A worker that is a thread, with what its process would offer. It ends when its pipe is closed."""

    exitcode = 0

    def __init__(self, factory, args):
        self.ours, theirs = workers.multiprocessing.Pipe()
        super().__init__(target=workers._answer, args=(theirs, lambda: Locked(factory, args), ()), daemon=True)
        self.start()

    def kill(self):
        self.ours.close()


STARTED, VALUE_STATES = workers._start, pictures.VALUE_STATES  # as users have them


def start_thread(factory, args):
    worker = ThreadProcess(factory, args)
    return worker, worker.ours


def set_environments(patch, quick: bool) -> None:
    """Short episodes, coarse pictures and workers that are threads, or what users have: a process takes seconds to
    start."""
    patch.setattr(pictures, "VALUE_STATES", 500 if quick else VALUE_STATES)
    patch.setattr(workers, "_start", start_thread if quick else STARTED)
    for name, steps in LENGTHS.items():
        patch.setattr(gymnasium.registry[name], "max_episode_steps", EPISODE if quick else steps)


ogbench.import_ogbench()  # it registers its environments
LENGTHS = {name: spec.max_episode_steps for name, spec in gymnasium.registry.items() if "-singletask" in name}


@pytest.fixture(autouse=True, scope="session")
def _environments_cost_little():
    """In fixtures as in tests, but for what processes and whole episodes are the subject of."""
    with pytest.MonkeyPatch.context() as patch:
        set_environments(patch, quick=True)
        yield


@pytest.fixture(autouse=True)
def _environments_as_users_have_them(request):
    if not any(request.node.get_closest_marker(mark) for mark in ("processes", "slow")):
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        set_environments(patch, quick=False)
        yield


@contextlib.contextmanager
def undrawn():
    """Runs that end in here leave no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "draw_pictures", lambda *_: None)
        yield


@pytest.fixture
def no_pictures():
    with undrawn():
        yield


# --- runs that are made once ---


@pytest.fixture(scope="session")
def once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """`once(name, make)`: the folder `name` that `make(folder)` fills, made by the process that needs it first."""
    root = tmp_path_factory.getbasetemp()
    root = root if worker_id == "master" else root.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path = root / f"shared-{name}"
        with filelock.FileLock(f"{path}.lock"):
            if not (done := path / ".made").exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def dataset_dir(once):
    """A folder with four collected episodes of the demonstration dataset, one of them for validation."""
    from floq.data.collection.collect import collect

    return once("data", lambda folder: collect(MAZE_DATA, folder, episodes=3, workers=2))


TINY = [
    *("--offline_steps=6", "--log_interval=2", "--eval_interval=4", "--save_interval=4", "--eval_episodes=3"),
    *("--agent.batch_size=8", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"),
]


@pytest.fixture(scope="session")
def run_dir(dataset_dir, once):
    """A finished run of six updates on that dataset, as `floq train` leaves it. Not to be written to."""
    from floq import cli

    flags = [f"--dataset_dir={dataset_dir}", "--agent.block_width=8", "--agent.block_depth=1"]

    def train(folder: Path):
        assert cli.run(["train", *TINY, *flags, f"--save_dir={folder}"]) == 0

    (folder,) = once("run", train).glob("floq/debug/*/*")
    return folder


@pytest.fixture(scope="session")
def held_out_runs(once):
    """A finished fleet of two runs of twelve updates without an environment, with checkpoints of 5, 10, 12. Not to be
    written to."""
    from online_runs import FLAGS, write_data

    from floq import cli

    def train(folder: Path):
        data = write_data(folder / "choice.npz")
        settings = [f"--dataset={data}", "--offline_steps=12", "--eval_interval=6", "--save_interval=5"]
        with undrawn():
            assert cli.run(["train", *FLAGS, *settings, f"--save_dir={folder / 'exp'}", "--seeds", "0", "1"]) == 0

    return sorted((once("held-out", train) / "exp").glob("floq/debug/*/*"))
