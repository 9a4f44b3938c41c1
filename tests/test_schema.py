"""Bounds of settings stand beside their fields, and hold wherever a value comes from."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Len

from floq import cli
from floq.agent.config import AgentConfig, Hypers
from floq.critics import CRITICS, FloqConfig, ScalarCritic
from floq.runs.config import Config, configure
from floq.utils.errors import UserError
from floq.utils.schema import Mark, Settings, convert, from_table, marked


@pytest.mark.parametrize(
    ("value", "hint", "stored"),
    [
        (3, float, 3.0),
        ([8, 4], tuple[int, ...], (8, 4)),
        (None, Annotated[int, Gt(0)] | None, None),
        (1, Annotated[int, Gt(0)] | None, 1),
        (1.0, Annotated[float, Interval(ge=0, le=1)], 1.0),
        ({"a": 1}, dict[str, float], {"a": 1.0}),
    ],
)
def test_values_are_stored_as_annotated(value, hint, stored):
    found = convert("x", value, hint)
    assert found == stored
    assert type(found) is type(stored)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "x = True: must be a whole number"),
        (1.0, int, "x = 1.0: must be a whole number"),
        (2, bool, "x = 2: must be true or false"),
        ("1", float, "x = '1': must be a number"),
        (float("nan"), float, "x=nan: must be finite"),
        (float("inf"), Annotated[float, Gt(0)], "x=inf: must be finite"),
        (3, str | None, "x = 3: must be a text"),
        (3, dict[str, int], "x = 3: must be a table"),
        ([8], str, "x = [8]: must be a text"),
        ("c", Literal["a", "b"], "x = 'c': must be one of 'a', 'b'"),
        (True, Annotated[Literal[0, 1], Mark.TRACED], "x = True: must be one of 0, 1"),
        (0, Annotated[int, Gt(0), Le(5)], "x=0: must be greater than 0"),
        (6, Annotated[int, Gt(0), Le(5)], "x=6: must be at most 5"),
        (2, Annotated[int, Ge(3)] | None, "x=2: must be at least 3"),
        (0.5, Annotated[float, Gt(0.5)], "x=0.5: must be greater than 0.5"),
        (1.0, Annotated[float, Interval(ge=0, lt=1), Mark.TRACED], "x=1.0: must be at least 0 and less than 1"),
        (-1, Annotated[float, Interval(ge=0, le=1)], "x=-1: must be between 0 and 1"),
        ([8, 0], tuple[Annotated[int, Gt(0)], ...], "x=0: must be greater than 0"),
        ([], Annotated[tuple[int, ...], Len(1, 2)], "x: give at least 1"),
        ([1, 2, 3], Annotated[tuple[int, ...], Len(1, 2)], "x: give at most 2"),
        ({"a": "b"}, dict[str, float], "x.a = 'b': must be a number"),
    ],
)
def test_wrong_values_get_one_line(value, hint, message):
    with pytest.raises(UserError) as caught:
        convert("x", value, hint)
    assert str(caught.value) == message


def test_tables_of_files():
    @dataclass(frozen=True)
    class Table:
        path: str
        name: str
        size: Annotated[int, Gt(0)] = 1

    assert from_table(Table, {"name": "a", "else": 3}, "f", ["else"], path="p") == Table("p", "a", 1)
    for table, message in (
        ({"name": "a", "siez": 3}, "f: unknown key 'siez'; known are name, size; did you mean 'size'?"),
        ({"name": "a", "path": "q"}, "f: unknown key 'path'; known are name, size"),
        ({"size": 3}, "f: name is missing"),
        ({"name": "a", "size": 0}, "f: size=0: must be greater than 0"),
    ):
        with pytest.raises(UserError) as caught:
            from_table(Table, table, "f", path="p")
        assert str(caught.value) == message


def test_settings_are_checked_when_they_are_made_and_when_they_are_replaced():
    assert FloqConfig(value_hidden_dims=[8, 8]).value_hidden_dims == (8, 8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="noise_samples=0: must be greater than 0"):
        FloqConfig(noise_samples=0)
    with pytest.raises(UserError, match="sigma=nan: must be finite"):
        dataclasses.replace(FloqConfig(), sigma=float("nan"))
    with pytest.raises(UserError, match="num_envs=8192: must be at most 4096"):
        Config(num_envs=8192)


def test_a_whole_number_for_a_number_has_one_digest():
    assert configure(lr=1, alpha=3).digest() == configure(lr=1.0, alpha=3.0).digest()
    assert json.dumps(configure(alpha=3).to_json()["agent"]["alpha"]) == "3.0"


def test_digests_stay_as_they_were():
    """Folders of runs and the plan of a sweep are named by them."""
    assert configure("cube-double-play-singletask-v0", alpha=300.0).digest() == "5bb55a9d"


# --- A critic that somebody adds ---


@dataclass(frozen=True)
class PlainConfig:
    """Settings without a base class, bounded beside their fields."""

    layer_norm: bool = True
    value_hidden_dims: tuple[int, ...] = (8,)
    value_num_ensembles: int = 2
    use_resnets: bool = False
    smallest_scale: Annotated[float, Gt(0), Le(1)] = 0.01
    """The scale is never below this."""


@dataclass(frozen=True)
class DerivedConfig(PlainConfig, Settings):
    """The same, checked as soon as it is made."""


@pytest.fixture
def added(monkeypatch):
    monkeypatch.setitem(CRITICS, "plain", (PlainConfig, ScalarCritic))


def test_bounds_of_a_new_critic_hold_in_python_in_json_and_on_the_command_line(added, capsys):
    message = "smallest_scale=-1.0: must be greater than 0"
    with pytest.raises(UserError, match=message):
        AgentConfig(critic=PlainConfig(smallest_scale=-1.0))
    with pytest.raises(UserError, match=message):
        DerivedConfig(smallest_scale=-1.0)
    with pytest.raises(UserError, match=message):
        configure(critic="plain", smallest_scale=-1.0)
    values = configure(critic="plain").to_json()
    with pytest.raises(UserError, match=message):
        Config.from_json(values | {"agent": values["agent"] | {"smallest_scale": -1.0}})
    assert cli.run(["train", "--agent.critic=plain", "--agent.smallest_scale=-1", "--dry_run"]) == 2
    assert capsys.readouterr().err == f"floq: {message}\n"
    assert cli.run(["train", "--agent.critic=plain", "--agent.smallest_scale=1", "--dry_run"]) == 0
    assert json.loads(capsys.readouterr().out)["agent"]["smallest_scale"] == 1.0
    assert AgentConfig(critic=PlainConfig(smallest_scale=1)).compiled().critic.smallest_scale == 1.0


def test_a_setting_that_no_fleet_can_trace_is_an_error():
    """Otherwise the program would be compiled with its default, whatever the user said."""

    @dataclass(frozen=True)
    class Traced(PlainConfig):
        smallest_scale: Annotated[float, Mark.TRACED] = 0.01

    with pytest.raises(UserError, match=r"Traced marks smallest_scale as traced, and no fleet can vary that"):
        AgentConfig(critic=Traced(smallest_scale=0.5))


def test_what_a_fleet_varies_is_what_its_program_does_not_know():
    for critic in CRITICS.values():
        assert {*marked(AgentConfig, Mark.TRACED), *marked(critic[0], Mark.TRACED)} <= set(Hypers._fields)
    moved = AgentConfig(lr=0.1, critic=FloqConfig(noise_coverage=0.5))
    assert moved.compiled() == AgentConfig()
    assert float(Hypers.of(moved).noise_coverage) == 0.5
