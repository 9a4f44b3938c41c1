"""The GPU programme, rehearsed with the smallest sizes on the CPU."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMME = Path(__file__).parents[1] / "benchmarks" / "gpu" / "run.py"


def rehearse(out, *steps):
    words = ["--tiny", "--out", str(out), *(["--steps", *steps] if steps else [])]
    done = subprocess.run(
        [sys.executable, str(PROGRAMME), *words], capture_output=True, text=True, timeout=1500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_step_writes_its_log_and_results(tmp_path):
    assert "--- kernels: done" in rehearse(tmp_path, "kernels")
    assert "--agent.integration=fused: " in (tmp_path / "kernels.log").read_text()  # refused: no GPU, or another JAX
    rows = list(csv.DictReader((tmp_path / "kernels.csv").read_text().splitlines()))
    assert [row["integration"] for row in rows] == ["plain"]


@pytest.mark.slow
def test_correctness(tmp_path):
    assert "--- correctness: done" in rehearse(tmp_path, "correctness")
    rows = list(csv.DictReader((tmp_path / "correctness.csv").read_text().splitlines()))
    ways = {(row["precision"], row["integration"]): float(row["targets"]) for row in rows}
    assert ways["f32", "plain"] == 0
    assert 0 < ways["bf16", "plain"] < 0.02
    assert all(row["same bits"] == "True" for row in rows)


@pytest.mark.slow
def test_learning_goes_on_in_turns(tmp_path):
    assert "--- learning: done" in rehearse(tmp_path, "learning")
    table = (tmp_path / "learning.log").read_text()
    assert "fql of equal operations" in table
    assert table.count("     200  ") == 3  # each fleet's once, and the second draws the first again
    assert (tmp_path / "learning" / "curve.png").stat().st_size > 0


@pytest.mark.slow
def test_learning_from_images(tmp_path):
    assert "--- learning_images: done" in rehearse(tmp_path, "learning_images")
    assert (tmp_path / "learning_images" / "curve.png").stat().st_size > 0


def test_steps_are_named_with_their_limits():
    listed = subprocess.run([sys.executable, str(PROGRAMME), "--list"], capture_output=True, text=True, check=True)
    limits = [int(line.split()[1]) for line in listed.stdout.splitlines()]
    assert sum(limits) <= 25 * 60


@pytest.mark.slow
def test_the_whole_programme(tmp_path):
    shown = rehearse(tmp_path)
    for step in ("correctness", "bench", "kernels", "bench_fast", "bench_tf32", "bench_images", "host_rows", "curve"):
        assert f"--- {step}: done" in shown
    assert "--- bench_fused: not on this machine" in shown
    assert (tmp_path / "curve.png").stat().st_size > 0
