"""Baselines of equal size or equal work, against counts made by hand and against their neighbours."""

import dataclasses
from dataclasses import dataclass

import pytest

from floq.agent.config import AgentConfig
from floq.analysis.cost import cost_of, critic_parameters
from floq.analysis.matching import count, matched
from floq.critics import CRITICS, ScalarCritic
from floq.utils.errors import UserError

OBS, ACT = 3, 2
SMALL = {"batch_size": 4, "actor_hidden_dims": (6,), "layer_norm": False}
# Two fields (3 + 2 + 50 bins + cos t) -> 10 -> 1, two distilled critics 5 -> 8 -> 1.
REFERENCE = AgentConfig.from_flat(
    "floq", "fql", SMALL | {"block_width": 10, "block_depth": 1, "value_hidden_dims": (8,), "critic_flow_steps": 2}
)
PARAMETERS = 2 * (57 * 10 + 11) + 2 * (6 * 8 + 9)
assert PARAMETERS == 1276


def agent(critic, **settings):
    return AgentConfig.from_flat(critic, "fql", SMALL | settings)


BY_HAND = [
    # Two members 5 -> w -> 1: 2 (7 w + 1).
    ("scalar", {"value_hidden_dims": (16,)}, "width", "value_hidden_dims", (91,), 1276),
    # 5 -> w -> w -> 1: w^2 + 8 w + 1; w = 31 comes to 1210.
    ("scalar", {"value_hidden_dims": (16, 16), "value_num_ensembles": 1}, "width", "value_hidden_dims", (32, 32), 1281),
    # 5 -> w -> w / 2 -> 1; (43, 22) comes to 1249.
    ("scalar", {"value_hidden_dims": (20, 10), "value_num_ensembles": 1}, "width", "value_hidden_dims", (44, 22), 1277),
    # 5 -> w, twice w -> w, w -> 1: 2 w^2 + 9 w + 1; w = 24 comes to 1369. In blocks, or plain.
    ("scalar", {"use_resnets": True, "block_depth": 1, "value_num_ensembles": 1}, "width", "block_width", 23, 1266),
    ("scalar", {"block_depth": 3, "value_num_ensembles": 1}, "width", "block_width", 23, 1266),
    # 57 numbers for each member 5 -> 8 -> 1.
    ("scalar", {"value_hidden_dims": (8,)}, "members", "value_num_ensembles", 22, 1254),
    # Two members with 4 cosines of the quantile, 9 -> w -> 1: 2 (11 w + 1).
    ("quantile", {"value_hidden_dims": (16,), "quantile_embed_dim": 4}, "width", "value_hidden_dims", (58,), 1278),
    # The flow keeps its distilled critics.
    ("floq", {"value_hidden_dims": (8,), "block_width": 77, "block_depth": 1}, "width", "block_width", 10, 1276),
    ("floq", {"value_hidden_dims": (8,), "block_width": 4, "block_depth": 1}, "members", "flow_num_ensembles", 5, 1279),
]


@pytest.mark.parametrize(("critic", "settings", "by", "setting", "value", "parameters"), BY_HAND)
def test_equal_parameters_by_hand(critic, settings, by, setting, value, parameters):
    baseline = agent(critic, **settings)
    found = matched(baseline, REFERENCE, OBS, ACT, "params", by)
    changed = dataclasses.replace(baseline.critic, **{setting: value})
    assert found == dataclasses.replace(baseline, critic=changed)  # and nothing else
    assert critic_parameters(REFERENCE, OBS, ACT) == PARAMETERS
    assert critic_parameters(found, OBS, ACT) == parameters


@pytest.mark.parametrize(
    ("critic", "by", "setting"),
    [
        ("scalar", "members", "value_num_ensembles"),
        ("quantile", "width", "value_hidden_dims"),
    ],
)
def test_equal_work_is_nearer_than_with_one_more_or_one_less(critic, by, setting):
    found = matched(agent(critic, value_hidden_dims=(32, 32)), REFERENCE, OBS, ACT, "flops", by)
    value, goal = getattr(found.critic, setting), cost_of(REFERENCE, OBS, ACT).update_flops

    def distance(step: int) -> int:
        changed = tuple(width + step for width in value) if by == "width" else value + step
        critic = dataclasses.replace(found.critic, **{setting: changed})
        return abs(cost_of(dataclasses.replace(found, critic=critic), OBS, ACT).update_flops - goal)

    assert distance(0) < min(distance(-1), distance(1))
    assert distance(0) < 0.05 * goal


def test_few_programs_are_traced(monkeypatch):
    """At published sizes: six widths, or numbers of members, and the reference. Operations grow as parameters do, but
    each count of them takes a good part of a second."""
    counted = []

    def counting(config, *sizes_and_what):
        counted.append(config)
        return count(config, *sizes_and_what)

    monkeypatch.setattr("floq.analysis.matching.count", counting)
    for by in ("width", "members"):
        counted.clear()
        matched(AgentConfig.from_flat("scalar", "fql", {}), AgentConfig(), 37, 5, "params", by)
        assert len(set(counted)) <= 7


def test_the_fused_kernel_is_matched_as_what_it_computes(monkeypatch):
    monkeypatch.setattr("floq.networks.kernels.check_settings", lambda **settings: None)
    fused = dataclasses.replace(REFERENCE, critic=dataclasses.replace(REFERENCE.critic, integration="fused"))
    assert count(fused, OBS, ACT, "flops") == cost_of(REFERENCE, OBS, ACT).update_flops


def test_what_cannot_be_matched(monkeypatch):
    too_many = agent("scalar", value_hidden_dims=(8,), value_num_ensembles=1000)
    with pytest.raises(UserError, match=r"even value_hidden_dims=\(1,\) comes to 8,000 critic parameters, and 1,276"):
        matched(too_many, REFERENCE, OBS, ACT, "params")
    with pytest.raises(UserError, match=r"even value_num_ensembles=1 comes to .* operations per update"):
        matched(agent("scalar", value_hidden_dims=(999, 999)), REFERENCE, OBS, ACT, "flops", "members")

    @dataclass(frozen=True)
    class Table:
        pass

    monkeypatch.setitem(CRITICS, "table", (Table, ScalarCritic))
    with pytest.raises(UserError, match="critic 'table' cannot be scaled by width"):
        matched(AgentConfig(critic=Table()), REFERENCE, OBS, ACT, "params")
