"""The examples run and do what they say."""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_critic_in_another_algorithm_runs():
    assert len((EXAMPLES / "own_algorithm.py").read_text().splitlines()) < 60
    actor = load("own_algorithm").main(updates=20)
    assert jnp.isfinite(actor(jnp.zeros(1))).all()


@pytest.mark.slow
def test_the_critic_in_another_algorithm(capsys):
    actor = load("own_algorithm").main(updates=1500)
    acts = jax.vmap(lambda s: jnp.tanh(actor(s[None]))[0])(jnp.array([-0.4, 0.0, 0.4]))
    assert jnp.abs(acts - jnp.array([0.8, 0.0, -0.8])).max() < 0.25
    assert capsys.readouterr().out.count("learned") == 5


STAND_INS = {  # of what the script calls: each writes down how it was called
    "ray": "",
    "srun": "",
    "scontrol": "",
    "python": "echo 2",
    "floq": '[[ $1 == sweep ]] || exit 0\ntrap "exit 143" TERM\nfor _ in $(seq $TENTHS); do sleep 0.1; done',
}


@pytest.fixture
def allocation(tmp_path):
    """The environment of a job on two nodes, and the file in which its commands are written down."""
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/called\n{body}\n')
        (tmp_path / name).chmod(0o755)
    own = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "node1", "SLURM_CPUS_PER_TASK": "4"}
    own |= {"SAVE_DIR": "/shared/exp", "TENTHS": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return os.environ | own, tmp_path / "called"


def test_a_sweep_in_a_slurm_allocation(allocation):
    env, called = allocation
    command = [str(EXAMPLES / "slurm_sweep.sh"), "steps.toml", "--budget=gpu"]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    assert not done.stderr
    commands = called.read_text()
    assert "ray start --head --node-ip-address=" in commands
    assert "--port=20007 --include-dashboard=false --num-cpus=4\n" in commands
    assert "srun --nodes=1 --ntasks=1 --exclude=node1 ray start --address=" in commands
    assert "floq sweep steps.toml --budget=gpu --save_dir=/shared/exp --dataset_dir=/shared/ogbench --addr" in commands
    assert "floq report /shared/exp --out report.html\n" in commands
    assert commands.rstrip().endswith("ray stop")
    assert "scontrol" not in commands


def test_a_job_that_is_pre_empted_is_queued_again(allocation):
    env, called = allocation
    command = [str(EXAMPLES / "slurm_sweep.sh"), "steps.toml"]
    job = subprocess.Popen(command, env=env | {"TENTHS": "600"}, stdout=subprocess.PIPE, text=True)
    while "floq sweep" not in (called.read_text() if called.exists() else ""):
        time.sleep(0.05)
    time.sleep(0.5)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=20)
    assert job.returncode == 143
    assert "cells write checkpoints" in said
    assert "scontrol requeue 7\n" in called.read_text()
    assert "floq report" not in called.read_text()


def test_the_maze_from_above_is_solved_by_its_expert(tmp_path):
    maze = load("pixel_maze")
    maze.collect(tmp_path / "maze.npz", episodes=8)
    rows = np.load(tmp_path / "maze.npz", allow_pickle=False)
    assert rows["observations"].shape[1:] == (32, 32, 3)
    assert rows["terminals"].sum() > 0
    assert ((rows["rewards"] == 0) == rows["terminals"]).all()
    red = (rows["observations"][..., 0] > 150) & (rows["observations"][..., 1] < 100)
    assert (red.sum(axis=(1, 2)) > 2).all()  # the point is seen everywhere
