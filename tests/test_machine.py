"""Several devices, and programs that are kept: each in processes of its own, as JAX wants it."""

import os
import subprocess
import sys
import textwrap

import jax
import pytest
from conftest import TINY

from floq import cli
from floq.training.fleet import Layout
from floq.utils import machine
from floq.utils.errors import UserError
from floq.utils.machine import DETERMINISTIC, be_deterministic, processor_digest

SHARED_BATCH = """
import dataclasses, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from floq.data.dataset import Dataset
from floq.training.fleet import Fleet, FleetData, Layout
from floq.agent.state import Keys
from floq.runs.config import configure
from floq.runs.run import make_agent

rng = np.random.default_rng(0)
rows = rng.normal(size=(60, 3)), rng.uniform(-1, 1, (60, 2)), -np.ones(60), np.ones(60), np.arange(1, 61) % 20 == 0
data, small = Dataset.from_rows(*rows), {"value_hidden_dims": (8,), "actor_hidden_dims": (8,)}
config = configure(agent="fql", batch_size=16, **small)

def trained(runs, layout):
    keys = [Keys.of(seed).batches for seed in range(runs)]
    agents = [make_agent(dataclasses.replace(config, seed=seed), data) for seed in range(runs)]
    fleet = Fleet(agents, [0] * runs, FleetData.of([data]), FleetData.of([data]), keys, keys, layout)
    program = fleet.compile().as_text()
    infos = fleet.advance(10)
    return jax.device_get(fleet.agent(runs - 1).params), infos[-1], fleet.validate()[-1], program

devices = tuple(jax.devices())
for runs, layout in ((1, Layout(devices, False, 4)), (3, Layout(devices, True, 2))):
    alone, divided = trained(runs, Layout(devices[:1], False)), trained(runs, layout)
    for a, b in zip(*(jax.tree.leaves(found[:3]) for found in (alone, divided)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert "all-reduce" in divided[3] and "all-reduce" not in alone[3]  # gradients are summed over the devices
    if runs == 1:  # hidden layers of a quarter of the batch each
        assert "f32[4,8]" in divided[3] and "f32[4,8]" not in alone[3]
"""


def in_a_process(*words, **environment):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def output_of(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return out


def test_cores_within_a_container(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "CPU_QUOTA", quota)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(64))
    assert machine.cores() == 64
    quota.write_text("150000 100000\n")
    assert machine.cores() == 2
    quota.write_text("max 100000\n")
    assert machine.cores() == 64


@pytest.mark.slow
def test_devices_that_share_a_batch_train_what_one_does():
    output_of(in_a_process("-c", SHARED_BATCH))


def test_more_devices_than_there_are(dataset_dir, capsys):
    with pytest.raises(UserError, match=r"--batch_devices=64: this process has \d+ .* give at most as many"):
        Layout.for_runs(1, 64)
    flags = [*TINY, f"--dataset_dir={dataset_dir}", "--batch_devices=3"]
    assert cli.run(["train", *flags]) == 2
    assert "--batch_devices=3: does not divide --agent.batch_size=8" in capsys.readouterr().err


KEEP = """
import jax, jax.numpy as jnp
from floq.utils.machine import enable_compilation_cache
folder = enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4)))
print(folder, len(list(folder.glob("*-cache"))))
"""


def test_programs_are_kept_for_this_kind_of_processor(tmp_path):
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    code = f"import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)\n{KEEP}"
    first, second = (output_of(in_a_process("-c", code, **environment)).split() for _ in range(2))
    assert first == second  # the second process adds nothing
    assert first[0] == str(tmp_path / "floq" / "programs" / processor_digest())
    assert int(first[1]) > 0


def test_what_the_user_chose_for_programs_stands(tmp_path):
    out = output_of(in_a_process("-c", KEEP, JAX_COMPILATION_CACHE_DIR=str(tmp_path)))
    assert out.split()[0] == str(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "import os; os.environ.pop('JAX_COMPILATION_CACHE_DIR', None); from floq.utils import machine\n"
    assert (
        output_of(
            in_a_process("-c", code + "print(machine.enable_compilation_cache())", XDG_CACHE_HOME=str(blocked))
        ).strip()
        == "None"
    )


def test_forgotten_programs_give_their_memory_back():
    code = """
    import jax, jax.numpy as jnp
    from pathlib import Path
    from floq.utils.machine import clear_jit_cache
    pieces = lambda: len(Path("/proc/self/maps").read_text().splitlines())
    found = []
    for _ in range(3):
        for size in range(1, 12):
            jax.jit(lambda x: jnp.sort(jnp.sin(x) @ x.T))(jnp.ones((size, size)))
        found.append(pieces())
        clear_jit_cache()
    assert found[2] < found[0] + (found[0] - pieces()), found
    """
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("this system does not tell what is mapped")
    process = in_a_process("-c", textwrap.dedent(code), JAX_ENABLE_COMPILATION_CACHE="false")
    errors = process.communicate()[1]
    assert process.returncode == 0, errors


def test_deterministic_is_a_flag_that_xla_reads_when_it_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    be_deterministic()  # JAX is in use here, on a CPU, which needs nothing
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=somewhere {DETERMINISTIC}"
    be_deterministic()
    assert os.environ["XLA_FLAGS"].count(DETERMINISTIC) == 1
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jax.devices()
    with pytest.raises(UserError, match=f"start Python with XLA_FLAGS={DETERMINISTIC}"):
        be_deterministic()
    assert os.environ["XLA_FLAGS"] == ""


def test_xla_knows_that_flag():
    """It ends a process that has one it does not know."""
    probe = "import jax; print(jax.jit(lambda x: x + 1)(1))"
    command = [sys.executable, "-c", probe]
    done = subprocess.run(command, env=os.environ | {"XLA_FLAGS": DETERMINISTIC}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


# --- what environment variables name ---


def one_line(process) -> str:
    _, err = process.communicate()
    assert process.returncode == 2, err
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(
    ("named", "remedy"),
    [
        ({"JAX_PLATFORMS": "bogus"}, "set JAX_PLATFORMS=cpu"),
        ({"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0"}, "unset CUDA_VISIBLE_DEVICES"),
        ({"JAX_PLATFORMS": "", "ROCR_VISIBLE_DEVICES": "0,1"}, "unset ROCR_VISIBLE_DEVICES"),
    ],
)
def test_an_accelerator_that_is_not_here_is_one_line(named, remedy, monkeypatch):
    code = "import sys; from floq.utils import machine; import floq.cli; floq.cli.COMMANDS['x'] = 'x:y', '', ''\n"
    code += "floq.cli._name_of = lambda _: machine.device()\nsys.exit(floq.cli.run(['x']))"
    line = one_line(in_a_process("-c", code, **named))
    (name, value) = list(named.items())[-1]
    assert line.startswith(f"floq: {name}={value}")
    assert remedy in line


@pytest.mark.parametrize("unset", ["", "-1", "NoDevFiles"])
def test_the_cpu_may_be_chosen(unset, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert machine.device().startswith(("CPU, ", "1 x"))  # JAX_PLATFORMS, which the tests set, names it
    values = jax.config.values | {"jax_platforms": None}
    monkeypatch.setattr(type(jax.config), "values", values, raising=False)
    if jax.default_backend() == "cpu":
        with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES=0 names a GPU"):
            machine.device()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", unset)
    assert machine.device()


@pytest.mark.parametrize(
    ("named", "env_name"),
    [
        ({"MUJOCO_GL": "no-such-renderer"}, "pointmaze-medium-navigate-singletask-v0"),
        ({"MUJOCO_GL": "no-such-renderer", "PYOPENGL_PLATFORM": "glx"}, "cube-single-play-singletask-v0"),
        ({"MUJOCO_GL": "no-such-renderer"}, "HalfCheetah-v5"),
    ],
)
def test_a_renderer_that_is_not_here_is_one_line(named, env_name):
    code = "import sys, floq.cli; from floq.envs import environments\n"
    code += f"floq.cli._name_of = lambda _: environments.make({env_name!r})\nsys.exit(floq.cli.run(['x']))"
    line = one_line(in_a_process("-c", code, **named))
    assert all(f"{name}={value}" in line for name, value in named.items())
    assert f"unset {' and '.join(named)}" in line


def test_a_renderer_is_not_blamed_for_other_errors(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(KeyError), machine.explain_renderer():
        raise KeyError("of the environment")


NO_SIMULATOR = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mujoco", "dm_control", "gymnasium_robotics", "ogbench"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Refuse())
from floq import cli
from online_runs import FLAGS, write_data
from pathlib import Path

data = write_data(Path("a.npz"))
train = ["train", *FLAGS, "--offline_steps=2", "--dataset=a.npz"]
for command in ("data inspect a.npz", "data convert a.npz b.npz"):
    assert cli.run(command.split()) == 0, command
assert cli.run([*train, *sys.argv[1:]]) == 0
"""


@pytest.mark.parametrize("flags", [["--dry_run"], pytest.param([], marks=pytest.mark.slow)])
def test_commands_on_plain_arrays_import_no_simulator(tmp_path, flags):
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", NO_SIMULATOR, *flags],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    if not flags:
        lines = process.stdout.splitlines()
        places = [next(n for n, line in enumerate(lines) if line.startswith(word)) for word in ("device ", "train ")]
        assert places == sorted(places)  # what the run computes on stands before its progress
