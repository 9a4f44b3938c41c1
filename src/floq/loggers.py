"""Metrics on disk: one CSV per stream, complete and readable after every row."""

import csv
from pathlib import Path

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
        """Write one row, on disk when this returns."""
        row = {"step": step, **metrics}
        if self._columns is not None and (added := [name for name in row if name not in self._columns]):
            self._add(added)
        with open(self._path, "a", newline="") as file:
            if self._columns is None:
                self._columns = list(row)
                csv.writer(file).writerow(self._columns)
            csv.DictWriter(file, self._columns, restval=UNKNOWN).writerow(row)

    def _add(self, columns: list[str]) -> None:
        with open(self._path, newline="") as file:
            header, *rows = list(csv.reader(file))
        _replace(self._path, [header + columns, *(row + [UNKNOWN] * len(columns) for row in rows)])
        self._columns = header + columns


def cut_csv(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step` from a file that `CsvLogger` wrote, and a row that a crash left incomplete."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= last_step]
    if not kept:
        return path.unlink()
    _replace(path, [header, *kept])


def _replace(path: Path, rows: list[list[str]]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", newline="") as file:
        csv.writer(file).writerows(rows)
    partial.replace(path)


def read_csv(path: Path) -> dict[str, list[float]]:
    """The columns of a file that `CsvLogger` wrote."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
