"""Tables with a row for each transition: CSV and parquet files, and data frames."""

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from floq.data.arrays import OpenedDataset, Trajectories, concatenate, from_arrays
from floq.data.formats.files import check_exists, data_files
from floq.data.options import AS_THEY_ARE, DataOptions
from floq.utils.errors import UserError, in_one_line, nearest
from floq.utils.schema import Settings, from_table
from floq.utils.untrusted import check_size

SUFFIXES = (".csv", ".parquet")
OPTIONS = ("columns", "guess_columns")
MAX_HEADER = 2**20  # bytes
CSV_EXPANSION = 4  # bytes of an array for one of text: a digit and a comma become eight bytes
DELIMITERS = ",;\t"

HEADERS = {
    "observations": r"([xso]|obs|observations?|states?)[_.]?\d+|obs|observations?|states?|observation\.state",
    "actions": r"([au]|act|actions?)[_.]?\d+|act|actions?",
    "reward": r"r|rew|rewards?|next\.reward",
    "terminated": r"terminated|terminations?|terminals?",
    "truncated": r"truncated|truncations?|time_?outs?",
    "episode": r"(episode|trajectory|traj)(_?(id|index|number))?",
}
"""How plain headers are called; `done` is none, since it may mean either end."""


@dataclass(frozen=True)
class Columns(Settings):
    """What the columns of a table are. Names of several columns may be patterns, as `x*`."""

    observations: tuple[str, ...]
    """In this order; a column may hold lists of one length."""
    actions: tuple[str, ...]
    """Likewise."""
    reward: str
    """The reward of the transition."""
    terminated: str | None = None
    """True where the transition ends in a true termination; by default nowhere."""
    truncated: str | None = None
    """True where the episode was cut off after it."""
    episode: str | None = None
    """Number or name of the episode; without it, one ends where the flags say so, and with the file."""
    next_observations: tuple[str, ...] = ()
    """The state after the transition; without it, the last transition of a truncated episode is left out."""

    @classmethod
    def of(cls, table: Mapping[str, Any], where: str = "--columns") -> "Columns":
        """Make it from the words of a command line, with commas between names, or from the table of a file."""
        several = [f.name for f in fields(cls) if "tuple" in str(f.type)]
        split = lambda names: [name.strip() for name in names.split(",")] if isinstance(names, str) else [names]  # noqa: E731
        text = lambda x: str(x) if isinstance(x, int) else x  # noqa: E731  # headers may be numbers
        listed = {key: split(x) if key in several and not isinstance(x, list) else x for key, x in table.items()}
        return from_table(
            cls, {k: [*map(text, x)] if isinstance(x, list) else text(x) for k, x in listed.items()}, where
        )


def takes(path: Path) -> bool:
    """Return whether the name is that of a CSV or parquet file, or of a folder with some."""
    return bool(data_files(path, SUFFIXES))


def read(path: Path, options: DataOptions = AS_THEY_ARE) -> OpenedDataset:
    """Read a table, or a folder of them in the order of their names: no episode goes on in the next file.

    Raises:
        UserError: pyarrow is missing, a file is missing or damaged, or its columns are not named or not numbers.
    """
    files, parts, notes, held = data_files(path, SUFFIXES), [], dict[str, None](), 0
    for file in files:
        names = _headers(file)
        columns = Columns.of(options.columns) if options.columns else guess(names)
        if columns is None or not (options.columns or options.guess_columns):
            remedy = (
                "--columns.observations=x,y --columns.actions=u --columns.reward=r, or in a file, --columns=FILE.toml"
            )
            plain = (
                f"; --guess_columns reads them as {described(columns, names)}"
                if columns
                else ", too unlike for --guess_columns"
            )
            raise UserError(f"{file}: name its columns, as in {remedy}; they are {_short(names)}{plain}")
        if not options.columns:
            notes[f"columns are read as {described(columns, names)}"] = None
        table = load(file, [name for f in fields(columns) for name in _named(columns, f.name, names, str(file))], held)
        held += table.nbytes
        part, left_out = trajectories(table, columns, str(file), options.changes_actions)
        parts.append(part)
        if left_out:
            notes["the last transition of each truncated episode is left out: its next state is not in the table"] = (
                None
            )
    joined = concatenate(parts, [file.name for file in files], str(path))
    return OpenedDataset(joined, True, str(path), notes=tuple(notes))


def trajectories(
    table: Any, columns: Columns, source: str = "the table", any_actions: bool = False
) -> tuple[Trajectories, bool]:
    """Make trajectories of a table in memory, of pandas, polars, pyarrow or a mapping of arrays, whose rows are in
    order of time. Returns too whether transitions were left out, since their next state is not there.

    Raises:
        UserError: a column is missing or holds no numbers, or as `from_arrays`.
    """
    there = [str(name) for name in getattr(table, "column_names", getattr(table, "columns", list(table)))]
    wide = lambda field: _stack(table, _named(columns, field, there, source), source)  # noqa: E731
    flag = lambda name: column(table, name, source).astype(bool) if name else np.zeros(rows, bool)  # noqa: E731
    for f in fields(columns):
        _named(columns, f.name, there, source)
    reward = column(table, columns.reward, source)
    rows = len(reward)
    terminated, truncated = flag(columns.terminated), flag(columns.truncated)
    order = np.arange(rows)
    if columns.episode and rows:
        labels = np.asarray(table[columns.episode]).astype(str)
        _, first, label = np.unique(labels, return_index=True, return_inverse=True)
        order = np.argsort(first[label], kind="stable")  # episodes whose rows alternate are taken apart
        truncated |= np.isin(np.arange(rows), order[np.flatnonzero(np.diff(label[order], append=-1))])
    truncated[order[-1:]] = True
    timeouts = truncated & ~terminated
    arrays = {
        "observations": wide("observations")[order],
        "actions": wide("actions")[order],
        "rewards": reward[order],
        "terminals": terminated[order],
        "timeouts": timeouts[order],
    }
    if columns.next_observations:
        arrays["next_observations"] = wide("next_observations")[order]
    data = from_arrays(**arrays, source=source, any_actions=any_actions)
    return data, bool(timeouts.any() and not columns.next_observations)


def guess(names: Sequence[str]) -> Columns | None:
    """Return what columns with plain headers are; None if there are none, or two mean the same."""
    found = {
        field: tuple(name for name in names if re.fullmatch(pattern, name.lower()))
        for field, pattern in HEADERS.items()
    }
    single = ("reward", "terminated", "truncated", "episode")
    if not all(found[field] for field in ("observations", "actions", "reward")):
        return None
    if any(len(found[field]) > 1 for field in single):
        return None
    one: dict[str, Any] = {field: found[field][0] if found[field] else None for field in single}
    return Columns(found["observations"], found["actions"], **one)


def described(columns: Columns, names: Sequence[str]) -> str:
    """Describe what the columns of a table are on one line, and which are not used."""
    named = {f.name: _short(x) for f in fields(columns) if (x := _listed(columns, f.name))}
    unused = [name for name in names if not any(name in _listed(columns, f.name) for f in fields(columns))]
    return "; ".join(f"{field} {text}" for field, text in named.items()) + (
        f"; not used {_short(unused)}" * bool(unused)
    )


def _listed(columns: Columns, field: str) -> tuple[str, ...]:
    named = getattr(columns, field)
    return named if isinstance(named, tuple) else (named,) if named else ()


def _named(columns: Columns, field: str, names: Sequence[str], source: str) -> list[str]:
    """Return the columns of a table that a field names, with patterns filled in where it may name several."""
    found, several = [], isinstance(getattr(columns, field), tuple)
    for name in _listed(columns, field):
        exact = name in names or not several
        matching = [x for x in names if (x == name if exact else fnmatch.fnmatchcase(x, name))]
        if not matching:
            raise UserError(
                f"{source} has no column {name!r} for {field}{nearest(name, names)}: it has {_short(names)}"
            )
        if twice := [name for name in matching if names.count(name) > 1]:
            raise UserError(f"{source} has several columns {twice[0]!r}: rename one")
        found += matching
    return found


def _short(names: Sequence[str]) -> str:
    shown = names if len(names) <= 24 else [*names[:20], f"and {len(names) - 20} more"]
    return " ".join(shown)


def _stack(table: Any, names: Sequence[str], source: str) -> np.ndarray:
    """Return columns side by side, as floats, since a CSV file may write these as whole numbers; one of lists counts as
    many as these are long."""
    columns = [column(table, name, source) for name in names]
    return np.concatenate([x.reshape(len(x), -1).astype(np.float64) for x in columns], axis=1)


def column(table: Any, name: str, source: str) -> np.ndarray:
    """Return a column as numbers, where nothing is given NaN."""
    x = np.asarray(table[name])
    if x.dtype == object and len(x) and isinstance(x[0], list | np.ndarray):
        try:
            x = np.stack([np.asarray(item, np.float64) for item in x])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{source}: column {name!r} holds lists that differ in length, or hold no numbers"
            ) from error
    if x.dtype.kind in "biuf":
        return x
    try:
        return x.astype(np.float64)
    except (TypeError, ValueError):
        row = next(i for i, item in enumerate(x) if not _is_number(item))
        raise UserError(
            f"{source}: column {name!r} is {str(x[row])!r} in row {row}, no number: repair or leave it out"
        ) from None


def _is_number(item: Any) -> bool:
    try:
        np.float64(item)
        return True
    except (TypeError, ValueError):
        return False


def _headers(path: Path) -> list[str]:
    """Return the names of a file's columns."""
    with _explained(path):
        from pyarrow import csv, parquet

        if path.suffix.lower() == ".parquet":
            return list(parquet.read_schema(path).names)
        with csv.open_csv(path, parse_options=_dialect(path)) as stream:
            return list(stream.schema.names)


def load(path: Path, names: Sequence[str], held: int) -> Any:
    """Read some columns of a file, if they fit into memory beside the bytes `held`."""
    with _explained(path):
        from pyarrow import csv, parquet

        if path.suffix.lower() == ".parquet":
            with parquet.ParquetFile(path) as file:
                groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
                chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
                check_size(held + sum(max(8 * x.num_values, x.total_uncompressed_size) for x in chunks), path)
                return file.read(columns=list(names))
        check_size(held + CSV_EXPANSION * path.stat().st_size, path)
        return csv.read_csv(
            path, parse_options=_dialect(path), convert_options=csv.ConvertOptions(include_columns=list(names))
        )


def _dialect(path: Path) -> Any:
    """Return how a CSV file is divided: by what its first line has most of."""
    from pyarrow import csv

    with open(path, "rb") as file:
        header = file.readline(MAX_HEADER)
    return csv.ParseOptions(delimiter=max(DELIMITERS, key=lambda mark: header.count(mark.encode())))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise UserError for whatever a damaged file raises, and where pyarrow is missing."""
    check_exists(path)
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{path}: reading tables needs pyarrow: pip install 'floq[tables]'") from error
    except Exception as error:  # damage raises nearly anything
        raise UserError(f"{path} cannot be read ({in_one_line(error)}): give a table with a row of headers") from error
