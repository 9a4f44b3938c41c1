"""The demonstration at full length: what the README promises, for three seeds. Minutes, so only on request."""

import time

import pytest

from floq.runs.presets import configure
from floq.training.train import train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demonstration_learns_its_task(seed, tmp_path):
    started = time.monotonic()
    run = train(configure(seed=seed, save_dir=str(tmp_path / "exp"), dataset_dir=str(tmp_path / "data")))
    print(f"seed {seed}: success {run.summary['success']}, {time.monotonic() - started:.0f} s in all")
    assert run.summary["eval_episodes"] == 50
    assert run.summary["success"] >= 0.9
