"""`floq export`: policies act as the agent does, of every pair, in every format, here and elsewhere; the command."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exporting import PAIRS, make_agent, make_exportable, written
from helpers import ACT, ACTOR, FLOQ, OBS, agent_config

from floq import cli
from floq.agent.agent import Agent
from floq.export import export_run
from floq.export.exported import PolicyError, load_policy
from floq.export.formats import load_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy
from floq.utils.errors import Failed, UserError

# --- the same actions ---


@pytest.mark.parametrize("pair", PAIRS)
def test_numpy_acts_as_the_agent(pair, tmp_path):
    agent = make_agent(*PAIRS[pair])
    policy = written(tmp_path, agent)
    expected = export_run.samples(agent.policy, policy.traced, count=20)
    assert len({tuple(sample.action) for sample in expected}) > 10
    agreement = export_run.compare_with_agent(agent.policy, load_exported("numpy", tmp_path), expected)
    assert agreement == export_run.Agreement(agreement.largest, ties=0, count=20)
    assert agreement.largest < 2e-6


@pytest.mark.parametrize("pair", ["gaussian", "deterministic"])
def test_exploring_is_exported_on_request(pair, tmp_path):
    agent = make_agent(*PAIRS[pair])
    assert not make_exportable(agent).program.noise
    policy = written(tmp_path, agent, explore=True)
    assert [noise.distribution for noise in policy.program.noise] == ["normal"]
    expected = export_run.samples(agent.policy, policy.traced, explore=True, count=10)
    assert export_run.compare_with_agent(agent.policy, load_exported("numpy", tmp_path), expected).largest < 2e-6


@pytest.mark.parametrize("form", ["onnx", "stablehlo"])
@pytest.mark.parametrize("pair", ["fql", "best, integrated"])
def test_other_formats_act_as_the_agent(form, pair, tmp_path):
    pytest.importorskip({"onnx": "onnxruntime", "stablehlo": "flatbuffers"}[form], reason="needs floq[export]")
    agent = make_agent(*PAIRS[pair])
    policy = written(tmp_path, agent, form)
    expected = export_run.samples(agent.policy, policy.traced, count=10)
    assert export_run.compare_with_agent(agent.policy, load_exported(form, tmp_path), expected).largest < 2e-6
    (tmp_path / "policy.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(PolicyError, match="no program"):
        load_policy(tmp_path)


def test_a_wrong_action_is_no_tie(tmp_path):
    """Of candidates that the critic likes equally well any may be taken; anything else that differs is refused."""
    agent = make_agent(*PAIRS["best, scalar"])
    policy = written(tmp_path, agent)
    expected = export_run.samples(agent.policy, policy.traced, count=3)
    acting = load_exported("numpy", tmp_path)
    with pytest.raises(Failed, match=r"is 0\.5 from the agent"):
        export_run.compare_with_agent(agent.policy, lambda obs, noise: acting(obs, noise) + 0.5, expected)
    silent = jax.tree.map(jnp.zeros_like, agent.params.critic)
    indifferent = dataclasses.replace(agent.policy, critic=silent)
    assert export_run.compare_with_agent(indifferent, lambda obs, noise: acting(obs, noise) + 0.5, expected).ties == 3


def test_what_is_not_needed_to_act_stays_behind(tmp_path):
    """No critic, no behaviour flow; and an observation that is not normalised is not divided by 1."""
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(FLOQ, ACTOR))
    program = translate(TracedPolicy.of(agent.policy, agent.obs_spec)).tensors
    weights = {name for name in program if not name.startswith("constant.")}
    assert all(name.startswith("actor.one_step.") for name in weights)
    assert len([name for name in weights if name.endswith("weight")]) == 3


# --- the command ---


def export(run_dir, *flags):
    return cli.run(["export", str(run_dir), *map(str, flags)])


def test_the_command(run_dir, tmp_path, capsys):
    """It says what it wrote, keeps what is there, and replaces only what it wrote itself."""
    out = tmp_path / "to" / "policy"
    assert export(run_dir, "--out", out) == 0
    said = capsys.readouterr().out
    assert "for 200 observations" in said
    assert "ms here, median of 300" in said
    assert sorted(file.name for file in out.iterdir()) == [
        *("README.txt", "policy.json", "policy.safetensors", "read_policy.py")
    ]
    policy = load_policy(out)
    assert {file.stat().st_mode & 0o444 for file in out.iterdir()} == {0o444}
    assert policy.about["task"] == "pointmaze-medium-navigate-singletask-v0"
    assert policy.about["step"] == 6
    assert policy.act(np.zeros(policy.observation_size)).shape == (policy.action_size,)

    assert export(run_dir, "--out", out) == 2
    assert "exists: give another --out, or --overwrite" in capsys.readouterr().err
    assert export(run_dir, "--out", out, "--step=4", "--overwrite") == 0
    assert load_policy(out).about["step"] == 4
    (out / "notes.txt").write_text("mine")
    assert export(run_dir, "--out", out, "--overwrite") == 2
    assert "was not written by floq export" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in out.parent.iterdir()] == ["policy"]


def test_formats_go_to_folders_of_their_own(run_dir, tmp_path):
    pytest.importorskip("onnx", reason="needs floq[export]")
    run = shutil.copytree(run_dir, tmp_path / run_dir.name)  # other tests share the run
    assert export(run, "--format=onnx") == 0
    assert sorted(file.name for file in (run / "export-onnx").iterdir()) == [
        "README.txt",
        "policy.json",
        "policy.onnx",
    ]


@pytest.mark.parametrize("flags", [["--format=onnx"], ["--format=stablehlo"]])
def test_a_missing_package_is_named(run_dir, flags, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    assert export(run_dir, *flags, "--out", tmp_path / "policy") == 2
    assert "pip install 'floq[export]'" in capsys.readouterr().err
    assert not (tmp_path / "policy").exists()


def test_wrong_commands(run_dir, tmp_path, capsys):
    for flags, says in (
        ([tmp_path], "is not a run folder"),
        ([run_dir, "--step=5"], "has no checkpoint of step 5: choose one of"),
        ([run_dir, "--format=torch"], "--format"),
        ([run_dir, "--tolerance=2"], "tolerance=2.0: must be at least 0 and less than 1"),
        ([run_dir, "--out", "/proc/nowhere/policy"], "cannot write to"),
        ([], "missing from floq export"),
    ):
        assert cli.run(["export", *map(str, flags)]) == 2
        error = capsys.readouterr().err
        assert says in error.lower()
        assert error.count("\n") == 1


def test_nothing_is_written_unless_the_actions_agree(run_dir, tmp_path, monkeypatch, capsys):
    """Neither a folder nor a part of one; and what was there before is there again."""
    out = tmp_path / "policy"
    assert export(run_dir, "--out", out, "--step=4") == 0
    wrong = lambda obs, noise: np.full(2, 0.123, np.float32)  # noqa: E731
    monkeypatch.setattr(export_run, "load_exported", lambda form, folder: wrong)
    assert export(run_dir, "--out", out, "--overwrite") == 1
    assert "give --tolerance if that is near enough" in capsys.readouterr().err
    assert load_policy(out).about["step"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path):
    """The old folder is put back by the next attempt, whatever comes of that."""
    (tmp_path / ".policy.old").mkdir()
    (tmp_path / ".policy.old" / "kept").write_text("")
    with pytest.raises(RuntimeError), export_run._appearing(tmp_path / "policy"):
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["policy", "kept"]


def test_a_diverged_policy_is_refused(run_dir, tmp_path, monkeypatch):
    saved = export_run.checkpoint.load(run_dir / "checkpoints")
    broken = dataclasses.replace(saved.agent, params=jax.tree.map(lambda x: x * jnp.nan, saved.agent.params))
    monkeypatch.setattr(export_run.checkpoint, "load", lambda *_: saved._replace(agent=broken))
    with pytest.raises(UserError, match="diverged before step 6"):
        export_run.export_run(export_run.ExportOptions(str(run_dir), out=str(tmp_path / "policy")))


# --- elsewhere ---

ELSEWHERE = {
    "numpy": (["numpy"], "from read_policy import load_policy\nact = lambda o, n: load_policy('.').act(o, noise=n)"),
    "onnx": (
        ["onnxruntime"],
        "import onnxruntime\ns = onnxruntime.InferenceSession('policy.onnx')\n"
        "act = lambda o, n: s.run(None, {'observation': o} | {f'noise.{i}': x for i, x in enumerate(n)})[0]",
    ),
    "stablehlo": (
        ["jax", "flatbuffers"],
        "import pathlib, jax.export\n"
        "p = jax.export.deserialize(bytearray(pathlib.Path('policy.stablehlo').read_bytes())).call\n"
        "act = lambda o, n: p(o, *n)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("form", ELSEWHERE)
def test_a_bare_environment_acts_the_same(form, tmp_path):
    """A virtual environment with nothing but the packages that the format needs; it is installed from the index."""
    packages, loading = ELSEWHERE[form]
    agent = make_agent(*PAIRS["best, integrated"])
    folder = tmp_path / "policy"
    folder.mkdir()
    policy = written(folder, agent, form)
    expected = export_run.samples(agent.policy, policy.traced, count=20)
    np.savez(
        tmp_path / "given.npz",
        obs=[s.obs for s in expected],
        **{f"noise{i}": [s.noise[i] for s in expected] for i in range(len(policy.program.noise))},
    )
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = Path(__file__).parents[1] / "constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, *packages], check=True)
    code = (
        f"import json, numpy as np, importlib.util\n{loading}\ng = np.load('../given.npz', allow_pickle=False)\n"
        "assert importlib.util.find_spec('floq') is None and importlib.util.find_spec('equinox') is None\n"
        "print(json.dumps([np.asarray(act(o, [g[f'noise{k}'][i] for k in range(len(g) - 1)])).tolist() "
        "for i, o in enumerate(g['obs'])]))"
    )
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, check=True, env={})
    actions = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(actions, [sample.action for sample in expected], rtol=0, atol=export_run.TOLERANCE)
