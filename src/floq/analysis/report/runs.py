"""Readers of run folders, which change nothing on disk. Missing, unfinished and damaged files are reported, and do not
stop the reading of others."""

import csv
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from floq.utils.errors import UserError
from floq.utils.files import is_locked, user_path
from floq.utils.untrusted import (
    CSV_LIMIT,
    JSON_LIMIT,
    LARGEST,
    all_printable,
    parse_json,
    printable,
    read_json,
    read_text,
)

State = Literal["running", "stopped", "finished"]
Columns = dict[str, np.ndarray]
RECORDS = {"protocol": str, "versions": dict, "data": dict}  # entries of config.json that are no settings
COUNTS = ("seed", "offline_steps", "online_steps")
NUMBERS = ("eval_episodes", "agent.discount", "agent.reward_scale")  # settings used in calculations
TRAINING = {
    "step",
    *("training/critic/critic_loss", "training/critic/q"),
    *("validation/critic/abs_td_error", "validation/critic/outside_histogram", "validation/critic/mass_at_ends"),
    *("time/epoch_time", "time/total_time"),
}
"""Columns of train.csv that are read, of dozens."""


@dataclass(frozen=True)
class DamagedRun:
    """A run's folder that cannot be read, and the reason."""

    folder: Path
    reason: str


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run, as read from its files.

    `settings` are those of config.json, flat, the agent's as `agent.NAME`; `records` its entries that are no settings.
    `evaluations` and `training` are the columns of the two CSV files, empty before their first row. `problems` lists
    files that could not be read. `changed` is the time of the last write to a file, in seconds since 1970.
    """

    folder: Path
    settings: dict[str, Any]
    records: dict[str, Any]
    state: State
    summary: dict[str, Any]
    evaluations: Columns
    training: Columns
    problems: tuple[str, ...]
    changed: float
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
        if not dataset:
            return str(env_name)
        data = Path(dataset).stem if dataset.endswith((".npz", ".hdf5", ".h5")) else Path(dataset).name
        return f"{env_name} on {data}" if env_name else data

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
    records = [read_run(folder) for folder in folders]
    return [r for r in records if isinstance(r, RunRecord)], [r for r in records if isinstance(r, DamagedRun)]


def read_run(folder: Path) -> RunRecord | DamagedRun:
    """Read one run in any state."""
    locked = is_locked(folder)  # before its files are read: a run that ends meanwhile has a summary by then
    try:
        config = all_printable(read_json(folder / "config.json"))
        settings = _checked(config)
        records = {name: config[name] for name, kind in RECORDS.items() if isinstance(config.get(name), kind)}
    except (OSError, ValueError) as error:
        return DamagedRun(folder, f"config.json: {_line(error)}")
    problems: list[str] = []
    summary: dict[str, Any] = {}
    if (folder / "summary.json").exists():
        try:
            summary = read_json(folder / "summary.json")
        except (OSError, ValueError) as error:
            problems.append(f"summary.json: {_line(error)}")
    evaluations, training = (
        _columns_or(folder / name, wanted, problems) for name, wanted in (("eval.csv", None), ("train.csv", TRAINING))
    )
    state: State = "finished" if summary else "running" if locked else "stopped"
    changed = max(_changed(folder / name) for name in ("config.json", "train.csv", "eval.csv", "summary.json"))
    diverged, rewinds = _divergence(folder, problems)
    found = tuple(problems)
    return RunRecord(
        folder, settings, records, state, summary, evaluations, training, found, changed, diverged, rewinds
    )


def _divergence(folder: Path, problems: list[str]) -> tuple[dict[str, Any], int]:
    """Read diverged.json, and the number of returns to earlier weights; damage is added to the problems."""
    diverged: dict[str, Any] = {}
    rewinds = 0
    try:
        if (folder / "diverged.json").exists():
            content = read_json(folder / "diverged.json")
            diverged = {"step": int(content["step"]), "term": all_printable(str(content["term"]))}
        if (folder / "rewinds.json").exists():
            rewinds = len(parse_json(read_text(folder / "rewinds.json", JSON_LIMIT)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"diverged.json or rewinds.json: {_line(error)}")
    return diverged, rewinds


def _columns_or(path: Path, wanted: set[str] | None, problems: list[str]) -> Columns:
    """Read the columns of a file; none if it is missing, or damaged, which is added to the problems."""
    try:
        return read_columns(path, wanted)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        problems.append(f"{path.name}: {_line(error)}")
        return {}


def read_columns(path: Path, wanted: set[str] | None = None) -> Columns:
    """Read the columns of a file that `CsvLogger` wrote, with `step`; none if it has no row yet. An incomplete last row
    is left out, since the run may be writing it.

    Raises:
        OSError, csv.Error: it cannot be read.
        ValueError: it is no such file; the message names the line.
    """
    text = read_text(path, CSV_LIMIT)
    header, *rows = list(csv.reader(text.splitlines())) or [[]]
    if rows and (not text.endswith("\n") or len(rows[-1]) != len(header)):
        rows.pop()
    if not rows:
        return {}
    if header[:1] != ["step"]:
        raise ValueError(f"its first column is {header[0] if header else ''!r}, not step")
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ValueError(f"line {number} has {len(row)} cells, the header {len(header)}")
    indices = {name: index for index, name in enumerate(header) if wanted is None or name in wanted}
    try:
        columns = {name: np.array([float(row[index]) for row in rows]) for name, index in indices.items()}
    except ValueError as error:
        raise ValueError(f"{error} in a column of numbers") from error
    steps = columns["step"]
    if not (np.diff(steps) > 0).all() or not (abs(steps) < LARGEST).all():
        raise ValueError("its steps do not increase")
    return {printable(name): column for name, column in columns.items()}


def _checked(config: Any) -> dict[str, Any]:
    """Return the settings of config.json as a flat mapping. Raises ValueError if a setting that a report needs is
    missing."""
    if not isinstance(config, dict) or not isinstance(config.get("agent"), dict):
        raise ValueError("not the configuration of a run: it has no agent")
    settings = {name: value for name, value in config.items() if name not in (*RECORDS, "agent")}
    settings |= {f"agent.{name}": value for name, value in config["agent"].items()}
    needed: dict[str, type | tuple[type, ...]] = dict.fromkeys(COUNTS, int)
    needed |= {"env_name": (str, type(None)), "agent.critic": str, "agent.actor": str}
    if "dataset" in settings:
        needed["dataset"] = (str, type(None))
    for name, kind in needed.items():
        if not isinstance(settings.get(name, ...), kind):
            raise ValueError(f"{name} is {settings[name]!r}" if name in settings else f"it has no {name}")
    if negative := [name for name in COUNTS if settings[name] < 0]:
        raise ValueError(f"{negative[0]} is {settings[negative[0]]}")
    for name in NUMBERS:
        if not isinstance(settings.get(name, 0), int | float | None):
            raise ValueError(f"{name} is {settings[name]!r}, and no number")
    if not (settings["env_name"] or isinstance(settings.get("dataset"), str)):
        raise ValueError("it names neither an environment nor data")
    return settings


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _line(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not text"
    return " ".join(str(error).split())
