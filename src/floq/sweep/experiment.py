"""Experiment files: the groups to compare, and the budget of the comparison. They are read and checked here.

An experiment names groups of settings; a budget, in `budgets/NAME.toml` beside it, gives tasks, seeds and numbers of
steps. Settings are flags of `floq train` by their names. Later ones in this order override earlier ones: the budget's
`[settings]`, its `[critics.CRITIC]`, its `[tasks_settings.FAMILY]`, the experiment's `[BUDGET.settings]`, the group's
own, and those of the group for this budget. All of them override the presets of the agent.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_type_hints

from floq.actors import ACTORS
from floq.agent.config import PUBLISHED_ALIASES, settings_type
from floq.analysis.metrics import METRICS
from floq.critics import CRITICS
from floq.runs.config import Config
from floq.runs.presets import configure, family
from floq.utils.errors import UserError, nearest
from floq.utils.files import user_path
from floq.utils.schema import SEEDS, check_keys, convert_to_type, list_of, read_toml, value_of
from floq.utils.untrusted import check_environment, printable

PROJECT = "sweep"
SET_BY_PLAN = {"seed", "env_name", "project_name", "run_group", "save_dir", "dataset_dir", "dataset"}
SET_BY_PLAN |= {"restore_path", "restore_epoch", "agent"}
"""Settings of a run that the plan sets."""

Settings = dict[str, Any]


class Layer(NamedTuple):
    """Settings and their source, for error messages."""

    where: str
    settings: Settings


@dataclass(frozen=True)
class Group:
    """Runs that differ in task and seed only. With `match`, the agent is resized to the cost of the group `match_to`.
    Its scores are compared with those of the group `against`, by default the reference."""

    name: str
    agent: str = "floq"
    critic: str | None = None
    actor: str | None = None
    settings: Settings = field(default_factory=dict)
    match: Literal["flops", "params"] | None = None
    match_to: str | None = None
    match_by: Literal["width", "members"] | None = None
    against: str | None = None


@dataclass(frozen=True)
class Budget:
    """Tasks, seeds and settings that bound the cost of an experiment. `data`: by dataset, the episodes to collect if it
    is missing."""

    path: Path
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    data: dict[str, int]
    settings: Settings
    critics: dict[str, Settings]
    tasks_settings: dict[str, Settings]

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return self.path.stem


@dataclass(frozen=True)
class Experiment:
    """A question, the groups whose comparison answers it, and the tasks and seeds of the budget it was read for."""

    path: Path
    title: str
    question: str
    reference: str
    score: Literal["success", "return"]
    curves: bool
    groups: tuple[Group, ...]
    budget: Budget
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Settings

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return self.path.stem


def read_experiment(path: Path | str, budget: str) -> Experiment:
    """Read an experiment and the budget of that name beside it.

    Raises:
        UserError: a file is missing or wrong; the message begins with its name.
    """
    path = user_path(path)
    table = read_toml(path)
    known_budgets = sorted(file.stem for file in (path.parent / "budgets").glob("*.toml"))
    if budget not in known_budgets:
        there = " or ".join(known_budgets) or "none is there"
        raise UserError(f"--budget={budget}: no {path.parent / 'budgets' / budget}.toml; choose {there}")
    limits = read_budget(path.parent / "budgets" / f"{budget}.toml")
    check_keys(path, table, ["title", "question", "reference", "score", "curves", "groups", *known_budgets])
    tables = list_of(path, "groups", table.get("groups", []), dict)
    groups = tuple(_group(path, number, one, budget, known_budgets) for number, one in enumerate(tables, 1))
    if not groups:
        raise UserError(f"{path}: no groups to compare: write at least one [[groups]] with a name")
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{path}: two groups are called {twice[0]!r}: give each a name of its own")
    reference = value_of(path, table, "reference", str)
    if reference not in names:
        raise UserError(f"{path}: reference = {reference!r} is not a group{nearest(reference, names)}")
    score = value_of(path, table, "score", str, "success")
    scores = [name for name, metric in METRICS.items() if metric.more_is_better]
    if score not in scores:
        raise UserError(f"{path}: score = {score!r}: choose {' or '.join(scores)}{nearest(score, scores)}")
    for group in groups:
        if group.against not in (None, *names):
            raise UserError(
                f"{path}: group {group.name!r}: against = {group.against!r} is not a group"
                f"{nearest(str(group.against), names)}"
            )
        _check_match(path, group, {g.name: g for g in groups})
    for section in known_budgets:
        inside = f"[{section}]"
        own = value_of(path, table, section, dict, {})
        check_keys(path, own, ["tasks", "seeds", "settings"], inside)
        _check_names(path, f"{inside} settings", _flat(value_of(path, own, "settings", dict, {}, inside)))
    own = table.get(budget, {})
    return Experiment(
        path,
        value_of(path, table, "title", str),
        value_of(path, table, "question", str, ""),
        reference,
        cast(Any, score),
        value_of(path, table, "curves", bool, True),
        groups,
        limits,
        _tasks(path, own["tasks"]) if "tasks" in own else limits.tasks,
        _seeds(path, own["seeds"]) if "seeds" in own else limits.seeds,
        _flat(own.get("settings", {})),
    )


def read_budget(path: Path) -> Budget:
    """Read a budget. Raises UserError if the file is missing or wrong."""
    table = read_toml(path)
    check_keys(path, table, ["tasks", "seeds", "data", "settings", "critics", "tasks_settings"])
    data = value_of(path, table, "data", dict, {})
    for name, episodes in data.items():
        if type(episodes) is not int or episodes < 1:
            raise UserError(f"{path}: data: {name} = {episodes!r}: give a number of episodes, at least 1")
    shared = _flat(value_of(path, table, "settings", dict, {}))
    _check_names(path, "settings", shared)
    sections: dict[str, dict[str, Settings]] = {}
    for kind in ("critics", "tasks_settings"):
        found = value_of(path, table, kind, dict, {})
        sections[kind] = {name: _flat(value_of(path, found, name, dict, None, f"[{kind}]")) for name in found}
        for name, settings in sections[kind].items():
            _check_names(path, f"[{kind}.{name}]", settings)
    for critic in sections["critics"]:
        if critic not in CRITICS:
            raise UserError(f"{path}: [critics.{critic}]: critics are {', '.join(CRITICS)}{nearest(critic, CRITICS)}")
    tasks, seeds = (value_of(path, table, name, list) for name in ("tasks", "seeds"))
    families = sorted({family(task) for task in _tasks(path, tasks)})
    for name in sections["tasks_settings"]:
        if name not in families:
            raise UserError(
                f"{path}: [tasks_settings.{name}]: tasks are of {', '.join(families)}{nearest(name, families)}"
            )
    return Budget(path, _tasks(path, tasks), _seeds(path, seeds), data, shared, **sections)


def resolve(experiment: Experiment, group: Group, env_name: str) -> Config:
    """Return the configuration of a group's runs on a task, before any matching; seed and folders are the defaults.

    Settings of the budget, or of the experiment for the budget, that this agent does not have are left out.

    Raises:
        UserError: the group has a setting that its agent lacks, or a value has the wrong type or is out of range.
    """
    budget, whose = experiment.budget, f"{experiment.path}: group {group.name!r}"
    parts = {"critic": group.critic, "actor": group.actor}
    try:
        agent = configure(env_name, group.agent, **parts).agent
    except UserError as error:
        raise UserError(f"{whose}: {error}") from error
    critic, kind = agent.critic_name, family(env_name)
    types_of = known_settings(critic, agent.actor_name)
    aliases = {f"agent.{old}": f"agent.{new}" for old, new in PUBLISHED_ALIASES.get(critic, {}).items()}
    layers = [
        Layer(f"{budget.path}: settings", budget.settings),
        Layer(f"{budget.path}: [critics.{critic}]", budget.critics.get(critic, {})),
        Layer(f"{budget.path}: [tasks_settings.{kind}]", budget.tasks_settings.get(kind, {})),
        Layer(f"{experiment.path}: [{budget.name}.settings]", experiment.settings),
        Layer(whose, group.settings),
    ]
    flat: Settings = {"project_name": PROJECT, "run_group": budget.name}
    for layer in layers:
        for written, value in layer.settings.items():
            name = aliases.get(written, written)
            if name in types_of:
                flat[name.removeprefix("agent.")] = convert_to_type(f"{layer.where}: {written}", value, types_of[name])
            elif layer is layers[-1]:
                raise UserError(f"{whose}: {written}: {_unknown(written, f'agent {group.agent!r}', types_of)}")
    if flat.get("eval_interval") == 0:
        raise UserError(f"{whose}: eval_interval = 0: an experiment is judged by its evaluations, give an interval")
    try:
        return configure(env_name, group.agent, **parts, **flat)
    except UserError as error:
        raise UserError(f"{whose}, on {env_name}: {error}") from error


@functools.cache
def known_settings(critic: str, actor: str) -> dict[str, Any]:
    """Return the types of the settings that files may give to runs with this critic and actor, by flag name."""
    run = {f.name: get_type_hints(Config)[f.name] for f in dataclasses.fields(Config) if f.name not in SET_BY_PLAN}
    hints = get_type_hints(chosen := settings_type(critic, actor))
    return run | {f"agent.{f.name}": hints[f.name] for f in dataclasses.fields(chosen)}


# --- Contents of the files ---


def _tasks(path: Path, values: Any) -> tuple[str, ...]:
    if not list_of(path, "tasks", values, str):
        raise UserError(f"{path}: tasks is empty: name at least one")
    for task in values:
        check_environment(task, path)
    return tuple(dict.fromkeys(values))


def _seeds(path: Path, values: Any) -> tuple[int, ...]:
    if not list_of(path, "seeds", values, int) or not all(0 <= seed < SEEDS for seed in values):
        raise UserError(f"{path}: seeds = {values!r}: give at least one whole number, none negative")
    return tuple(dict.fromkeys(values))


def _flat(settings: Mapping[str, Any]) -> Settings:
    """Return settings by flag name. `agent.lr` without quotation marks is a table in TOML, and means the same."""
    flat = dict(settings)
    inner = flat.pop("agent", {})
    return flat | ({f"agent.{name}": x for name, x in inner.items()} if isinstance(inner, dict) else {"agent": inner})


def _group(path: Path, number: int, table: Mapping[str, Any], budget: str, known_budgets: Sequence[str]) -> Group:
    """Read a group, with its settings for this budget."""
    where = f"group {table['name']!r}" if isinstance(table.get("name"), str) else f"group number {number}"
    check_keys(path, table, [*(f.name for f in dataclasses.fields(Group)), *known_budgets], where)
    name = value_of(path, table, "name", str, None, where)
    if not name or printable(name) != name or "\n" in name:
        raise UserError(f"{path}: {where}: write the name in letters that show, on one line")
    own = {name: _flat(value_of(path, table, name, dict, {}, where)) for name in ("settings", *known_budgets)}
    for settings in own.values():
        _check_names(path, where, settings)
    settings = own["settings"] | own[budget]
    texts: dict[str, Any] = {name: value_of(path, table, name, str, None, where) for name in table if name not in own}
    choices = {"match": ("flops", "params"), "match_by": ("width", "members")}
    for name, known in choices.items():
        if name in texts and texts[name] not in known:
            raise UserError(f"{path}: {where}: {name} = {texts[name]!r}: choose {' or '.join(known)}")
    if "match" in texts:
        texts = {"match_by": "width"} | texts
    return Group(settings=settings, **texts)


def _check_match(path: Path, group: Group, groups: Mapping[str, Group]) -> None:
    where = f"{path}: group {group.name!r}"
    if group.match is None:
        if group.match_to or group.match_by:
            raise UserError(f"{where}: match_to and match_by need match = 'flops' or 'params'")
        return
    if group.match_to is None:
        raise UserError(f"{where}: match needs match_to, the name of another group")
    if group.match_to not in groups:
        raise UserError(f"{where}: match_to = {group.match_to!r} is not a group{nearest(group.match_to, groups)}")
    if groups[group.match_to].match is not None:
        raise UserError(f"{where}: match_to = {group.match_to!r} is matched itself: name a group that is not")


def _check_names(path: Path, where: str, settings: Settings) -> None:
    """Raise UserError for a setting that no agent has."""
    known = _all_spellings()
    for name in settings:
        if name not in known:
            raise UserError(f"{path}: {where}: {name}: {_unknown(name, 'any agent', known)}")


@functools.cache
def _all_spellings() -> frozenset[str]:
    return frozenset(name for critic in CRITICS for actor in ACTORS for name in _spellings(critic, actor))


def _spellings(critic: str, actor: str) -> Iterator[str]:
    yield from known_settings(critic, actor)
    yield from (f"agent.{name}" for name in PUBLISHED_ALIASES.get(critic, {}))


def _unknown(name: str, whose: str, known: Any) -> str:
    if name in SET_BY_PLAN:
        return "the plan decides this; leave it out"
    return f"no such setting of {whose}{nearest(name, known)}"
