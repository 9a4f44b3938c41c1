"""`floq train --match` as a user types it. Observations and actions of the demonstration have two numbers each."""

import importlib
import json
from typing import Any

import numpy as np
import pytest

from floq import cli
from floq.agent.config import AgentConfig
from floq.analysis.matching import matched
from floq.cli import train
from floq.runs.config import configure

# Two fields (2 + 2 + 50 bins + cos t) -> 10 -> 1, two distilled critics 4 -> 8 -> 1.
SMALL: dict[str, Any] = {
    "block_width": 10,
    "block_depth": 1,
    "layer_norm": False,
    "value_hidden_dims": (8,),
    "batch_size": 4,
}
PARAMETERS = 2 * (56 * 10 + 11) + 2 * (5 * 8 + 9)
WORDS = ["--agent=fql", "--match=params", *(f"--agent.{name}={value}" for name, value in SMALL.items())]


def dry_run(capsys, *words):
    """The configuration that is printed, and the note."""
    assert cli.run(["train", "--dry_run", *words]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_equal_parameters_by_hand(capsys):
    """Two members 4 -> w -> 1: 2 (6 w + 1) is 1238 at w = 103, and 1240 is wanted."""
    config, said = dry_run(capsys, *WORDS)
    assert PARAMETERS == 1240
    assert config["agent"]["value_hidden_dims"] == [103]
    assert said == "floq: --match=params: value_hidden_dims (103,), 1,238 critic parameters, floq has 1,240\n"
    settings: dict[str, Any] = SMALL | {"value_hidden_dims": (103,)}
    as_typed = configure(agent="fql", **settings).on_this_machine().to_json()
    assert config == json.loads(json.dumps(as_typed))  # and nothing else


def test_members_and_parts(capsys):
    """49 numbers for each member 4 -> 8 -> 1. Which agent lent the settings does not matter, its critic does."""
    agent = dry_run(capsys, *WORDS[1:], "--agent=floq", "--agent.critic=scalar", "--match_by=members")[0]["agent"]
    assert (agent["value_num_ensembles"], agent["value_hidden_dims"]) == (25, [8])


def test_equal_work_is_that_of_the_agents_as_configured(capsys):
    """Each with the settings of the task for that agent, and the flags; `flow_steps` is FQL's name."""
    flags = ["--preset=fast", "--agent.flow_steps=3", "--agent.critic_flow_steps=2"]
    config, said = dry_run(capsys, "--agent=fql", "--match=flops", *flags)
    floq = configure(preset="fast", actor_flow_steps=3, critic_flow_steps=2).agent
    fql = configure(agent="fql", actor_flow_steps=3).agent
    found = matched(fql, floq, 2, 2, "flops")
    assert config["agent"]["value_hidden_dims"] == list(found.critic.value_hidden_dims)
    assert config["agent"]["actor_flow_steps"] == 3
    assert "GFLOP per update, floq takes" in said
    assert "changes nothing" not in said  # the preset changes floq


def test_the_path_form_means_published_defaults_on_both_sides(capsys):
    agent = dry_run(capsys, "--agent=agents/fql.py", "--match=params")[0]["agent"]
    found = matched(AgentConfig.from_flat("scalar", "fql", {}), AgentConfig(), 2, 2, "params")
    assert (agent["value_hidden_dims"], agent["block_width"]) == (None, found.critic.block_width)
    assert found.critic.block_width != 512


def test_each_variant_is_matched_and_equal_ones_once(capsys, monkeypatch):
    calls = []

    def counting(*arguments):
        calls.append(arguments)
        return matched(*arguments)

    monkeypatch.setattr("floq.analysis.matching.matched", counting)
    train._matched.cache_clear()
    words = ["--agent.block_width", "10", "20", "--agent.alpha", "1", "3", "--seeds", "0", "1"]
    config, said = dry_run(capsys, *WORDS, *words)
    # 2 (57 * 20 + 1) + 98 = 2380, and 2 (6 w + 1) is 2378 at w = 198.
    assert config["agent"]["value_hidden_dims"] == [[103]] * 4 + [[198]] * 4
    assert config["agent"]["alpha"] == [1.0, 1.0, 3.0, 3.0] * 2
    assert len(said.splitlines()) == len(calls) == 2


def test_sizes_come_from_the_data_where_there_is_no_environment(capsys, tmp_path):
    """Three observations and two actions: 2 (57 * 10 + 11) + 2 (6 * 8 + 9) = 1276 = 2 (7 * 91 + 1)."""
    rows, ends = 60, np.arange(60) % 10 == 9
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"observations": rng.normal(size=(rows, 3)), "actions": rng.uniform(-1, 1, (rows, 2))}
    np.savez(tmp_path / "own.npz", **arrays, rewards=np.zeros(rows), terminals=ends, timeouts=np.zeros(rows))
    config, _ = dry_run(capsys, *WORDS, "--env_name=None", f"--dataset={tmp_path / 'own.npz'}")
    assert config["agent"]["value_hidden_dims"] == [91]
    config, _ = dry_run(capsys, *WORDS, "--env_name=None", "--dataset=pointmaze-medium-navigate-v0")  # not read
    assert config["agent"]["value_hidden_dims"] == [103]


def test_a_run_is_given_what_was_found(capsys, monkeypatch):
    given = {}
    module = importlib.import_module("floq.training.train")
    monkeypatch.setattr(module, "train_fleet", lambda configs, **options: given.update(options, configs=configs))
    monkeypatch.setattr("floq.utils.machine.enable_compilation_cache", lambda: None)
    assert cli.run(["train", *WORDS]) == 0
    (config,) = given["configs"]
    assert config.agent.critic.value_hidden_dims == (103,)
    assert given["notes"] == ["--match=params: value_hidden_dims (103,), 1,238 critic parameters, floq has 1,240"]


@pytest.mark.parametrize("words", [["--help"], ["--agent=fql", "--match=params", "--help"]])
def test_the_help_says_that_a_dry_run_makes_the_environment(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.run(["train", *words])
    assert exit.value.code == 0
    assert "even a dry run then makes the environment" in " ".join(capsys.readouterr().out.replace("│", " ").split())
