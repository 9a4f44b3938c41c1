"""Metrics of a run: its CSV files, and optional copies of their rows for TensorBoard or Weights & Biases, which are
imported on request only."""

import contextlib
import csv
import importlib.util
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from floq.runs.config import Config
from floq.utils import files
from floq.utils.errors import UserError, in_one_line
from floq.utils.untrusted import CSV_LIMIT, LARGEST, printable, read_text

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""Package to be installed for each value of `--logger`."""

MISSING = "nan"

# --- CSV files ---


class CsvLogger:
    """Appends rows to a CSV file, new or existing; `step` is the first column. New columns of a row are added to the
    file, with NaN in earlier rows; columns that a row lacks are NaN as well."""

    def __init__(self, path: Path):
        self._path = path
        self._columns: list[str] | None = None
        if path.exists():
            with open(path, newline="") as file:
                self._columns = next(csv.reader(file), None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one whole row before returning. Raises OSError if that fails, as on a full disk."""
        row = {"step": step, **metrics}
        header, columns = [], self._columns
        if columns is None:
            header = [columns := list(row)]
        elif added := [name for name in row if name not in columns]:
            columns = self._add_columns(added)
        files.append(self._path, _encoded([*header, [row.get(name, MISSING) for name in columns]]))
        self._columns = columns

    def sync(self) -> None:
        """Flush all rows to the disk before returning."""
        if self._path.exists():
            files.sync(self._path)

    def _add_columns(self, columns: list[str]) -> list[str]:
        with open(self._path, newline="") as file:
            header, *rows = list(csv.reader(file))
        files.replace(self._path, _encoded([header + columns, *(row + [MISSING] * len(columns) for row in rows)]))
        return header + columns


def cut_csv(path: Path, last_step: int) -> None:
    """Delete the rows after `last_step` and incomplete rows, as after a crash, from a file that `CsvLogger` wrote."""
    if not path.exists():
        return
    text = path.read_bytes().decode(errors="replace")
    whole = text[: text.rfind("\n") + 1]  # a truncated number would be read as another number
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(whole, newline="")) if row] or [[]]
    except csv.Error as error:
        raise UserError(f"{path} is damaged ({error}): repair it, or move it away to do without it") from error
    kept = [row for row in rows if len(row) == len(header) and row[0].isdecimal() and int(row[0]) <= last_step]
    if not kept:
        return path.unlink()
    if (content := _encoded([header, *kept])) != text.encode():
        files.replace(path, content)


def read_csv(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, list[float]]:
    """Return the columns of a file that `CsvLogger` wrote, of those whose name is `wanted`; none if there is no such
    file or it has no row yet. An incomplete last row is left out: a run may be writing it.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        text = read_text(path, CSV_LIMIT)
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row] or [[]]
        if rows and (not text.endswith("\n") or len(rows[-1]) != len(header)):
            rows.pop()
        if not rows:
            return {}
        if header[0] != "step":
            raise ValueError(f"its first column is {header[0]!r}, not step")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ValueError(f"line {number} has {len(row)} cells, the header {len(header)}")
        places = {printable(name): place for place, name in enumerate(header) if place == 0 or wanted(name)}
        columns = {name: [float(row[place]) for row in rows] for name, place in places.items()}
        if not all(a < b for a, b in itertools.pairwise([-LARGEST, *columns["step"], LARGEST])):
            raise ValueError("its steps do not increase")
        return columns
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"{path} is damaged ({in_one_line(error)}): repair it, or move it away to do without it"
        ) from error


def _encoded(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as the bytes of a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


# --- TensorBoard, Weights & Biases ---


def check_loggers(config: Config) -> None:
    """Raise UserError if the package of a configured logger is not installed."""
    for name in config.logger:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--logger={name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


class MetricSinks:
    """The configured copies of a run's rows after `step`. Rows may come in any order of steps: those of an evaluation
    come after later ones of training. A sink that fails is dropped, since the CSV files hold all rows.

    Raises UserError if a sink cannot be opened.
    """

    def __init__(self, folder: Path, config: Config, step: int):
        self._sinks: dict[str, Any] = {}
        for name in config.logger:
            try:
                self._sinks[name] = METRIC_SINKS[name](folder, config, step)
            except Exception as error:  # third-party code may raise anything
                remedy = "log in with wandb login, or set WANDB_MODE=offline" if name == "wandb" else "mend that"
                raise UserError(
                    f"--logger={name} cannot be opened ({in_one_line(error)}): {remedy}, or do without it, "
                    "with --logger="
                ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log a row."""
        self._each(lambda sink: sink.log(step, metrics))

    def close(self) -> None:
        """Close the sinks; no rows follow."""
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Any], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                act(sink)
            except (Exception, SystemExit) as error:
                del self._sinks[name]
                with contextlib.suppress(OSError, ValueError):  # there may be no terminal any more
                    line = f"floq: --logger={name} failed ({error!r}); training goes on without it"
                    print(printable(line), file=sys.stderr)


class TensorBoard:
    """Event files in the folder `tensorboard` of the run. Events of later steps by an earlier process are hidden."""

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


class WandB:
    """A run of Weights & Biases whose id is the folder's name, so that a resumed run continues it. The account, or
    `WANDB_MODE=offline`, and all other settings of that package are the user's."""

    def __init__(self, folder: Path, config: Config, step: int):
        import wandb  # pyright: ignore[reportMissingImports]  an extra that tests do without

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
        self._run.define_metric("*", step_metric="step")  # its own steps must increase, and evaluations come late

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


METRIC_SINKS: dict[str, Callable[[Path, Config, int], Any]] = {"tensorboard": TensorBoard, "wandb": WandB}
