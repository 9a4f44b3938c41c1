"""The command `floq train`: its flags, resolved to the configurations of runs; also with --resume."""

import dataclasses
import functools
import json
import re
import sys
from collections.abc import Collection, Iterable
from typing import Annotated, Any, NamedTuple, get_args

from floq.agent.config import AGENTS, PUBLISHED_ALIASES, AgentConfig, settings_type
from floq.cli.flags import Flags, fields_of, parse, without_tables
from floq.data.options import DataOptions
from floq.runs.config import PRESETS, Config, configure, missing_preset_note
from floq.utils.errors import UserError, nearest
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import Mark, hints_of, marked
from floq.utils.untrusted import consent


def train_command(argv: list[str]) -> None:
    """Run `floq train`."""
    if any(re.match(r"--resume(=|$)", word) for word in argv):
        return _resume(argv)
    request = parse_train(argv)
    if request.dry_run:
        for note in request.notes:
            print(f"floq: {note}", file=sys.stderr)
        return print_configs(request.configs)
    check_tasks(request.configs)
    from floq.training.train import train_fleet
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    train_fleet(request.configs, notes=request.notes)


def check_tasks(configs: Iterable[Config]) -> None:
    """Check the names of tasks before anything slow, since a wrong name is the commonest mistake."""
    from floq.envs.ogbench import check_task

    for config in configs:
        if config.dataset is None and not config.from_scratch:
            check_task(config.env_name or "")


def print_configs(configs: list[Any]) -> None:
    """Print one JSON object: the configuration; of several, a list where they differ."""
    configs = [config.on_this_machine() for config in configs]
    shown = configs[0].to_json()
    others = [config.to_json() for config in configs]
    for values, theirs in ((shown["agent"], [other["agent"] for other in others]), (shown, others)):
        for name in dict.fromkeys(name for other in theirs for name in other if name != "agent"):
            if len({json.dumps(other.get(name)) for other in theirs}) > 1:
                values[name] = [other.get(name) for other in theirs]
    if isinstance(shown["seed"], list):
        shown = {"seeds" if name == "seed" else name: value for name, value in shown.items()}
    print(json.dumps(shown, indent=2))


# --- Flags of a fresh run ---


TABLES = ("env_kwargs", "columns")
DESCRIPTION = (
    "Train an agent offline. --agent NAME chooses a pair of critic and actor with its settings "
    f"({', '.join(AGENTS)}; agents/floq.py: the published defaults without the environment's settings), "
    f"--agent.critic and --agent.actor replace one of the two, --preset NAME ({', '.join(PRESETS)}) changes the "
    "settings, --seeds 0 1 2 trains a fleet of three runs, and so do several values of any other setting, "
    "--dry_run prints the resolved configuration, --resume RUN_DIR continues a run, --restore_path=RUN_DIR starts "
    "a new one from its weights and, unless --agent or --preset is given, with its agent's settings. "
    "--match=params or --match=flops makes the critic of a baseline, as --agent=fql, as large, or an update as "
    "costly, as floq's, by the width of its hidden layers or with --match_by=members by the size of its ensemble; "
    "the flags that floq has say which floq, also those that the baseline lacks, as --agent.critic_flow_steps=16; "
    "--env_kwargs.NAME=VALUE is an argument of the environment's constructor, --columns.observations=x,y and so on "
    "name the columns of a table, and either can be a file, as --columns=FILE.toml; "
    "for the sizes of observations and actions even a dry run then makes the environment, or reads the data where "
    "there is none."
)


class TrainRequest(NamedTuple):
    """The configurations that `floq train` shall train, or just print."""

    configs: list[Any]
    dry_run: bool
    notes: list[str]


class AgentFlags:
    """The flags that `floq train` has with one agent, that of a `restored` run or the one that `configure`
    makes of what is `chosen`, and the configuration that they resolve to."""

    def __init__(self, restored: Config | None = None, **chosen: Any):
        self._restored, self._chosen = restored, chosen
        any_task = restored.agent if restored else configure(None, **chosen).agent
        self.critic, self.actor = any_task.critic_name, any_task.actor_name
        self._settings = settings_type(self.critic, self.actor)
        self.types = {name: f for name, f in fields_of(Config).items() if name not in TABLES}
        self.types |= {f"agent.{name}": f for name, f in fields_of(self._settings).items()}
        published = PUBLISHED_ALIASES.get(self.critic, {})
        self.aliases = {f"agent.{theirs}": f"agent.{ours}" for theirs, ours in published.items()}
        default = dataclasses.field(default=self._settings(**any_task.flat()))
        fields = [("agent", self._settings, default)]
        self._command = without_tables(dataclasses.make_dataclass("Train", fields, bases=(Config,), frozen=True))

    def config(self, flags: Flags) -> Config:
        """Return the configuration of a run: flags refine the preset that the environment and the agent select."""
        base = configure(flags.peek("env_name"), dataset=flags.peek("dataset"), **self._chosen)
        if self._restored:
            normalize = self._restored.normalize_observations
            base = dataclasses.replace(base, agent=self._restored.agent, normalize_observations=normalize)
        default = self._command(**vars(base) | {"agent": self._settings(**base.agent.flat())})
        words = flags.normalised(self.types)
        values = vars(parse(self._command, words, "floq train", DESCRIPTION, default))
        agent = AgentConfig.from_flat(self.critic, self.actor, dataclasses.asdict(values["agent"]))
        return Config(**values | {"agent": agent})


def parse_train(argv: list[str]) -> TrainRequest:
    """Resolve the arguments of `floq train`."""
    return resolve_train(Flags(argv))


def resolve_train(flags: Flags) -> TrainRequest:
    """Resolve flags: a configuration for each combination of values where a flag has several."""
    restored = _restored(flags)
    name, preset = flags.take("agent") or "floq", flags.take("preset")
    dry_run, seeds, match = flags.take_switch("dry_run"), flags.take_seeds(), take_match(flags)
    critic, actor = flags.take("agent.critic"), flags.take("agent.actor")
    own = AgentFlags(restored, agent=name, preset=preset, critic=critic, actor=actor)
    flags.values = {own.aliases.get(name, name): words for name, words in flags.values.items()}
    floq = None
    if match:
        if own.critic == "floq":
            raise UserError(
                f"--match={match[0]} fits a baseline to the flow critic, and this agent has that critic: give "
                "another one, as in --agent=fql"
            )
        # The floq agent with the same actor, and without a family's settings if the baseline does without.
        floq = AgentFlags(agent="agents/floq.py" if "/" in name else "floq", preset=preset, actor=own.actor)
    configs: list[Any] = []
    tables = {name: flags.take_table(name) for name in TABLES}
    notes: dict[str | None, None] = {}
    for variant in flags.variants((floq.types if floq else {}) | own.types):
        reference = None
        if floq:
            theirs = variant.selected(floq.types)
            theirs.drop(network_flags(variant, own.types))
            variant.drop(floq.types.keys() - own.types.keys())  # these describe floq alone
            reference = floq.config(theirs).agent
        consent(variant.peek("env_name") or "")
        config = dataclasses.replace(own.config(variant), **tables)
        if match and reference:
            agent, source = config.agent, (config.make_env, config.dataset, config.dataset_dir, config.data_options)
            change, found = _matched(match, agent.compiled(), reference.compiled(), *source)
            critic, notes[found] = dataclasses.replace(agent.critic, **change), None
            config = dataclasses.replace(config, agent=dataclasses.replace(agent, critic=critic))
        configs += [dataclasses.replace(config, seed=seed) for seed in seeds] or [config]
    configs = list(dict.fromkeys(configs))
    if restored:
        notes[f"the agent's settings are those of {flags.peek('restore_path')}, where no flag says otherwise"] = None
    for config in [] if restored else configs:
        # A preset that changes floq has its effect, if only on what is matched.
        changed = match and preset and missing_preset_note(config.task, "floq", preset) is None
        notes[missing_preset_note(config.task, name, None if changed else preset)] = None
    return TrainRequest(configs, dry_run, [note for note in notes if note])


def _restored(flags: Flags) -> Any:
    """Return the configuration of the run whose weights a new one takes over: since its networks must fit, the agent is
    that run's, unless a flag chooses one."""
    path = flags.peek("restore_path")
    if path is None or {"agent", "preset", "agent.critic", "agent.actor", "match"} & flags.values.keys():
        return None
    from floq.runs.run import Run

    return Run.open(path, makes_env=False).config


# --- `floq train --match` ---


def take_match(flags: Flags) -> tuple[Any, Any] | None:
    """Take `--match`, what is made equal, and `--match_by`, the setting of the baseline that changes, out of the flags:
    see `analysis.matching.matched`. Raises UserError for a value that there is not, or the second without the first."""
    what, by = flags.take("match"), flags.take("match_by")
    if what is None and by is None:
        return None
    from floq.analysis.matching import By, What  # it loads JAX

    for flag, value, known in (("match", what, get_args(What)), ("match_by", by, get_args(By))):
        if value is not None and value not in known:
            raise UserError(f"--{flag}={value}: choose {' or '.join(known)}{nearest(value, known)}")
    if what is None:
        raise UserError(f"--match_by={by} says how --match changes the baseline: give --match=params or flops too")
    return what, by or "width"


def network_flags(flags: Flags, baseline: Collection[str]) -> list[str]:
    """List the flags that size the baseline's critic and not floq's, which has flags of the same names.
    Blocks are the baseline's if it is residual; the depth of plain ones is that of both."""
    names = ["use_resnets", "num_transformations", "activate_before_layernorm", "num_bins", "sigma", "reward_offset"]
    if flags.selected({"agent.use_resnets"}).take_switch("agent.use_resnets"):
        names += ["block_width", "block_depth"]
    return [flag for name in names if (flag := f"agent.{name}") in baseline]


@functools.lru_cache(maxsize=64)  # variants that differ in traced settings alone, as alpha, are matched once
def _matched(
    match: tuple[Any, Any], baseline: AgentConfig, reference: AgentConfig, *source: Any
) -> tuple[dict[str, Any], str]:
    """Return the setting of the baseline's critic that makes it as large or as costly as the reference, and a line
    about it. Raises UserError if there is none; or the `source` of the sizes, environment or data, is missing."""
    from floq.analysis.matching import count, matched, scaled_setting

    (what, by), dims = match, _dims(*source)
    found = matched(baseline, reference, *dims, what, by)
    here, there = (count(agent, *dims, what) for agent in (found, reference))
    setting = scaled_setting(found, by)
    value = getattr(found.critic, setting)
    if what == "params":
        counts = f"{here:,} critic parameters, floq has {there:,}"
    else:
        counts = f"{here / 1e9:.4g} GFLOP per update, floq takes {there / 1e9:.4g}"
    return {setting: value}, f"--match={what}: {setting} {value}, {counts}"


def _dims(make_env: Any, dataset: str | None, dataset_dir: str, options: DataOptions) -> tuple[ObsSpec, int]:
    """Return what an observation is, and the action dimension, by the environment or, without one, by the data."""
    from floq.envs import ogbench
    from floq.envs.environments import task_dims
    from floq.utils.files import looks_like_path

    if make_env.name and dataset is None:
        ogbench.check_task(make_env.name)
    if not make_env.name and dataset and ogbench.is_dataset(dataset) and not looks_like_path(dataset):
        make_env = make_env.named(dataset)  # an OGBench dataset is that of an environment, and need not be there yet
    if make_env.name:
        return task_dims(make_env)
    from floq.data.formats.open import open_dataset

    assert dataset is not None  # a configuration has one of the two
    obs_spec, action_dim = open_dataset(dataset, dataset_dir, options=options).data.dims
    return obs_spec.stacked(make_env.frame_stack), action_dim


# --- `floq train --resume` ---

RESUME = """Continue a run from its newest checkpoint, exactly. Its settings stay as they are; step counts, which are
new totals, may change, and how it learns online as long as it does not. With several folders, runs that stopped at the
same step go on as one fleet. --dataset=PATH says where their data lie now, if they were moved. --dry_run prints the
resolved configuration, and --env_name=module:Id, the run's own, lets that module be imported."""


def _resume(argv: list[str]) -> None:
    flags = Flags(argv)
    folders = flags.values.pop("resume")
    env_name, dataset, dry_run = flags.take("env_name"), flags.take("dataset"), flags.take_switch("dry_run")
    changeable = marked(Config, Mark.RESUMABLE, Mark.RESUMABLE_OFFLINE)
    for name in flags.values:
        if name not in changeable:
            raise UserError(
                f"--{name} with --resume: a run goes on with its own settings, only --offline_steps, --online_steps "
                "and how it learns online may change; --dataset says where its data lie now"
            )
    if not flags.help and not folders:
        raise UserError("--resume needs a run's folder, or several")
    from tyro.conf import Suppress

    fields = [  # None where they are not given
        (name, hint | None if name in changeable else Annotated[Any, Suppress], dataclasses.field(default=None))
        for name, hint in hints_of(Config).items()
    ]
    unchecked = {"__post_init__": lambda _: None}
    options = dataclasses.make_dataclass("Resume", fields, bases=(Config,), frozen=True, namespace=unchecked)
    words = flags.normalised(fields_of(options))
    given = vars(parse(options, words, "floq train --resume RUN_DIR", " ".join(RESUME.split())))
    changes = {name: given[name] for name in changeable if given[name] is not None}
    from floq.runs.run import Run
    from floq.runs.run_data import moved
    from floq.training.resume import continued, resume_fleet
    from floq.utils.machine import enable_compilation_cache

    for folder in folders:
        Run.open(folder, env_name)
    if dry_run:
        runs = [moved(Run.open(folder), dataset) for folder in folders]
        return print_configs([continued(run, changes) for run in runs])
    enable_compilation_cache()
    resume_fleet(folders, dataset=dataset, **changes)
