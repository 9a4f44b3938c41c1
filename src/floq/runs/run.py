"""Folder of a run: its files, how it is created and opened, and readable messages for errors of its disk."""

import contextlib
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

from floq.agent.agent import Agent
from floq.envs.ogbench import is_singletask
from floq.runs import checkpoint
from floq.runs.checkpoint import steps
from floq.runs.config import Config
from floq.runs.loggers import cut_csv, read_csv
from floq.utils import files
from floq.utils.errors import Failed, UserError, in_one_line
from floq.utils.files import lock_folder, make_folder, user_path
from floq.utils.machine import version
from floq.utils.untrusted import JSON_LIMIT, check_environment, check_links, consent, parse_json, read_json, read_text

RECORDS = ("protocol", "versions", "data")  # entries of config.json beside the configuration
PACKAGES = ("floq", "jax", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")

REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some of the quota", errno.EFBIG: "raise the limit"}
REMEDIES |= dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "make the folder writable")
NAMELESS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE)  # errors of a disk without a file's name


@dataclass(frozen=True)
class Run:
    """A run on disk: `config.json`, `train.csv`, `eval.csv`, `summary.json`, `checkpoints/<step>/`, `plots/`; if it is
    from scratch also `random.npz`, and if it diverged `diverged.json` or `rewinds.json`."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, config: Config, records: dict[str, dict[str, str]]) -> "Run":
        """Make the folder `save_dir/project/group/env/sd<seed>_<time>_<hash>` and write `config.json`.

        Args:
            config: the resolved configuration.
            records: `versions` of packages and a description of the `data`, stored beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        stamp = time.strftime("%Y%m%d_%H%M%S")
        folder = cls.parent(config) / f"sd{config.seed:03d}_{stamp}_{config.digest()}"
        partial = folder.with_name(f".{folder.name}.partial")  # a folder with a run's name must be complete
        try:
            if folder.exists():
                raise FileExistsError(folder)
            make_folder(partial)
            (partial / "checkpoints").mkdir()
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
        except OSError as error:
            raise UserError(f"{folder} is not a run folder: it has no readable config.json") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error})") from error
        try:
            config = Config.from_json({name: x for name, x in values.items() if name not in RECORDS})
        except UserError as error:
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
        return read_record(self.folder / "summary.json", {})

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its last step."""
        return (self.folder / "summary.json").exists()

    @property
    def diverged(self) -> dict[str, Any]:
        """`diverged.json`: at which step the run diverged and stopped, which term was not finite, and the metrics of
        that update. Empty if it did not."""
        return read_record(self.folder / "diverged.json", {}, "step")

    @property
    def rewinds(self) -> list[dict[str, Any]]:
        """`rewinds.json`: at which steps the run went back to earlier weights, and to those of which step."""
        return read_record(self.folder / "rewinds.json", [], "step")

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to train: the run is finished, or diverged and stopped."""
        return self.is_finished or bool(self.diverged)

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        """Records of `config.json` about the packages (`versions`) and the data (`data`) of the run: texts and lists of
        texts."""
        values = read_json(self.folder / "config.json")
        found = {name: values.get(name) for name in ("versions", "data")}
        kept = {name: x if isinstance(x, dict) else {} for name, x in found.items()}
        return {name: {key: x for key, x in record.items() if _is_text(x)} for name, record in kept.items()}

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
        content = json.dumps(_without_nan(values), indent=2, allow_nan=False) + "\n"
        files.replace(self.folder / name, content.encode())

    def remove_temp_files(self) -> None:
        """Delete half-written files of a killed process."""
        for partial in self.folder.glob(".*.partial"):
            partial.unlink(missing_ok=True)


def read_record(path: Path, default: Any, whole_number: str | None = None) -> Any:
    """Read a JSON file that not all runs have: an object, or a list of objects, like `default`, in each of which an
    entry is a `whole_number`. Raises UserError if it is damaged."""
    try:
        found = parse_json(read_text(path, JSON_LIMIT))
        if type(found) is not type(default):
            raise ValueError(f"it holds no JSON {'object' if isinstance(default, dict) else 'list'}")
        for one in [found] if isinstance(found, dict) else found:
            if whole_number is not None and type(one[whole_number]) is not int:
                raise ValueError(f"its {whole_number} is {one[whole_number]!r}")
        return found
    except FileNotFoundError:
        return default
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
    if config.env_name is None:
        return "no environment"
    if not is_singletask(config.env_name):
        return f"{config.eval_episodes} episodes of {config.env_name}"
    return f"{config.eval_episodes} episodes, success_timing={config.success_timing}, {labels}"


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
    if error.filename is None:
        return error.errno in NAMELESS
    path = Path(os.fsdecode(error.filename)).absolute() if not isinstance(error.filename, int) else Path()
    return any(path.is_relative_to(folder.absolute()) for folder in folders)


def _message(error: OSError, folders: Sequence[Path]) -> str:
    reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
    gone = [folder for folder in folders if not folder.is_dir()]
    left = [folder for folder in folders if folder not in gone]
    command = f"floq train --resume {' '.join(map(str, left))}"
    if gone:
        deleted = f"{' '.join(map(str, gone))} vanished while it was trained, and what was learned there with it"
        return f"{deleted}; the others go on with {command}" if left else f"{deleted}: start it again"
    saved = min((steps(folder / "checkpoints") or [0])[-1] for folder in folders)
    kept = f"the checkpoint of step {saved} is whole" if saved else "there was no checkpoint yet"
    return f"{reason}; {kept}: {REMEDIES.get(error.errno or 0, 'fix this')}, then go on with {command}"
