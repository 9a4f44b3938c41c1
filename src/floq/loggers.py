"""Metrics on disk: one CSV per stream, complete and readable after every row."""

import csv
from pathlib import Path


class CsvLogger:
    """Appends rows to a CSV file. The first row fixes the columns; `step` stands first. A file that is there already is
    continued.

    Raises:
        ValueError: a later row has a column that the first had not.
    """

    def __init__(self, path: Path):
        self._path = path
        self._columns: list[str] | None = None
        if path.exists():
            with open(path, newline="") as file:
                self._columns = next(csv.reader(file), None)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write one row, on disk when this returns."""
        row = {"step": step, **metrics}
        with open(self._path, "a", newline="") as file:
            if self._columns is None:
                self._columns = list(row)
                csv.writer(file).writerow(self._columns)
            csv.DictWriter(file, self._columns).writerow(row)


def cut_csv(path: Path, last_step: int) -> None:
    """Drop the rows after `last_step` from a file that `CsvLogger` wrote, and a row that a crash left incomplete."""
    if not path.exists():
        return
    with open(path, newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if len(row) == len(header) and int(row[0]) <= last_step]
    if not kept:
        return path.unlink()
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", newline="") as file:
        csv.writer(file).writerows([header, *kept])
    partial.replace(path)


def read_csv(path: Path) -> dict[str, list[float]]:
    """The columns of a file that `CsvLogger` wrote."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else {})}
