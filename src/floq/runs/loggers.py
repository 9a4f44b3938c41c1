"""The rows of a run's CSV files once more, for TensorBoard or Weights & Biases, as they are written. On request:
neither package is needed otherwise."""

import abc
import csv
import importlib.util
import io
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from floq.runs.config import Config
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.untrusted import CSV_LIMIT, read_text

# --- Metrics on disk ---

UNKNOWN = "nan"


class CsvLogger:
    """Appends rows to a CSV file; `step` stands first. A file that is there already is continued. A row with further
    columns adds them to the file, with NaN in the rows before; what a row lacks is NaN as well."""

    def __init__(self, path: Path):
        self._path = path
        self._columns: list[str] | None = None
        if path.exists():
            with open(path, newline="") as file:
                self._columns = next(csv.reader(file), None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one row, in the file when this returns, whole. Raises OSError if it cannot be, as on a full disk."""
        row = {"step": step, **metrics}
        if self._columns is not None and (added := [name for name in row if name not in self._columns]):
            self._add(added)
        columns = list(row) if self._columns is None else self._columns
        header = [columns] if self._columns is None else []
        files.append(self._path, _written([*header, [row.get(name, UNKNOWN) for name in columns]]))
        self._columns = columns

    def sync(self) -> None:
        """Have all rows on the disk when this returns."""
        if self._path.exists():
            files.sync(self._path)

    def _add(self, columns: list[str]) -> None:
        with open(self._path, newline="") as file:
            header, *rows = list(csv.reader(file))
        files.replace(self._path, _written([header + columns, *(row + [UNKNOWN] * len(columns) for row in rows)]))
        self._columns = header + columns


def cut_csv(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step` from a file that `CsvLogger` wrote, and those that a crash left incomplete."""
    if not path.exists():
        return
    text = path.read_bytes().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a number that was cut off looks like another number
    header, *rows = list(csv.reader(io.StringIO(whole, newline=""))) or [[]]
    kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) <= last_step]
    if not kept:
        return path.unlink()
    if (content := _written([header, *kept])) != text.encode():
        files.replace(path, content)


def _written(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as they are in the file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def read_csv(path: Path) -> dict[str, list[float]]:
    """The columns of a file that `CsvLogger` wrote. Raises UserError if it is no such file."""
    header, *rows = _rows(path) or [[]]
    try:
        columns = {name: [float(row[place]) for row in rows] for place, name in enumerate(header)}
    except (ValueError, IndexError) as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or move it away to do without it") from error
    return columns if rows else {}


def _rows(path: Path) -> list[list[str]]:
    try:
        return [row for row in csv.reader(io.StringIO(read_text(path, CSV_LIMIT), newline="")) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): mend it, or move it away to do without it") from error


PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""By the name that `--logger` knows, what must be installed."""


class MetricSink(abc.ABC):
    """Takes rows in any order of steps: evaluations come after later rows of the training."""

    @abc.abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a row."""

    @abc.abstractmethod
    def close(self) -> None:
        """Nothing comes any more."""


def check_installed(config: Config) -> None:
    """Raises UserError if a logger that the configuration asks for is not installed."""
    for name in config.logger:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--logger={name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


def metric_sinks(folder: Path, config: Config, step: int) -> list[MetricSink]:
    """The mirrors that a run asks for, for the rows after `step`.

    Raises:
        UserError: one of them cannot begin.
    """
    return [_GuardedSink(name, METRIC_SINKS[name](folder, config, step)) for name in config.logger]


class TensorBoard(MetricSink):
    """Event files in the folder `tensorboard` of the run. What an earlier process wrote of later steps is hidden."""

    def __init__(self, folder: Path, config: Config, step: int):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB(MetricSink):
    """A run of Weights & Biases with the id of the folder, which a resumed run goes on with. The account, or
    `WANDB_MODE=offline`, is the user's, and so are all other settings of that package."""

    def __init__(self, folder: Path, config: Config, step: int):
        import wandb  # pyright: ignore[reportMissingImports]  an extra that tests do without

        try:
            self._run = wandb.init(
                project=config.project_name,
                group=config.run_group,
                id=folder.name,
                name=f"{config.task} seed {config.seed}",
                dir=str(folder),
                config=config.to_json(),
                resume="allow",
                reinit="create_new",  # the runs of a fleet are open at the same time
            )
        except wandb.Error as error:
            said = " ".join(str(error).split())
            raise UserError(f"--logger=wandb: {said}; log in with wandb login, or set WANDB_MODE=offline") from error
        self._run.define_metric("*", step_metric="step")  # its own steps only go up, and evaluations come late

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


METRIC_SINKS: dict[str, Callable[[Path, Config, int], MetricSink]] = {"tensorboard": TensorBoard, "wandb": WandB}


class _GuardedSink(MetricSink):
    """A sink whose failure ends nothing but itself: the CSV files have everything."""

    def __init__(self, name: str, sink: MetricSink):
        self._name = name
        self._sink: MetricSink | None = sink

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda sink: sink.log(step, metrics))

    def close(self) -> None:
        self._try(lambda sink: sink.close())

    def _try(self, act: Callable[[MetricSink], None]) -> None:
        if self._sink is None:
            return
        try:
            act(self._sink)
        except Exception as error:  # of somebody else's code, of whatever kind
            self._sink = None
            print(f"floq: --logger={self._name} failed ({error!r}); training goes on without it", file=sys.stderr)
