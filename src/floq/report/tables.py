"""The tables of a report: plain cells, which a page and Markdown both write out."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from floq.analysis.statistics import Estimate


class Text(NamedTuple):
    """What stands in a cell. `faint`: it is no result. `folder`: of the run that it leads to."""

    text: str
    faint: bool = False
    folder: str = ""


@dataclass(frozen=True)
class Table:
    """The first column is text, the others are numbers if `numbers`. `notes` explain it."""

    header: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    notes: tuple[str, ...] = ()
    numbers: bool = True


def table(
    header: Sequence[str], rows: Sequence[Sequence[Text | str]], notes: Sequence[str] = (), numbers=True
) -> Table:
    """A table of cells, of which those that are plain text may be given as such."""
    cells = tuple(tuple(Text(cell) if isinstance(cell, str) else cell for cell in row) for row in rows)
    return Table(tuple(header), cells, tuple(notes), numbers)


def with_interval(estimate: Estimate, shown: Callable[[float], str]) -> str:
    """`0.42 [0.30, 0.54]`; without the brackets where the interval is not known."""
    value, low, high = estimate
    return f"{shown(value)} [{shown(low)}, {shown(high)}]" if math.isfinite(low) else shown(value)


def listed(names: Sequence[str], most: int = 12, comma: str = ", ") -> str:
    """The first of these names, and how many there are besides."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return comma.join(names[:most]) + more


def short_task(task: str) -> str:
    """`pointmaze-large-navigate-singletask-task5-v0` -> `pointmaze-large-navigate-task5`."""
    return task.replace("-singletask", "").replace("-v0", "")


def link(run: str, folder: Path) -> str:
    """The address of a run's folder, as seen from another folder."""
    return quote(os.path.relpath(run, folder).replace(os.sep, "/")) + "/"
