"""Metrics on disk: one CSV per stream, complete and readable after every row."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from floq import durable
from floq.errors import UserError
from floq.untrusted import CSV_LIMIT, read_text

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
        durable.append(self._path, _written([*header, [row.get(name, UNKNOWN) for name in columns]]))
        self._columns = columns

    def sync(self) -> None:
        """Have all rows on the disk when this returns."""
        if self._path.exists():
            durable.sync(self._path)

    def _add(self, columns: list[str]) -> None:
        with open(self._path, newline="") as file:
            header, *rows = list(csv.reader(file))
        durable.replace(self._path, _written([header + columns, *(row + [UNKNOWN] * len(columns) for row in rows)]))
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
        durable.replace(path, content)


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
