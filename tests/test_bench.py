"""`floq bench` as a user types it, on tiny networks."""

import csv

import pytest

from floq import cli
from floq.analysis.cost import cost_of
from floq.runs.config import configure
from floq.training import bench

TINY_NETWORKS = ["--agent.batch_size=8", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"]
TINY_NETWORKS += ["--agent.block_width=8", "--agent.block_depth=1"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bench, "SQUARE", {"cpu": 64, "gpu": 64})
    monkeypatch.setattr(bench, "OPERATIONS", {"cpu": 1e6, "gpu": 1e6})
    monkeypatch.setattr(bench, "ROWS", 2000)


@pytest.mark.slow
def test_the_table_and_the_file(quick, tmp_path, capsys):
    out = tmp_path / "new" / "bench.csv"
    words = ["--ks", "3", "--fleets", "2", "--seconds", "0.01", "--eval_episodes=2", f"--out={out}"]
    assert cli.run(["bench", *words, *TINY_NETWORKS, "--precision=bf16"]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["agent"], row["k"], row["runs"]) for row in rows] == [
        ("floq", "3", "2"),
        ("fql", "", "2"),
    ]
    networks = {"batch_size": 8, "value_hidden_dims": (8,), "actor_hidden_dims": (8,)}
    networks |= {"block_width": 8, "block_depth": 1, "critic_flow_steps": 3}
    expected = cost_of(configure(agent="floq", **networks).agent, 2, 2).update_flops
    assert int(rows[0]["flops"]) == expected
    for row in rows:
        assert float(row["run_updates"]) == pytest.approx(2 * float(row["updates"]))
        assert int(row["memory"]) > 0
    assert float(rows[1]["to_fql"]) == 1
    shown = capsys.readouterr().out
    assert "one after another" in shown
    assert "bf16" in shown
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ks", "0"], "ks=0: must be greater than 0"),
        (["--agent=fql"], "critic 'scalar' has none"),
        (["--seeds", "0", "1"], "one value for each flag"),
        (["--agent.alfa=3"], "did you mean '--agent.alpha'"),
        (["--out=/dev/null/x.csv"], "choose another --out"),
        (["--out=/tmp"], "this is a folder, name a file"),
        (["--ks"], "ks: give at least 1"),
        (["--ks", "one"], "--ks"),
        (["--seconds=nan"], "seconds=nan: must be finite"),
        (["--agent.critic_flow_steps=3"], "name them with --ks"),
        (["--batch_devices=64"], "give at most as many"),
        (["--agent.encoder=impala"], "observations have no images; leave it out"),
    ],
)
def test_wrong_input_gets_one_line(words, said, capsys):
    assert cli.run(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_dry_run_measures_nothing(capsys):
    assert cli.run(["bench", "--dry_run", "--precision=bf16"]) == 0
    assert '"precision": "bf16"' in capsys.readouterr().out


def test_tries_take_as_long_as_asked():
    """However long starting takes: here ten milliseconds, and a tenth of one for each repetition."""
    slept = []
    clock = iter([0.0, 0.0101, 1.0, 1.0102, 2.0, 2.0104, 3.0, 3.0108, 4.0, 4.0116, 5.0, 5.0132, 6.0, 6.0164])
    clock = iter([*clock, 7.0, 7.0228, 8.0, 8.0356, 9.0, 9.0612])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "perf_counter", lambda: next(clock))
        found = bench.repetitions_for(slept.append, 0.2)
    assert slept == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert found == round(512 * 0.2 / 0.0612)
