"""Sweeps on a real Ray cluster of this machine: what is killed goes on elsewhere, and comes to the same end."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import benchmark

pytest.importorskip("ray", reason="floq[ray] is not installed")

from floq import cli
from floq.runs import checkpoint
from floq.sweep import ray
from floq.sweep.sweep import SweepOptions
from floq.utils.errors import UserError

KILLS = benchmark("ray_kills")
STEPS = 1000

# Ray forks to start its processes, of which JAX warns; and it leaves its sockets to the interpreter's end.
pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return KILLS.flags(KILLS.make_data(tmp_path_factory.mktemp("data") / "data.npz"), STEPS)


def serial(words, save_dir):
    """The same sweep without Ray, on one core as each job has: XLA's older loops, which tests use, see the threads."""
    command = [sys.executable, "-m", "floq", "sweep", *words, f"--save_dir={save_dir}"]
    subprocess.run(command, env=os.environ | {"FLOQ_CORES": "1", "NPROC": "1"}, check=True, capture_output=True)
    return save_dir


def saved(save_dir):
    return [step for run in save_dir.glob("*/*/*/sd*") for step in checkpoint.steps(run / "checkpoints")]


@pytest.mark.slow
def test_a_cell_whose_process_is_killed_goes_on_and_ends_once(words, tmp_path, capsys):
    """One node, one job of two runs, SIGKILL once it has a checkpoint; then the same sweep finds nothing to do, and a
    path that a node does not see is refused."""
    own = [word for word in words if word not in ("3", "4")]
    expected = serial(own, tmp_path / "serial")
    with KILLS.Cluster(nodes=1) as nodes:
        killer = KILLS.Killer(nodes, tmp_path / "ray", ["worker"], random.Random(0), pause=0.0)
        killer.start()
        there = [*own, f"--address={nodes.address}", f"--save_dir={tmp_path / 'ray'}"]
        assert cli.run(["sweep", *there]) == 0
        killer.join(timeout=5)
        assert killer.done == {"worker": 1}
        assert "1 done; 1 retry; 100% of all steps" in capsys.readouterr().out
        assert KILLS.difference(expected, tmp_path / "ray") is None
        assert cli.run(["sweep", *there]) == 0
        assert "2 runs, 0 to train" in capsys.readouterr().out
        with (
            ray.ray_cluster(SweepOptions(address=nodes.address)),
            pytest.raises(UserError, match="does not see /nowhere"),
        ):
            ray._check_nodes(ray._nodes(), [str(tmp_path), "/nowhere"])
    assert not list((tmp_path / "ray").glob(".sweep-*"))


@pytest.mark.slow
def test_workers_and_nodes_are_killed_and_every_cell_ends_as_in_a_serial_sweep(words, tmp_path):
    expected = serial(words, tmp_path / "serial")
    kinds = ["worker", "node", "notice"]
    killed, printed = KILLS.killed_sweep(words, tmp_path / "ray", kinds, random.Random(0))
    assert killed == dict.fromkeys(kinds, 1)
    assert re.search(r"3 done; [1-3] retr", printed)  # a kill may come when its job has just ended
    assert KILLS.difference(expected, tmp_path / "ray") is None


@pytest.mark.slow
def test_ctrl_c_writes_checkpoints_and_the_same_command_goes_on(words, tmp_path, capsys):
    own = [word for word in words if word not in ("3", "4")]
    expected = serial(own, tmp_path / "serial")
    there = ["sweep", *own, f"--save_dir={tmp_path / 'ray'}", "--address=local"]
    there += ["--cores_per_cell=1", "--fleet_size=2"]

    def interrupt():
        while not saved(tmp_path / "ray"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert cli.run(there) == 130
    said = capsys.readouterr()
    assert "the same command goes on" in said.err
    assert "1 stopped" in said.out
    left = {max(checkpoint.steps(run / "checkpoints")) for run in (tmp_path / "ray").glob("*/*/*/sd*")}
    assert len(left) == 1
    assert left < {*range(STEPS)}
    assert cli.run(there) == 0
    assert KILLS.difference(expected, tmp_path / "ray") is None


def node(cores, gpus=0):
    return {"Resources": {"CPU": float(cores)} | ({"GPU": float(gpus)} if gpus else {})}


@pytest.mark.parametrize(
    ("nodes", "wanted", "expected"),
    [
        ([node(8)], {}, (2, 0, 4)),
        ([node(1)], {}, (1, 0, 1)),
        ([node(0), node(4), node(3)], {}, (2, 0, 3)),
        ([node(4), node(64, 8)], {}, (8, 1, 8)),
        ([node(64, 8)], {"gpus_per_cell": 0.5}, (4, 0.5, 16)),
        ([node(64, 8), node(16, 1)], {"gpus_per_cell": 2.0, "cores_per_cell": 4}, (4, 2, 4)),
        ([node(64, 8)], {"gpus_per_cell": 0.0}, (2, 0, 32)),
    ],
)
def test_what_a_cell_is_given(nodes, wanted, expected):
    """Cores and GPUs of a job, and how many fit at once."""
    assert ray._share(SweepOptions(address="auto", **wanted), nodes)[:3] == expected


def test_no_node_is_large_enough():
    with pytest.raises(UserError, match="no node has room for a job with --cores_per_cell=9"):
        ray._share(SweepOptions(address="auto", cores_per_cell=9), [node(8), node(4)])
    assert "2 nodes with 8 cores, 1 node with 4 cores" in str(
        ray._share(SweepOptions(address="auto"), [node(8), node(8), node(4)])
    )


def test_no_cluster(capsys, tmp_path):
    words = ["sweep", "--seeds", "0", f"--save_dir={tmp_path}", f"--dataset_dir={tmp_path}", "--address=127.0.0.1:1"]
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert "no Ray cluster answers" in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_failures_are_not_tried_again(words, tmp_path, capsys):
    data = np.load(next(word for word in words if word.startswith("--dataset=")).removeprefix("--dataset="))
    np.savez(tmp_path / "data.npz", **{name: data[name] for name in data.files if name != "timeouts"})
    own = [word for word in words if word not in ("3", "4") and not word.startswith("--dataset=")]
    there = ["sweep", *own, f"--dataset={tmp_path / 'data.npz'}", f"--save_dir={tmp_path}", "--address=local"]
    assert cli.run(there) == 1
    said = capsys.readouterr()
    assert "1 failed; 0 retries" in said.out
    assert "scalar+fql on data failed: " in said.err
    assert "has neither timeouts nor next_observations" in said.err
