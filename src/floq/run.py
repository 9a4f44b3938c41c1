"""The folder of a run: what lies where, and how it is opened again."""

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from floq import checkpoint
from floq.agent import Agent
from floq.config import Config
from floq.errors import UserError
from floq.loggers import read_csv

PACKAGES = ("floq", "jax", "equinox", "optax", "ogbench", "mujoco", "gymnasium", "numpy")


@dataclass(frozen=True)
class Run:
    """A run on disk: `config.json`, `train.csv`, `eval.csv`, `summary.json`, `checkpoints/<step>/`, `plots/`."""

    folder: Path
    config: Config

    @classmethod
    def create(cls, config: Config) -> "Run":
        """Make the folder `save_dir/project/group/env/sd<seed>_<time>_<hash>` and write `config.json`.

        Raises:
            UserError: the folder cannot be written.
        """
        parent = Path(config.save_dir).expanduser() / config.project_name / config.run_group / config.env_name
        stamp = time.strftime("%Y%m%d_%H%M%S")
        folder = parent / f"sd{config.seed:03d}_{stamp}_{config.digest()}"
        try:
            folder.mkdir(parents=True)
            (folder / "checkpoints").mkdir()
            (folder / "plots").mkdir()
            run = cls(folder, config)
            versions = {package: version(package) for package in PACKAGES} | {"python": platform.python_version()}
            run.write_json("config.json", config.to_json() | {"protocol": protocol(config), "versions": versions})
        except FileExistsError as error:
            raise UserError(f"{folder} exists already: wait a second, or give another --run_group") from error
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {folder} ({error.strerror}): choose another --save_dir"
            ) from error
        return run

    @classmethod
    def open(cls, folder: Path | str) -> "Run":
        """An existing run.

        Raises:
            UserError: it is not one.
        """
        folder = Path(folder).expanduser()
        try:
            values = json.loads((folder / "config.json").read_text())
            return cls(folder, Config.from_json({k: v for k, v in values.items() if k not in ("protocol", "versions")}))
        except OSError as error:
            raise UserError(f"{folder} is not a run folder: it has no readable config.json") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder / 'config.json'} is damaged ({error!r})") from error

    def load_agent(self, step: int | None = None) -> Agent:
        """The agent of a checkpoint, by default the newest. Raises UserError if there is none or it is damaged."""
        return checkpoint.load(self.folder / "checkpoints", step)[0]

    def evaluations(self) -> dict[str, list[float]]:
        """The columns of `eval.csv`."""
        return read_csv(self.folder / "eval.csv")

    @property
    def summary(self) -> dict[str, Any]:
        """`summary.json`, which exists once the run has ended."""
        return json.loads((self.folder / "summary.json").read_text())

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file of the run, atomically."""
        partial = self.folder / f".{name}.partial"
        partial.write_text(json.dumps(values, indent=2) + "\n")
        partial.replace(self.folder / name)


def protocol(config: Config) -> str:
    """What a success rate of this run means, in one line."""
    return (
        f"{config.eval_episodes} episodes, success_timing={config.success_timing}, label_timing={config.label_timing}"
    )
