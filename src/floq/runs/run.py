"""Folder of a run: its files, how it is created and opened, the agent it starts from, and errors of its disk."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from floq.agent.agent import Agent
from floq.agent.policy import ObsStats
from floq.agent.state import Keys, ValueRange
from floq.data.dataset import Dataset
from floq.envs.ogbench import is_singletask
from floq.runs import checkpoint
from floq.runs.checkpoint import Checkpoint, steps
from floq.runs.config import Config
from floq.runs.loggers import cut_csv, read_csv
from floq.utils import files
from floq.utils.errors import Failed, UserError, in_one_line
from floq.utils.files import lock_folder, user_path
from floq.utils.machine import version
from floq.utils.schema import Mark, marked
from floq.utils.untrusted import JSON_LIMIT, check_environment, check_links, consent, parse_json, read_json, read_text

RECORDS = {"protocol": str, "versions": dict, "data": dict}  # entries of config.json that are no settings
PACKAGES = ("floq", "jax", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")

REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of the quota", errno.EFBIG: "raise the limit"}
REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable")
NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)  # errors of a disk without a file's name


@dataclass(frozen=True)
class Run:
    """A run on disk: `config.json`, `train.csv`, `eval.csv`, `summary.json`, `checkpoints/<step>/`, `plots/`; from
    scratch also `random.npz`, and if it diverged `diverged.json` or `rewinds.json`."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, config: Config, records: dict[str, dict[str, str]]) -> "Run":
        """Make the folder `save_dir/project/group/env/sd<seed>_<time>_<hash>` and write `config.json`.

        Args:
            config: the resolved configuration. Its hash is that of a precision of auto, and what this is here is
                written.
            records: `versions` of packages and a description of the `data`, stored beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        stamp = time.strftime("%Y%m%d_%H%M%S")
        folder = cls.parent(config) / f"sd{config.seed:03d}_{stamp}_{config.digest()}"
        config = config.on_this_machine()
        partial = folder.with_name(f".{folder.name}.partial")  # a folder with a run's name must be complete
        try:
            if folder.exists():
                raise FileExistsError(folder)
            (partial / "checkpoints").mkdir(parents=True)
            (partial / "plots").mkdir()
            cls(partial, config).write_config(records)
            partial.rename(folder)
            files.sync(folder.parent)
        except FileExistsError as error:
            raise UserError(f"{folder} exists already: wait a second, or give another --run_group") from error
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise UserError(
                f"cannot write the run folder {folder} ({error.strerror}): choose another --save_dir"
            ) from error
        return cls(folder, config)

    @staticmethod
    def parent(config: Config) -> Path:
        """Return the parent of the folders of runs with this configuration."""
        task = re.sub(r"[^-.\w]+", "-", config.task)  # ids of Gymnasium and Minari have slashes and colons
        task = re.sub(r"^\.+$", "-", task)
        return user_path(config.save_dir) / config.project_name / config.run_group / task

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Lock the run's folder for this process. Raises UserError if another process holds the lock."""
        return lock_folder(self.folder, f"another process is at work in {self.folder}: wait for it, or stop it")

    @classmethod
    def open(cls, folder: Path | str, env_name: str | None = None, makes_env: bool = True) -> "Run":
        """Open an existing run, which may come from an untrusted source.

        Args:
            folder: its folder.
            env_name: its environment, if the user has named it: so they consent to the import of a module.
            makes_env: whether its environment is going to be made.

        Raises:
            UserError: it is not one, its folder has links that lead out of it, its environment is another one, or would
                import a module without the user's consent (see `floq.utils.untrusted`).
        """
        folder = user_path(folder)
        path = folder / "config.json"
        try:
            values = read_json(path)
            config = Config.from_json({name: x for name, x in values.items() if name not in RECORDS})
        except OSError as error:
            raise UserError(f"{folder} is not a run folder: it has no readable config.json") from error
        except (ValueError, UserError) as error:
            raise UserError(f"{path} is damaged ({error})") from error
        if env_name is not None:
            if env_name != config.env_name:
                raise UserError(f"--env_name={env_name}: {folder} is a run in {config.env_name}")
            consent(env_name)
        if makes_env:
            check_environment(config.env_name, path)
        check_links(folder)
        return cls(folder, config)

    def load_agent(self, step: int | None = None) -> Agent:
        """Load the agent of a checkpoint, by default the newest. Raises UserError if there is none or it is damaged."""
        return checkpoint.load(self.folder / "checkpoints", step)[0]

    def evaluations(self) -> dict[str, list[float]]:
        """Return the columns of `eval.csv`; empty before the first evaluation."""
        return read_csv(self.folder / "eval.csv")

    def training(self) -> dict[str, list[float]]:
        """Return the columns of `train.csv`; empty before its first row."""
        return read_csv(self.folder / "train.csv")

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, which exists once the run has ended. Raises UserError if it is missing or damaged."""
        if not self.is_finished:
            raise UserError(f"{self.folder} has no summary.json: the run has not ended")
        return read_record(self.folder / "summary.json")

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its last step."""
        return (self.folder / "summary.json").exists()

    @property
    def diverged(self) -> dict[str, Any]:
        """`diverged.json`: at which step the run diverged and stopped, which term was not finite, and the metrics of
        that update. Empty if it did not."""
        return read_record(self.folder / "diverged.json", dict, "step")

    @property
    def rewinds(self) -> list[dict[str, Any]]:
        """`rewinds.json`: at which steps the run went back to earlier weights, and to those of which step."""
        return read_record(self.folder / "rewinds.json", list, "step")

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to train: the run is finished, or diverged and stopped."""
        return self.is_finished or bool(self.diverged)

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """Records of `config.json` about packages (`versions`) and data (`data`): texts and lists of texts."""
        values = read_json(self.folder / "config.json")
        found = {name: x if isinstance(x := values.get(name), dict) else {} for name in ("versions", "data")}
        return {name: {key: x for key, x in record.items() if _is_text(x)} for name, record in found.items()}

    def write_config(self, records: dict[str, dict[str, str]]) -> None:
        """Write `config.json`: the configuration, the evaluation protocol and the given records."""
        self.write_json("config.json", self.config.to_json() | {"protocol": protocol(self.config)} | records)

    def reopen(self) -> None:
        """Mark the run as not finished."""
        (self.folder / "summary.json").unlink(missing_ok=True)

    def cut_back_to(self, step: int) -> None:
        """Go back to `step`: delete the entries of later steps from the logs."""
        (self.folder / "diverged.json").unlink(missing_ok=True)
        if rewinds := self.rewinds:
            self.write_json("rewinds.json", [rewind for rewind in rewinds if rewind["step"] <= step])
        for name in ("train.csv", "eval.csv"):
            cut_csv(self.folder / name, step)

    def write_json(self, name: str, values: Any) -> None:
        """Write a JSON file of the run, atomically."""
        write_json(self.folder / name, values)

    def remove_temp_files(self) -> None:
        """Delete half-written files of a killed process."""
        for partial in (*self.folder.glob(".*.partial"), *self.folder.glob("plots/.*.partial.mp4")):
            partial.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file, atomically; numbers that are not finite become null."""
    content = json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n"
    files.replace(path, content.encode())


def read_record(path: Path, kind: Any = dict, number: str | None = None) -> Any:
    """Read a JSON file that not all runs have, empty if it is missing: an object, or a list of objects, in each of
    which the entry `number` is a whole number. Raises UserError if it is damaged."""
    try:
        found = parse_json(read_text(path, JSON_LIMIT))
        if type(found) is not kind:
            raise ValueError(f"it holds no JSON {'object' if kind is dict else 'list'}")
        for one in [found] if kind is dict else found:
            if number is not None and type(one[number]) is not int:
                raise ValueError(f"its {number} is {one[number]!r}")
        return found
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged ({in_one_line(error)}): delete it and --resume the run") from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _without_nan(value: Any) -> Any:
    """Replace numbers that are not finite, as of a diverged run, with None: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    return {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}


def protocol(config: Config) -> str:
    """Describe the evaluation protocol of a run in one line."""
    labels = f"label_timing={config.label_timing}"
    if not config.agent.learns_policy:
        return "off-policy evaluation"
    if config.env_name is None:
        return "no environment"
    if not is_singletask(config.env_name):
        return f"{config.eval_episodes} episodes of {config.env_name}"
    return f"{config.eval_episodes} episodes, success_timing={config.success_timing}, {labels}"


# --- Initial agent ---


def make_agent(config: Config, train_data: Dataset) -> Agent:
    """Return the initial agent of a run with this configuration and this data."""
    stats = ObsStats(*train_data.obs_stats()) if config.normalize_observations else None
    given = {"reward_range": train_data.reward_range(), "obs_stats": stats, "precision": config.precision_here}
    obs_spec, action_dim = train_data.dims
    width = config.agent.action_chunk * action_dim
    return Agent.init(Keys.of(config.seed).agent, obs_spec, width, config.agent, **given)


def restore(agent: Agent, config: Config, source: Checkpoint) -> Agent:
    """Return `agent` with the networks, target networks and optimiser state of another run's checkpoint.

    Its step, random streams and hyperparameters stay its own. The reward range covers both runs, and the statistics
    that normalise observations are the checkpoint's.

    Raises:
        UserError: the networks have other shapes, or observations are normalised in one of the two runs only.
    """
    old = source.agent
    own, theirs = ([leaf.shape for leaf in jax.tree.leaves(a.params)] for a in (agent, old))
    if own != theirs:
        if agent.obs_spec.encoded_by(None) != old.obs_spec.encoded_by(None):
            what = f"observations have {agent.obs_spec} here and {old.obs_spec} there"
        else:
            differ = setting_differences(config.agent.networks(), source.config.agent.networks())
            what = "; ".join(differ) or "actions have another size"
        raise UserError(f"--restore_path={config.restore_path}: its networks do not fit ({what})")
    if config.normalize_observations != source.config.normalize_observations:
        there = source.config.normalize_observations
        raise UserError(f"--restore_path={config.restore_path}: it needs --normalize_observations={there}")
    take = lambda new, of: jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(of))  # noqa: E731
    here, there = agent.value_range, old.value_range
    return dataclasses.replace(
        agent,
        params=take(agent.params, old.params),
        target=take(agent.target, old.target),
        target_actor=agent.target_actor and take(agent.target_actor, old.target_actor or old.params.actor),
        opt_state=take(agent.opt_state, old.opt_state),
        value_range=ValueRange(jnp.minimum(here.r_min, there.r_min), jnp.maximum(here.r_max, there.r_max)),
        obs_stats=old.obs_stats,
    )


def setting_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Describe each setting in which two configurations differ."""
    names = dict.fromkeys((*here, *there))
    return [f"{n} is {here.get(n)} here and {there.get(n)} there" for n in names if here.get(n) != there.get(n)]


def restored_checkpoint(config: Config) -> Checkpoint | None:
    """Load the checkpoint that `restore_path` and `restore_epoch` name, None without `restore_path`.

    Raises:
        UserError: there is no such checkpoint, or `restore_epoch` is given alone.
    """
    if config.restore_path is None:
        if config.restore_epoch is not None:
            raise UserError("--restore_epoch chooses a checkpoint of --restore_path: give that too")
        return None
    return checkpoint.load(Run.open(config.restore_path, makes_env=False).folder / "checkpoints", config.restore_epoch)


def resume_checkpoint(run: Run, step: int) -> Checkpoint:
    """Load the run's checkpoint of `step`. Raises UserError if it does not belong to the run's configuration."""
    folder = run.folder / "checkpoints"
    saved = checkpoint.load(folder, step)
    here, there = (config.to_json() for config in (run.config, saved.config))
    changeable = *marked(Config, Mark.RESUMABLE, Mark.RESUMABLE_OFFLINE), "dataset", "dataset_dir"  # data may be moved
    same = dict.fromkeys(changeable)
    if differ := setting_differences(here | here.pop("agent") | same, there | there.pop("agent") | same):
        raise UserError(f"the checkpoint in {folder} belongs to another configuration: {'; '.join(differ)}")
    return saved


# --- Disk errors ---


@contextlib.contextmanager
def to_error(runs: Sequence[Run]) -> Iterator[None]:
    """Turn errors of writing to the folders of these runs into one line that says what to do; a context manager.

    Raises:
        Failed: in place of an OSError about the folders or their disk.
    """
    try:
        yield
    except OSError as error:
        folders = [run.folder for run in runs]
        if not _concerns(error, folders):
            raise
        raise Failed(_message(error, folders)) from error


def _concerns(error: OSError, folders: Sequence[Path]) -> bool:
    """Return whether an error is about these folders. The error of a full disk may have no file name."""
    if error.filename is None or isinstance(error.filename, int):
        return error.errno in NAMELESS
    path = Path(os.fsdecode(error.filename)).absolute()
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def _message(error: OSError, folders: Sequence[Path]) -> str:
    gone, left = ([folder for folder in folders if folder.is_dir() == there] for there in (False, True))
    command = f"floq train --resume {' '.join(map(str, left))}"
    if gone:
        deleted = f"{' '.join(map(str, gone))} vanished while it was trained, and what was learned there with it"
        return f"{deleted}; the others go on with {command}" if left else f"{deleted}: start it again"
    reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    saved = min((steps(folder / "checkpoints") or [0])[-1] for folder in folders)
    kept = f"the checkpoint of step {saved} is whole" if saved else "there was no checkpoint yet"
    return f"{reason}; {kept}: {REMEDIES.get(error.errno or 0, 'fix this')}, then go on with {command}"
