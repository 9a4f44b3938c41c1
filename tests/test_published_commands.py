"""Every command line of the published README works after `floq train`, and means what it meant there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from floq import cli
from floq.agent.config import AGENTS, AgentConfig
from floq.cli.train import parse_train
from floq.runs.config import FAMILIES, configure, family

COMMANDS = (Path(__file__).parent / "published_commands.txt").read_text().splitlines()


def flags_of(line: str) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in shlex.split(line))


def test_they_are_all_here():
    assert len(COMMANDS) == 88
    assert {flags_of(line)["agent"] for line in COMMANDS} == {f"agents/{name}.py" for name in AGENTS}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_published_command_resolves(line):
    """What it says holds, and all else is the published default of its agent: no family preset steps in."""
    (config,) = parse_train([*shlex.split(line), "--dry_run"]).configs
    values, flags = config.to_json(), flags_of(line)
    name = re.fullmatch(r"agents/(\w+)\.py", flags.pop("agent")).group(1)  # type: ignore[union-attr]
    default = configure(config.env_name, f"agents/{name}.py").to_json()
    default["agent"] |= {"critic": AGENTS[name][0], "actor": AGENTS[name][1]}
    for flag, text in flags.items():
        where, key = (values["agent"], flag[6:]) if flag.startswith("agent.") else (values, flag)
        expected = {"True": True, "False": False}.get(text, text)
        assert str(where[key]) == str(expected) or where[key] == float(text)
        if flag.startswith("agent."):
            default["agent"][key] = where[key]
        else:
            default[key] = where[key]
    assert values == default


def test_the_published_defaults():
    """Of the three files, from METHOD: what a path form without flags means."""
    shared = {"lr": 3e-4, "batch_size": 256, "discount": 0.99, "tau": 0.005, "q_agg": "mean", "alpha": 10.0}
    shared |= {"actor_flow_steps": 10, "layer_norm": True, "actor_layer_norm": False, "n_step": 1}
    shared |= {"actor_hidden_dims": (512,) * 4, "normalize_q_loss": False}
    blocks = {"block_width": 512, "block_depth": 4, "num_transformations": 2, "use_resnets": False}
    listed = {"value_hidden_dims": (512,) * 4}
    own = {
        "floq": {"critic_flow_steps": 8, "noise_samples": 8, "noise_coverage": 0.1, "num_bins": 51, "sigma": 16.0}
        | {"flow_num_ensembles": 2, "distill_num_ensembles": 2, "time": "cos", "noise_scheme": "iid"}
        | {"reward_offset": 0.01, **blocks, **listed},
        "fql": {"value_num_ensembles": 2, "value_hidden_dims": None, **blocks},
        "fql_iqn": {"value_num_ensembles": 2, **listed, "num_tau_samples": 8, "kappa": 1.0, "quantile_embed_dim": 64},
    }
    for name in AGENTS:
        agent: AgentConfig = configure("scene-play-singletask-v0", f"agents/{name}.py").agent
        flat = agent.flat() | ({"time": agent.critic.time} if name == "floq" else {})
        assert {key: flat[key] for key in shared | own[name]} == shared | own[name], name


def test_a_lost_space_is_mended():
    """Eleven published lines lose the space before a flag at a continuation, or escape it."""
    for line in COMMANDS:
        *words, last = shlex.split(line)
        for broken in (f"{words[-1]}{last}", f"{words[-1]} {last}"):
            with pytest.raises(cli.UserError, match=re.escape(f"write {words[-1]} {last}")):
                parse_train([*words[:-1], broken])


FLOQ_TABLE = {
    "antmaze-large": {"alpha": 10},
    "antmaze-giant": {"alpha": 10, "discount": 0.995, "q_agg": "min", "batch_size": 512},
    "humanoidmaze-medium": {"alpha": 30, "discount": 0.995},
    "humanoidmaze-large": {"alpha": 20, "discount": 0.995, "batch_size": 512},
    "antsoccer-arena": {"alpha": 10, "discount": 0.995},
    "cube-single": {"alpha": 300, "block_depth": 2},
    "cube-double": {"alpha": 300, "block_depth": 2},
    "scene": {"alpha": 300},
    "puzzle-3x3": {"alpha": 1000},
    "puzzle-4x4": {"alpha": 1000},
}
FQL_TABLE = {
    "antmaze-large": {"alpha": 10, "q_agg": "min"},
    "antmaze-giant": {"alpha": 10, "q_agg": "min", "discount": 0.995},
    "humanoidmaze-medium": {"alpha": 30, "discount": 0.995},
    "humanoidmaze-large": {"alpha": 30, "discount": 0.995, "batch_size": 512},
    "antsoccer-arena": {"alpha": 10, "discount": 0.995},
    **{name: {"alpha": 300} for name in ("cube-single", "cube-double", "scene")},
    **{name: {"alpha": 1000} for name in ("puzzle-3x3", "puzzle-4x4")},
}


@pytest.mark.parametrize(("agent", "table"), [("floq", FLOQ_TABLE), ("fql", FQL_TABLE)])
def test_the_family_table_is_the_published_one(agent, table):
    """METHOD's table once more, as literals: what differs from the defaults, and nothing else does."""
    visual = {name for name in FAMILIES[agent] if name.startswith("visual-")}
    assert set(FAMILIES[agent]) == set(table) | {"pointmaze-medium"} | visual
    for name, settings in table.items():
        kind = "navigate" if "maze" in name or "soccer" in name else "play"
        env_name = f"{name}-{kind}-singletask-task4-v0"
        plain = configure(env_name, f"agents/{agent}.py").to_json()
        assert configure(env_name, agent).to_json() == plain | {"agent": plain["agent"] | settings}


@pytest.mark.parametrize("agent", [pytest.param("floq", marks=pytest.mark.slow), None])
def test_floqs_preset_is_that_of_its_published_commands(agent):
    """`--env_name` alone, or with `--agent=floq`, resolves to what the published offline command spells out."""
    seen = set()
    for line in COMMANDS:
        flags = flags_of(line)
        if flags["agent"] == "agents/floq.py" and "online_steps" not in flags:
            best = bool({"critic_flow_steps", "noise_coverage"} & {flag.removeprefix("agent.") for flag in flags})
            if agent is None and (family(flags["env_name"]), best) in seen:
                continue  # one command a family; all of them in the slow run
            argv = [f"--env_name={flags['env_name']}", *([f"--agent={agent}"] if agent else [])]
            ours = parse_train([*argv, *(["--preset=best"] if best else [])]).configs
            assert ours == parse_train(shlex.split(line)).configs
            seen.add((family(flags["env_name"]), best))
    assert len(seen) == 12  # ten families, two of them also with their best settings


def test_a_dry_run_prints_one_json_object(capsys):
    assert cli.run(["train", *shlex.split(COMMANDS[0]), "--dry_run"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["agent"]["block_depth"] == 2
    assert captured.err == ""
