"""Configuration of a run: a frozen dataclass, and the published settings of each family of environments."""

import dataclasses
import hashlib
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator

from floq.agent.config import AGENTS, AgentConfig, removed_settings, settings_type
from floq.agent.config import LearningSettings as LearningSettings  # under this name users have it
from floq.data.options import DataOptions, check_range
from floq.networks.precision import PUBLISHED, Precision, PrecisionSetting, fast_precision
from floq.utils.errors import UserError, nearest
from floq.utils.files import SUFFIX, looks_like_path
from floq.utils.schema import (
    NO_ARGUMENTS,
    Count,
    FrozenDict,
    Mark,
    NonNegative,
    Positive,
    PositiveFloat,
    Seed,
    Share,
    convert,
    hints_of,
    marked,
    read_toml,
)

if TYPE_CHECKING:
    from floq.envs.environments import EnvFactory

RANDOM_STEPS = 5_000
REMOVED = {"old_data_share": 0.0}  # settings that older runs have, with the only values at which they can be read
MAX_NAME = 255  # bytes in the name of a file or folder
MAX_PATH = 3_500  # bytes in the path of a group's folder; systems allow 4,096, and names of files below need some


def task_name(env_name: str | None, dataset: str | None) -> str:
    """Return the name of the task: the environment's id, or without one the dataset's name."""
    if env_name is not None or dataset is None:
        return env_name or ""
    return re.sub(SUFFIX, "", Path(dataset).name) if looks_like_path(dataset) else dataset


@dataclass(frozen=True)
class Config(DataOptions):
    """A training run. The defaults are the published ones, on the demonstration task."""

    project_name: str = "floq"
    """First folder under `save_dir`."""
    run_group: str = "debug"
    """Second folder."""
    seed: Annotated[Seed, Mark.NOT_HASHED] = 0
    """Determines everything random in the run."""
    env_name: str | None = "pointmaze-medium-navigate-singletask-v0"
    """OGBench single task, the bare id is the default task; with --dataset, any Gymnasium environment, or none."""
    save_dir: str = "exp"
    """Where run folders go."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's datasets are."""
    dataset: str | None = None
    """Train on this instead of the task's own data: an OGBench dataset, a Minari id, or a file or folder
    in npz, HDF5, CSV or parquet."""
    dataset_mirror: str | None = None
    """Address of a folder from which missing OGBench datasets are fetched; by default the benchmark's server."""
    restore_path: str | None = None
    """Start from the weights of this run folder."""
    restore_epoch: NonNegative | None = None
    """Which of its checkpoints, by step; by default the newest."""
    offline_steps: Annotated[NonNegative, Mark.RESUMABLE] = 2_000_000
    """Gradient steps on the dataset."""
    online_steps: Annotated[NonNegative, Mark.RESUMABLE] = 0
    """Environment steps after that, in which the agent goes on learning from its own experience."""
    buffer_size: Annotated[Positive, Mark.RESUMABLE_OFFLINE] = 2_000_000
    """Transitions that online batches are drawn from, data and new experience together; at least all of the data and
    one more. With a share of the data, new ones."""
    offline_share: Annotated[Share, Mark.RESUMABLE_OFFLINE, Mark.HASHED_IF_SET] | None = None
    """Online, the part of each batch that comes from the dataset; by default all transitions are drawn alike. Without
    an online phase, the part that comes from the data of --restore_path, beside the new data."""
    offline_share_steps: Annotated[Positive, Mark.RESUMABLE_OFFLINE, Mark.HASHED_IF_SET] | None = None
    """Online, environment steps over which that part shrinks to 0; by default it stays."""
    balanced_sampling: Annotated[Literal[0, 1], Mark.RESUMABLE_OFFLINE] = 0
    """1 is --offline_share=0.5, as published."""
    utd: Annotated[PositiveFloat, Mark.RESUMABLE_OFFLINE] = 1.0
    """Online, gradient steps for each environment step; below 1, several environments share one."""
    num_envs: Annotated[int, Gt(0), Le(2**12), Mark.RESUMABLE_OFFLINE] = 1
    """Online, environments that are stepped at once."""
    warmup_steps: Annotated[NonNegative, Mark.RESUMABLE_OFFLINE] = 0
    """Online, environment steps before gradient steps begin. From scratch, which is without data, these are made with
    random actions before the first step, and 0 means 5,000."""
    restart_failed_envs: Annotated[bool, Mark.RESUMABLE] = False
    """Online, go on with a fresh environment where one raises, hangs or returns NaN; otherwise that ends the run."""
    env_timeout: Annotated[PositiveFloat, Mark.RESUMABLE] = 60.0
    """Seconds that a step of the environments may take, of all that a process steps at once."""
    log_interval: Positive = 5_000
    """Steps between rows of train.csv."""
    eval_interval: NonNegative = 20_000
    """Steps between evaluations; the first comes after step 1. 0: no evaluations."""
    save_interval: Positive = 200_000
    """Steps between checkpoints; the last step always gets one."""
    eval_episodes: Count = 50
    """Episodes per evaluation."""
    video_episodes: Annotated[NonNegative, Le(2**10), Mark.RESUMABLE] = 0
    """Episodes of each evaluation that are filmed, the first ones: plots/film_STEP.mp4; needs the extra floq[video]."""
    video_frame_skip: Annotated[Count, Mark.RESUMABLE] = 3
    """Environment steps for each frame of a film."""
    p_aug: Share | None = None
    """Probability that the images of a batch are shifted by up to 3 pixels, each transition's at random."""
    frame_stack: Annotated[int, Gt(0), Le(2**6)] | None = None
    """Frames in an observation, the newest last; by default one."""
    success_timing: Literal["post", "pre"] = "post"
    """Success is read from the state after a step (post, the published protocol) or before it (pre, OGBench 1.2)."""
    score_range: Annotated[tuple[float, float] | None, Mark.NOT_HASHED] = None
    """LOW HIGH: returns that stand for the scores 0 and 100. By default those that a Minari dataset carries, or with
    --dataset, those of D4RL for its environments; otherwise there are no scores."""
    env_kwargs: Annotated[dict[str, Any], AfterValidator(FrozenDict.of_json), Mark.HASHED_IF_SET] = NO_ARGUMENTS
    """Arguments of the environment's constructor; on the command line --env_kwargs.NAME=VALUE."""
    normalize_observations: bool = False
    """Give observations mean 0 and standard deviation 1."""
    precision: PrecisionSetting = PUBLISHED
    """Precision of updates: tf32 is float32 with products in TF32 on GPUs that have it (as published); f32; bf16; auto
    is bf16 on CPUs that compute it faster, elsewhere tf32."""
    batch_devices: Positive = 1
    """Devices that share the batch of each run; the others train other runs."""
    on_divergence: Annotated[Literal["stop", "rewind"], Mark.RESUMABLE, Mark.HASHED_IF_SET] = "stop"
    """Where a target, loss or gradient is not finite: stop that run at its last good state, or rewind, go back to the
    weights of its last checkpoint and on with other batches, up to three times between two checkpoints."""
    keep_checkpoints: Annotated[int, Ge(2), Mark.RESUMABLE, Mark.NOT_HASHED] | None = None
    """The newest checkpoints of a run that are kept, at least 2; by default all."""
    checkpoint_minutes: Annotated[PositiveFloat, Mark.RESUMABLE, Mark.NOT_HASHED] | None = None
    """Also write a checkpoint after this many minutes without one: for preemptible machines."""
    deterministic: Annotated[bool, Mark.HASHED_IF_SET] = False
    """On a GPU, the same bits in every run of the same command, at a cost in speed; on a CPU it is so anyway."""
    logger: Annotated[tuple[Literal["tensorboard", "wandb"], ...], Mark.RESUMABLE, Mark.NOT_HASHED] = ()
    """Write the rows of the CSV files to these as well; their packages are installed separately."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The agent and its settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_path()
        devices, batch_size, envs = self.batch_devices, self.agent.batch_size, self.num_envs
        updates = self.utd * envs
        if batch_size % devices:
            raise UserError(f"--batch_devices={devices}: does not divide --agent.batch_size={batch_size}")
        if not (self.env_name or self.dataset):
            raise UserError("nothing to learn from: give --env_name, or data with --dataset")
        for option in ("columns", "guess_columns", "obs_keys", "rescale_actions", "clip_actions"):
            if getattr(self, option) and self.dataset is None:
                raise UserError(f"--{option}: it says how --dataset is read, give one")
        if self.columns:
            from floq.data.formats.tables import Columns  # with all readers

            Columns.of(self.columns)
        if self.score_range:
            check_range("--score_range", self.score_range)
        if self.action_units == "env" and self.env_name is None:
            raise UserError("--action_units=env: give the environment whose units they are, with --env_name")
        if not self.total_steps:
            raise UserError("offline_steps=0: must be greater than 0, or give --online_steps")
        self._check_share()
        if self.updates_per_tick < 1 or not math.isclose(self.updates_per_tick, updates):
            raise UserError(
                f"--utd={self.utd:g} with --num_envs={envs}: these step at once, which makes {updates:g} gradient "
                "steps: choose them such that this is a whole number"
            )
        if (steps := self.online_steps) % envs:
            raise UserError(f"--online_steps={steps}: must be a multiple of --num_envs={envs}, which step at once")

    def _check_share(self) -> None:
        """Raise UserError if the share of old data in a batch is given twice, or there is no old data."""
        share, steps = self.offline_share, self.offline_share_steps
        if self.balanced_sampling and share is not None:
            raise UserError(f"--offline_share={share:g}: --balanced_sampling=1 makes it 0.5, leave one of them out")
        if self.balanced_sampling and not self.online_steps:
            raise UserError("--balanced_sampling=1 is about the batches of the online phase: give --online_steps")
        if share is not None and not self.online_steps and self.restore_path is None:
            raise UserError(
                f"--offline_share={share:g}: it is about the batches of the online phase, or the data of another run: "
                "give --online_steps or --restore_path"
            )
        if steps is not None and (not self.online_steps or self.online_share(0) is None):
            raise UserError(
                f"--offline_share_steps={steps}: over these steps of the online phase --offline_share shrinks: give "
                "--online_steps and --offline_share too"
            )

    def _check_path(self) -> None:
        """Raise UserError if the run's folder would lie outside its parent folder, or its path would be too long."""
        given = {name: getattr(self, name) for name in ("project_name", "run_group", "save_dir")}
        for name, value in given.items():
            parts = re.split(r"[/\\]", value)
            leads_out = ".." in parts or not all(parts) or re.search(r"[\x00-\x1f\x7f:]", value)
            if leads_out and name != "save_dir":
                raise UserError(
                    f"{name}={value!r}: must be the name of a folder, without '..', colons or a slash at its ends"
                )
            if (length := max(len(os.fsencode(part)) for part in parts)) > MAX_NAME:
                start = f"--{name}={value[:40]}..."
                raise UserError(f"{start}: has {length} bytes in one name, file systems allow {MAX_NAME}: shorten it")
        if (length := len(os.fsencode("".join(given.values())))) > MAX_PATH:
            longest = max(given, key=lambda name: len(given[name]))
            raise UserError(
                f"--{longest}={given[longest][:40]}...: makes the path of the run's folder {length} bytes long, at "
                f"most {MAX_PATH} leave room for its files: shorten it"
            )

    @property
    def from_scratch(self) -> bool:
        """Whether the run begins with neither data nor weights."""
        return self.offline_steps == 0 and self.dataset is None and self.restore_path is None

    @property
    def random_steps(self) -> int:
        """From scratch, the environment steps with random actions that replace a dataset."""
        return self.warmup_steps or RANDOM_STEPS

    @property
    def steps_without_updates(self) -> int:
        """Online, the environment steps before gradient steps begin; from scratch 0: random steps are the warm-up."""
        return 0 if self.from_scratch else self.warmup_steps

    def online_share(self, step: int) -> float | None:
        """Return the part of a batch that is drawn from the dataset, after so many environment steps; None if all
        transitions are drawn alike."""
        share = 0.5 if self.balanced_sampling else self.offline_share
        if share is None or self.offline_share_steps is None:
            return share
        return share * max(0.0, 1 - step / self.offline_share_steps)

    @property
    def mixes_prior_data(self) -> bool:
        """Whether a part of each batch comes from the data of the run that `restore_path` names: offline only."""
        return bool(self.offline_share) and self.restore_path is not None and not self.online_steps

    @property
    def updates_per_tick(self) -> int:
        """Online, gradient steps per simultaneous step of all environments."""
        return round(self.utd * self.num_envs)

    @property
    def total_steps(self) -> int:
        """Gradient steps offline plus environment steps: the range of a run's step counter."""
        return self.offline_steps + self.online_steps

    @property
    def total_updates(self) -> int:
        """Gradient steps of both phases."""
        with_updates = max(0, self.online_steps - self.steps_without_updates)
        return self.offline_steps + self.updates_per_tick * -(-with_updates // self.num_envs)

    @property
    def task(self) -> str:
        """Name of the task: the environment's id, or without one the dataset's name."""
        return task_name(self.env_name, self.dataset)

    @property
    def precision_here(self) -> Precision:
        """The precision on this machine; that of auto is asked of JAX, which starts."""
        if self.precision != "auto":
            return self.precision
        return fast_precision(getattr(self.agent.critic, "hidden_width", 0))

    @property
    def precision_note(self) -> str:
        """Says the precision where it is not the published one, behind the name of the device."""
        if self.precision == "auto":
            return f"; precision {self.precision_here} (auto)"
        return "" if self.precision == PUBLISHED else f"; precision {self.precision}"

    def on_this_machine(self) -> "Config":
        """Return the configuration with `precision_here`, as config.json has it."""
        return dataclasses.replace(self, precision=self.precision_here)

    @property
    def data_options(self) -> DataOptions:
        """How the data are read."""
        return DataOptions(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DataOptions)})

    @property
    def make_env(self) -> "EnvFactory":
        """What makes the environment of the task."""
        from floq.envs.environments import EnvFactory

        kwargs, frames = FrozenDict(self.env_kwargs), self.frame_stack or 1
        return EnvFactory(self.env_name or "", self.success_timing, kwargs, frame_stack=frames)

    def to_json(self) -> dict[str, Any]:
        """Return the resolved configuration; the agent's settings are flat, beside critic and actor."""
        agent = {"critic": self.agent.critic_name, "actor": self.agent.actor_name, **self.agent.flat()}
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {"agent": agent}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Build a configuration from untrusted values; the inverse of `to_json`.

        Raises:
            UserError: a key is unknown, or a value is of another type or out of range.
        """
        run, types = dict(values), hints_of(cls)
        for name, value in REMOVED.items():
            if (found := run.pop(name, value)) != value:
                raise UserError(f"{name}={found}: this setting was removed, only {value} is known today")
        agent = dict(convert("agent", run.pop("agent", None), dict[str, Any]))
        critic, actor = (str(agent.pop(part, None)) for part in ("critic", "actor"))
        known = hints_of(settings_type(critic, actor))
        for name in run:
            if name not in types:
                raise UserError(f"{name}: no such setting of a run{nearest(name, types)}")
        # `from_flat` rejects settings that neither critic nor actor has.
        agent = {name: convert(f"agent.{name}", x, known[name]) if name in known else x for name, x in agent.items()}
        return cls(**run, agent=AgentConfig.from_flat(critic, actor, agent))

    def digest(self) -> str:
        """Return a hash of the settings, as their marks say; removed settings count too, so that old hashes stay."""
        values = self.to_json()
        agent, named = self.agent, values["agent"]
        for part, own in ((self, values), *((part, named) for part in (agent, agent.critic, agent.actor))):
            kind = type(part)
            unset = (name for name in marked(kind, Mark.HASHED_IF_SET) if getattr(part, name) == getattr(kind, name))
            for name in (*marked(kind, Mark.NOT_HASHED), *unset):
                del own[name]
        values["agent"] |= removed_settings(self.agent.critic_name)
        values |= REMOVED
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


# --- Published settings ---

PATH_FORM = r"agents/(\w+)\.py"  # of an agent's name, as in the published commands
_TABLES = read_toml(Path(__file__).with_name("presets.toml"))

FAMILIES: dict[str, dict[str, dict[str, Any]]] = _TABLES["families"]
"""Settings of each agent for each environment family, chosen by `env_name`; more specific settings override them."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = _TABLES["presets"]
"""Changes of `--preset NAME` to the family's settings, by agent, or agent and family."""


def preset_for(preset: str, agent: str, family: str) -> dict[str, Any]:
    """Return the changes of a preset for an agent and a family of environments; empty if there are none."""
    return PRESETS[preset].get(f"{agent} on {family}") or PRESETS[preset].get(agent, {})


def family(env_name: str) -> str:
    """Return the family of an environment: `cube-double-play-singletask-task2-v0` -> `cube-double`."""
    return re.sub(r"-(navigate|stitch|explore|play|noisy)\b.*", "", env_name)


def missing_preset_note(task: str, agent: str, preset: str | None = None) -> str | None:
    """Return a line of warning if the task's family has no settings for this agent or this preset, otherwise None."""
    name = re.sub(PATH_FORM, r"\1", agent)
    if preset is not None and not preset_for(preset, name, family(task)):
        return f"--preset={preset} changes nothing for {family(task)} with {agent}"
    if agent not in FAMILIES or family(task) in FAMILIES[agent]:
        return None
    return f"no published settings for {family(task)} with {agent}: using its defaults, set --agent.alpha at least"


def configure(
    env_name: str | None = None,
    agent: str = "floq",
    *,
    critic: str | None = None,
    actor: str | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Config:
    """Return the configuration of a run: `configure("cube-double-play-singletask-v0", alpha=100.0, seed=3)`.

    Settings given here override the preset, the preset the family's settings, and those the defaults.

    Args:
        env_name: the task; by default the demonstration task, or none if there is a `dataset`.
        agent: a name in `AGENTS`. The path form of the published commands, `agents/floq.py`, means that file's
            defaults without the family's settings.
        critic: replaces the agent's critic; the family's settings still apply where the new critic has them.
        actor: replaces the agent's actor, likewise, except alpha: another actor's has another unit.
        preset: a name in `PRESETS`.
        **settings: any setting of the run or of the agent, by its flat name.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    if env_name is None and settings.get("dataset") is None:
        env_name = Config.env_name
    task = family(task_name(env_name, settings.get("dataset")))
    path_form = re.fullmatch(PATH_FORM, agent)
    name = path_form.group(1) if path_form else agent
    if name not in AGENTS:
        raise UserError(f"--agent={agent}: unknown agent; choose {' or '.join(AGENTS)}{nearest(name, AGENTS)}")
    critic = AGENTS[name][0] if critic is None else critic
    actor = AGENTS[name][1] if actor is None else actor
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset={preset}: unknown preset; choose {' or '.join(PRESETS)}{nearest(preset, PRESETS)}")

    published = {} if path_form else FAMILIES[name].get(task, {})
    if preset is not None:
        published = published | preset_for(preset, name, task)
    run_names = {f.name for f in dataclasses.fields(Config)} - {"agent", "env_name"}
    has = set(hints_of(settings_type(critic, actor)))
    if actor != AGENTS[name][1]:
        has -= {"alpha"}  # the family's alpha is the weight of another actor's loss, in other units
    run: dict[str, Any] = {} if path_form else dict(_TABLES["run"].get(task, {}))
    if not path_form:
        run |= {key: value for key, value in published.items() if key in run_names}
    flat = {key: value for key, value in published.items() if key in has}
    for key, value in settings.items():
        (run if key in run_names else flat)[key] = value
    return Config(env_name=env_name, agent=AgentConfig.from_flat(critic, actor, flat), **run)
