"""Experiment files: the groups to compare, and the budget of the comparison. They are read and checked here.

An experiment names groups of settings; a budget, in `budgets/NAME.toml` beside it, gives tasks, seeds and numbers of
steps. Settings are flags of `floq train` by their names. Later ones in this order override earlier ones: the budget's
`[settings]`, its `[critics.CRITIC]`, the experiment's `[BUDGET.settings]`, the group's own, and those of the group for
this budget. All of them override the presets of the agent. Its `[grid]` is an experiment of its own, from which these
get some of their values: every group with each combination, on other seeds.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator

from floq.actors import ACTORS
from floq.agent.config import PUBLISHED_ALIASES, is_removed, settings_type
from floq.analysis.metrics import METRICS
from floq.critics import CRITICS
from floq.runs.config import Config, configure
from floq.utils.errors import UserError, nearest
from floq.utils.files import user_path
from floq.utils.schema import Positive, Seed, convert, from_table, hints_of, read_toml
from floq.utils.untrusted import check_environment, printable

PROJECT = "sweep"
SET_BY_PLAN = {"seed", "env_name", "project_name", "run_group", "save_dir", "dataset_dir", "dataset"}
SET_BY_PLAN |= {"restore_path", "restore_epoch", "agent"}
"""Settings of a run that the plan sets."""


# --- Contents of the files ---


@functools.cache
def known_settings(critic: str, actor: str) -> dict[str, Any]:
    """Return the annotations of the settings that files may give to runs with this critic and actor, by flag name."""
    run = {name: hint for name, hint in hints_of(Config).items() if name not in SET_BY_PLAN}
    return run | {f"agent.{name}": hint for name, hint in hints_of(settings_type(critic, actor)).items()}


def _by_flag(settings: Any) -> Any:
    """Return settings by flag name. `agent.lr` without quotation marks is a table in TOML, and means the same. Raises
    ValueError for a setting that no agent has."""
    if not isinstance(settings, dict):
        return settings
    flat = dict(settings)
    inner = flat.pop("agent", {})
    flat |= {f"agent.{name}": x for name, x in inner.items()} if isinstance(inner, dict) else {"agent": inner}
    try:
        flat = {name: x for name, x in flat.items() if not is_removed(name.removeprefix("agent."), x)}
    except UserError as error:
        raise ValueError(error) from error
    known = {f"agent.{name}" for aliases in PUBLISHED_ALIASES.values() for name in aliases}
    known = known.union(*(known_settings(critic, actor) for critic in CRITICS for actor in ACTORS))
    if wrong := [name for name in flat if name not in known]:
        raise ValueError(f"{wrong[0]}: {_unknown(wrong[0], 'any agent', known)}")
    return flat


def _unknown(name: str, whose: str, known: Iterable[str]) -> str:
    if name in SET_BY_PLAN:
        return "the plan decides this; leave it out"
    return f"no such setting of {whose}{nearest(name, known)}"


def _on_one_line(name: str) -> str:
    if not name or printable(name) != name or "\n" in name:
        raise ValueError("write the name in letters that show, on one line")
    return name


def _that_ranks(score: str) -> str:
    scores = [name for name, metric in METRICS.items() if metric.more_is_better]
    if score not in scores:
        raise ValueError(f"{score!r} is none; choose {' or '.join(scores)}{nearest(score, scores)}")
    return score


EACH_ONCE = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
Settings: TypeAlias = Annotated[dict[str, Any], BeforeValidator(_by_flag)]
Tasks: TypeAlias = Annotated[tuple[str, ...], Len(1), EACH_ONCE]
Seeds: TypeAlias = Annotated[tuple[Seed, ...], Len(1), EACH_ONCE]


@dataclass(frozen=True)
class Group:
    """Runs that differ in task and seed only. With `match`, the agent is resized to the cost of the group `match_to`.
    Its scores are compared with those of the group `against`, by default the reference."""

    name: Annotated[str, AfterValidator(_on_one_line)]
    agent: str = "floq"
    critic: str | None = None
    actor: str | None = None
    settings: Settings = field(default_factory=dict)
    match: Literal["flops", "params"] | None = None
    match_to: str | None = None
    match_by: Literal["width", "members"] | None = None
    against: str | None = None

    def __post_init__(self) -> None:
        if self.match and not self.match_to:
            raise UserError("match needs match_to, the name of another group")
        if (self.match_to or self.match_by) and not self.match:
            raise UserError("match_to and match_by need match = 'flops' or 'params'")


@dataclass(frozen=True)
class Limits:
    """The part of a budget that an experiment may replace."""

    tasks: Tasks | None = None
    seeds: Seeds | None = None
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Values of settings, of which each group, or those of these names, tries every combination, with these seeds, and
    settings of all groups."""

    values: Annotated[dict[str, Annotated[list[Any], Len(1)]], BeforeValidator(_by_flag), Len(1)]
    seeds: Seeds
    settings: Settings = field(default_factory=dict)
    names: Annotated[tuple[str, ...], Len(1)] | None = None

    def groups(self, groups: Sequence[Group]) -> list[Group]:
        """Return each group with every combination. What a group is matched to is the one with the first."""
        combinations = [dict(zip(self.values, one, strict=True)) for one in itertools.product(*self.values.values())]
        named = ["".join(f", {name.removeprefix('agent.')} {x}" for name, x in one.items()) for one in combinations]
        return [
            dataclasses.replace(
                group,
                name=group.name + suffix,
                settings=group.settings | self.settings | combination,
                match_to=group.match_to and group.match_to + named[0],
                against=None,
            )
            for group in groups
            if self.names is None or group.name in self.names
            for combination, suffix in zip(combinations, named, strict=True)
        ]


@dataclass(frozen=True)
class Budget:
    """Tasks, seeds and settings that bound the cost of an experiment. `data`: by dataset, the episodes to collect if it
    is missing."""

    path: Path
    tasks: Tasks
    seeds: Seeds
    data: dict[str, Positive] = field(default_factory=dict)
    settings: Settings = field(default_factory=dict)
    critics: dict[str, Settings] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return self.path.stem

    def __post_init__(self) -> None:
        if wrong := [name for name in self.critics if name not in CRITICS]:
            raise UserError(f"[critics.{wrong[0]}]: critics are {', '.join(CRITICS)}{nearest(wrong[0], CRITICS)}")


@dataclass(frozen=True)
class Experiment:
    """A question, the groups whose comparison answers it, and the tasks and seeds of the budget it was read for."""

    path: Path
    title: str
    reference: str
    groups: tuple[Group, ...]
    budget: Budget
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    question: str = ""
    score: Annotated[str, AfterValidator(_that_ranks)] = "success"
    curves: bool = True
    is_grid: bool = False

    @property
    def name(self) -> str:
        """Name of the file without its suffix, or of its grid."""
        return f"{self.path.stem}-grid" if self.is_grid else self.path.stem

    def __post_init__(self) -> None:
        by_name = {group.name: group for group in self.groups}
        if twice := [group.name for group in self.groups if by_name[group.name] is not group]:
            raise UserError(f"two groups are called {twice[0]!r}: give each a name of its own")
        named = [("reference", self.reference)]
        named += [(f"group {g.name!r}: {key}", getattr(g, key)) for g in self.groups for key in ("against", "match_to")]
        for key, name in named:
            if name not in (None, *by_name):
                raise UserError(f"{key} = {name!r} is not a group{nearest(name, by_name)}")
            if key.endswith("match_to") and name and by_name[name].match:
                raise UserError(f"{key} = {name!r} is matched itself: name a group that is not")


def read_experiment(path: Path | str, budget: str, grid: bool = False) -> Experiment:
    """Read an experiment, or its `grid`, and the budget of that name beside it. Raises UserError if a file is missing
    or wrong; the message begins with its name."""
    path = user_path(path)
    table = read_toml(path)
    budgets = sorted(file.stem for file in (path.parent / "budgets").glob("*.toml"))
    file = path.parent / "budgets" / f"{budget}.toml"
    if budget not in budgets:
        raise UserError(f"--budget={budget}: no {file}; choose {' or '.join(budgets) or 'none is there'}")
    limits = from_table(Budget, read_toml(file), str(file), path=file)
    tables = convert(f"{path}: groups", table.get("groups", ()), tuple[dict[str, Any], ...])
    groups = tuple(_group(path, number, one, budget, budgets) for number, one in enumerate(tables, 1))
    if not groups:
        raise UserError(f"{path}: no groups to compare: write at least one [[groups]] with a name")
    places = {name: f"{path}: [{name}]" for name in budgets}
    parts = {name: convert(where, table.get(name, {}), dict[str, Any]) for name, where in places.items()}
    own = {name: from_table(Limits, part, places[name]) for name, part in parts.items()}[budget]
    tasks, seeds = own.tasks or limits.tasks, own.seeds or limits.seeds
    tried = from_table(Grid, table["grid"], f"{path}: [grid]") if "grid" in table else None
    if grid:
        if tried is None:
            raise UserError(f"{path}: no [grid], whose combinations --grid would try")
        known = [group.name for group in groups]
        if unknown := [name for name in tried.names or () if name not in known]:
            raise UserError(f"{path}: [grid]: {unknown[0]!r} is not a group{nearest(unknown[0], known)}")
        tried_names = known if tried.names is None else tried.names
        if lacking := [g for g in groups if g.name in tried_names and g.match_to not in (None, *tried_names)]:
            raise UserError(
                f"{path}: [grid]: names lacks {lacking[0].match_to!r}, to which {lacking[0].name!r} is matched"
            )
        groups, seeds = tuple(tried.groups(groups)), tried.seeds
        table = table | {"reference": groups[0].name}
    for task in tasks:
        check_environment(task, path if own.tasks else file)
    given = {
        "is_grid": grid,
        "groups": groups,
        "budget": limits,
        "tasks": tasks,
        "seeds": seeds,
        "settings": own.settings,
    }
    return from_table(Experiment, table, str(path), ("groups", "grid", *budgets), path=path, **given)


def _group(path: Path, number: int, table: Mapping[str, Any], budget: str, budgets: Sequence[str]) -> Group:
    """Read a group, with its settings for this budget."""
    where = f"{path}: group {table['name']!r}" if isinstance(table.get("name"), str) else f"{path}: group {number}"
    own = {name: convert(f"{where}: {name}", table.get(name, {}), Settings) for name in ("settings", *budgets)}
    return from_table(Group, {**table, "settings": own["settings"] | own[budget]}, where, budgets)


# --- Configurations ---


def resolve(experiment: Experiment, group: Group, env_name: str) -> Config:
    """Return the configuration of a group's runs on a task, before any matching; seed and folders are the defaults.
    Settings of the budget, or of the experiment for the budget, that this agent does not have are left out. Raises
    UserError if the group has a setting that its agent lacks, or a value has the wrong type or is out of range."""
    budget, whose = experiment.budget, f"{experiment.path}: group {group.name!r}"
    parts = {"critic": group.critic, "actor": group.actor}
    try:
        agent = configure(env_name, group.agent, **parts).agent
    except UserError as error:
        raise UserError(f"{whose}: {error}") from error
    critic = agent.critic_name
    types_of = known_settings(critic, agent.actor_name)
    aliases = {f"agent.{old}": f"agent.{new}" for old, new in PUBLISHED_ALIASES.get(critic, {}).items()}
    layers = {
        f"{budget.path}: settings": budget.settings,
        f"{budget.path}: [critics.{critic}]": budget.critics.get(critic, {}),
        f"{experiment.path}: [{budget.name}.settings]": experiment.settings,
        whose: group.settings,
    }
    flat = {"project_name": PROJECT, "run_group": budget.name}
    for where, settings in layers.items():
        for written, value in settings.items():
            name = aliases.get(written, written)
            if name in types_of:
                flat[name.removeprefix("agent.")] = convert(f"{where}: {written}", value, types_of[name])
            elif where == whose:
                raise UserError(f"{whose}: {written}: {_unknown(written, f'agent {group.agent!r}', types_of)}")
    if flat.get("eval_interval") == 0:
        raise UserError(f"{whose}: eval_interval = 0: an experiment is judged by its evaluations, give an interval")
    try:
        return configure(env_name, group.agent, **parts, **flat)
    except UserError as error:
        raise UserError(f"{whose}, on {env_name}: {error}") from error
