"""Runs as reports read them: from their folders, in any state and of any version, or from the rows of tidy CSV files.
Nothing on disk is changed. Missing, unfinished and damaged files are reported, and do not stop the reading of the
others."""

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from floq.runs.config import task_name
from floq.runs.loggers import read_csv
from floq.runs.run import RECORDS, read_record
from floq.utils.errors import UserError, in_one_line
from floq.utils.files import is_locked, user_path
from floq.utils.schema import NonNegative, Seed, convert
from floq.utils.untrusted import all_printable, read_json

State = Literal["running", "stopped", "finished"]
Columns = dict[str, np.ndarray]
FILES = ("config.json", "train.csv", "eval.csv", "summary.json")
SETTINGS: dict[str, Any] = {"seed": Seed, "offline_steps": NonNegative, "online_steps": NonNegative}  # used in reports
SETTINGS |= {"agent.critic": str, "agent.actor": str, "env_name": str | None, "dataset": str | None}
SETTINGS |= dict.fromkeys(("eval_episodes", "agent.discount", "agent.reward_scale"), float | None)
SUCCESS_RATE = "evaluation/success"
LOSSES = ("training/critic/critic_loss", "training/critic/q")
TIMES = ("time/epoch_time", "time/total_time")
OF_CRITIC = "validation/critic/"
"""Prefix of the critic's diagnostic metrics in train.csv, which are read with the losses and the times."""


@dataclass(frozen=True)
class DamagedRun:
    """A run's folder that cannot be read, and the reason."""

    folder: Path
    reason: str


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run, as read from its files.

    `settings` are those of config.json, flat, the agent's as `agent.NAME`; `records` its entries that are no settings.
    `summary` is that of summary.json, where a sweep adds the agent's cost. `evaluations` and `training` are the columns
    of the two CSV files, empty before their first row. `problems` lists files that could not be read. `changed` is the
    time of the last write to a file, in seconds since 1970.
    """

    folder: Path
    settings: dict[str, Any]
    records: dict[str, Any] = field(default_factory=dict)
    state: State = "finished"
    summary: dict[str, Any] = field(default_factory=dict)
    evaluations: Columns = field(default_factory=dict)
    training: Columns = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    changed: float = 0.0
    diverged: dict[str, Any] = field(default_factory=dict)  # diverged.json: the step, and the term that was not finite
    rewinds: int = 0  # number of returns to earlier weights

    @property
    def seed(self) -> int:
        """Random seed of the run."""
        return self.settings["seed"]

    @cached_property
    def task(self) -> str:
        """Environment id, with the name of the data if it is not the environment's own; else the name of the data."""
        env_name, dataset = self.settings["env_name"], self.settings.get("dataset")
        data = Path(task_name(None, dataset)).name
        return f"{env_name} on {data}" if env_name and data else env_name or data

    @cached_property
    def family(self) -> str:
        """Common name of all tasks that share an environment and its data: `cube-double-play`."""
        return re.sub(r"-singletask(-task\d+)?(-v\d+)?", "", self.task)

    @property
    def boundary(self) -> int:
        """Step at which the run goes online; 0 if it has only one phase."""
        return self.settings["offline_steps"] if self.settings["online_steps"] else 0

    @property
    def total_steps(self) -> int:
        """Number of offline and online steps that the run is configured for."""
        return self.settings["offline_steps"] + self.settings["online_steps"]

    @property
    def step(self) -> int:
        """Last logged step."""
        logged = [columns["step"][-1] for columns in (self.training, self.evaluations) if columns]
        return int(max([*logged, np.nan_to_num(self.summary_value("steps"))]))

    @property
    def ends(self) -> bool:
        """Whether the run has finished, so that its last evaluation is a result."""
        return self.state == "finished"

    @property
    def seconds(self) -> float:
        """Time from start to end, or to the newest row; NaN before the first row."""
        known = [c["time/total_time"][-1] for c in (self.training, self.evaluations) if "time/total_time" in c]
        total = self.summary_value("seconds")
        return float(max(known, default=math.nan)) if math.isnan(total) else total

    @property
    def steps_per_second(self) -> float:
        """Speed of training in the newest row of train.csv; NaN before the first row."""
        if "time/epoch_time" not in self.training:
            return math.nan
        seconds = float(self.training["time/epoch_time"][-1])
        return 1 / seconds if seconds > 0 else math.nan

    @property
    def diverged_at(self) -> int | None:
        """Step at which training found a term that is not finite; None if it found none."""
        return int(self.diverged["step"]) if self.diverged else None

    def summary_value(self, name: str) -> float:
        """Return a number of summary.json; NaN if there is none."""
        found = self.summary.get(name)
        return float(found) if isinstance(found, int | float) else math.nan

    def last(self, column: str) -> float:
        """Return the newest number of a column of train.csv; NaN if there is none."""
        values = self.training.get(column)
        return float(values[-1]) if values is not None else math.nan


def find_runs(paths: Sequence[str | Path]) -> list[Path]:
    """Find the run folders among these folders and below them, in the order of their names.

    Raises:
        UserError: a path is not there, or none of them has a run in it.
    """
    found: dict[Path, None] = {}
    for path in map(user_path, paths):
        if not path.is_dir():
            what = "is a file" if path.exists() else "is not there"
            raise UserError(f"{path} {what}: give run folders, or a folder above them, such as exp")
        for folder, below, files in os.walk(path):
            below.sort()
            if "config.json" in files:
                found[Path(os.path.abspath(folder))] = None
                below.clear()  # do not search checkpoints and pictures
    if not found:
        listed = ", ".join(map(str, paths))
        raise UserError(f"no run in {listed}: a run's folder has a config.json; floq train makes one below exp")
    return list(found)


def read_runs(folders: Iterable[Path]) -> tuple[list[RunRecord], list[DamagedRun]]:
    """Read the runs in these folders; returns them, and the folders that cannot be read."""
    found = [read_run(folder) for folder in folders]
    return [r for r in found if isinstance(r, RunRecord)], [r for r in found if isinstance(r, DamagedRun)]


def read_run(folder: Path) -> RunRecord | DamagedRun:
    """Read one run in any state."""
    locked = is_locked(folder)  # before its files are read: a run that ends meanwhile has a summary by then
    try:
        config = all_printable(read_json(folder / "config.json"))
        settings = flat_settings(config)
    except Exception as error:  # one folder must not keep the others from being reported
        return DamagedRun(folder, all_printable(f"config.json: {in_one_line(error)}"))
    problems: list[str] = []

    def read(reader: Callable[..., Any], name: str, *given: Any) -> Any:
        try:
            return reader(folder / name, *given)
        except UserError as error:
            problems.append(all_printable(str(error).removeprefix(f"{folder}{os.sep}")))
            return {}

    summary = read(read_record, "summary.json")
    evaluations, training = (
        {column: np.array(numbers) for column, numbers in read(read_csv, name, wanted).items()}
        for name, wanted in (("eval.csv", lambda column: True), ("train.csv", _is_reported))
    )
    if (np.abs(evaluations.get(SUCCESS_RATE, np.zeros(0)) - 0.5) > 0.5).any():
        problems.append(f"eval.csv is damaged ({SUCCESS_RATE} lies outside [0, 1]): repair it, or move it away")
        evaluations = {}
    return RunRecord(
        folder,
        settings,
        records={name: config[name] for name, kind in RECORDS.items() if isinstance(config.get(name), kind)},
        state="finished" if summary else "running" if locked else "stopped",
        summary=summary,
        evaluations=evaluations,
        training=training,
        diverged=all_printable(read(read_record, "diverged.json", dict, "step")),
        rewinds=len(read(read_record, "rewinds.json", list, "step")),
        problems=tuple(problems),
        changed=max(path.stat().st_mtime for name in FILES if (path := folder / name).exists()),
    )


def _is_reported(column: str) -> bool:
    return column in (*LOSSES, *TIMES) or column.startswith(OF_CRITIC)


def flat_settings(config: Any) -> dict[str, Any]:
    """Return the settings of config.json, flat, the agent's as `agent.NAME`. Raises ValueError or UserError if one that
    a report needs is missing."""
    if not isinstance(config, dict) or not isinstance(config.get("agent"), dict):
        raise ValueError("not the configuration of a run: it has no agent")
    settings = {"env_name": None, "dataset": None}
    settings |= {name: value for name, value in config.items() if name not in (*RECORDS, "agent")}
    settings |= {f"agent.{name}": value for name, value in config["agent"].items()}
    for name, kind in SETTINGS.items():
        convert(name, settings.get(name), kind)
    if not (settings["env_name"] or settings["dataset"]):
        raise ValueError("it names neither an environment nor data")
    return settings
