"""The folder of a run: what lies where, and how it is opened again."""

import contextlib
import json
import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floq import checkpoint
from floq.agent import Agent
from floq.config import Config
from floq.envs import is_singletask
from floq.errors import UserError
from floq.folders import exclusive, make_folder, user_path
from floq.loggers import read_csv
from floq.versions import version

RECORDS = ("protocol", "versions", "data")  # what config.json holds beside the configuration
PACKAGES = ("floq", "jax", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")


@dataclass(frozen=True)
class Run:
    """A run on disk: `config.json`, `train.csv`, `eval.csv`, `summary.json`, `checkpoints/<step>/`, `plots/`; from
    scratch also `random.npz`."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, config: Config, records: dict[str, dict[str, str]]) -> "Run":
        """Make the folder `save_dir/project/group/env/sd<seed>_<time>_<hash>` and write `config.json`.

        Args:
            config: the resolved configuration.
            records: `versions` of packages and a description of the `data`, to be kept beside it.

        Raises:
            UserError: the folder cannot be written.
        """
        stamp = time.strftime("%Y%m%d_%H%M%S")
        folder = cls.parent(config) / f"sd{config.seed:03d}_{stamp}_{config.digest()}"
        try:
            make_folder(folder)
            (folder / "checkpoints").mkdir()
            (folder / "plots").mkdir()
            run = cls(folder, config)
            run.write_config(records)
        except FileExistsError as error:
            raise UserError(f"{folder} exists already: wait a second, or give another --run_group") from error
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {folder} ({error.strerror}): choose another --save_dir"
            ) from error
        return run

    @staticmethod
    def parent(config: Config) -> Path:
        """The folder in which the run's folder lies."""
        task = re.sub(r"[^-.\w]+", "-", config.task)  # ids of Gymnasium and Minari have slashes and colons
        return user_path(config.save_dir) / config.project_name / config.run_group / task

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run's folder for this process. Raises UserError if another one is at work in it."""
        return exclusive(self.folder, f"another process is at work in {self.folder}: wait for it, or stop it")

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """An existing run.

        Raises:
            UserError: it is not one.
        """
        folder = user_path(folder)
        try:
            values = json.loads((folder / "config.json").read_text())
            return cls(folder, Config.from_json({k: v for k, v in values.items() if k not in RECORDS}))
        except OSError as error:
            raise UserError(f"{folder} is not a run folder: it has no readable config.json") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / 'config.json'} is damaged ({error!r})") from error

    def load_agent(self, step: int | None = None) -> Agent:
        """The agent of a checkpoint, by default the newest. Raises UserError if there is none or it is damaged."""
        return checkpoint.load(self.folder / "checkpoints", step)[0]

    def evaluations(self) -> dict[str, list[float]]:
        """The columns of `eval.csv`; empty before the first evaluation."""
        path = self.folder / "eval.csv"
        return read_csv(path) if path.exists() else {}

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, which exists once the run has ended. Raises UserError if it is not there or damaged."""
        try:
            return dict(json.loads((self.folder / "summary.json").read_text()))
        except FileNotFoundError as error:
            raise UserError(f"{self.folder} has no summary.json: the run has not ended") from error
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{self.folder / 'summary.json'} is damaged: delete it and --resume the run") from error

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / "summary.json").exists()

    @property
    def records(self) -> dict[str, dict[str, str]]:
        """What `config.json` says of the packages (`versions`) and the data (`data`) of the run."""
        values = json.loads((self.folder / "config.json").read_text())
        return {name: values.get(name, {}) for name in ("versions", "data")}

    def write_config(self, records: dict[str, dict[str, str]]) -> None:
        """Write `config.json`: the configuration, the evaluation protocol and the given records."""
        self.write_json("config.json", self.config.to_json() | {"protocol": protocol(self.config)} | records)

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n")
        partial.replace(self.folder / name)


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that matter to a result."""
    return {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}


def protocol(config: Config) -> str:
    """What the evaluations of this run mean, in one line."""
    labels = f"label_timing={config.label_timing}"
    if config.env_name is None:
        return "no environment"
    if not is_singletask(config.env_name):
        return f"{config.eval_episodes} episodes of {config.env_name}"
    return f"{config.eval_episodes} episodes, success_timing={config.success_timing}, {labels}"
