"""The demonstration at full length: what the README promises, for three seeds. Minutes, so only on request."""

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demonstration_learns_its_task(tmp_path):
    """In a process whose programs are optimised, as a user's are."""
    words = ["--seeds", "0", "1", "2", f"--save_dir={tmp_path / 'exp'}", f"--dataset_dir={tmp_path / 'data'}"]
    users = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-m", "floq", "train", *words], env=users, check=True)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("exp/floq/debug/*/sd*/summary.json")]
    assert [run["eval_episodes"] for run in found] == [50, 50, 50]
    assert min(run["success"] for run in found) >= 0.9, [run["success"] for run in found]
