"""Progress output of commands: live bars on a terminal, plain lines elsewhere, nothing if silenced."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from floq.utils.errors import in_one_line
from floq.utils.untrusted import printable

MIN_TEXT = 12  # characters of a first column that stay however narrow a terminal is


class _TolerantStream:
    """A stream that ignores errors of writing, as of a closed terminal or pipe, or a full disk."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Notes, bars and tables for one command. `show=False` makes all of them silent."""

    def __init__(self, show: bool = True):
        output: Any = _TolerantStream(sys.stdout)
        self._console = Console(file=output, quiet=not show, highlight=False)
        self._progress: Progress | None = None  # of the bars that are shown
        self._depth = 0  # number of these bars

    def note(self, text: str) -> None:
        """Print one line that stays."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """Turn an exception within the context into a note with its cause: for what only shows a result that is kept,
        as a picture does."""
        try:
            yield
        except Exception as error:  # Matplotlib, environments and loggers may raise anything
            self.note(f"warning no {what}: {in_one_line(error)}")

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """Print a short table of names and values."""
        columns = Column(style="dim", no_wrap=True), Column(overflow="fold")
        self._print_table(title, columns, rows.items(), show_header=False, padding=(0, 2))

    def columns(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table with a header; the first column is text, which is folded on a narrow terminal, the others are
        numbers."""
        columns = [Column(_plain_text(name), justify="right", no_wrap=True) for name in header]
        longest = max((len(row[0]) for row in rows), default=0)
        columns[0] = Column(_plain_text(header[0]), min_width=min(longest, MIN_TEXT))
        self._print_table(title, columns, rows, padding=(0, 0, 0, 1))

    def _print_table(self, title: str, columns: Iterable[Column], rows: Iterable[Sequence[str]], **layout: Any) -> None:
        title_layout = {"title": _plain_text(title), "title_justify": "left", "title_style": "bold"}
        table = Table(*columns, **title_layout, box=None, **layout)
        for row in rows:
            table.add_row(*map(_plain_text, row))
        self._console.print(table)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
        """Show a bar from `start` to `total`. Yields `update(done, **what)`, where `what` is shown behind the bar.

        Without a terminal, every fifth of `total` and every update with `line=True` prints a line; a bar within a bar
        is silent.
        """
        self._depth += 1
        try:
            if self._console.is_terminal and not self._console.quiet:
                with self._live_bar(name, total, start) as update:
                    yield update
            elif self._depth == 1:
                yield self._plain_lines(name, total, start)
            else:
                yield lambda done, line=False, **what: None
        finally:
            self._depth -= 1

    @contextlib.contextmanager
    def _live_bar(self, name: str, total: int, start: int) -> Iterator[Callable[..., None]]:
        if (progress := self._progress) is None:
            numbers = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # this column shrinks on a narrow terminal
            progress = self._progress = Progress(
                TextColumn("{task.description}", table_column=Column(min_width=8)),
                BarColumn(bar_width=12, table_column=Column(min_width=12)),
                TextColumn("{task.completed:.0f}/{task.total:.0f}", table_column=Column(min_width=11)),
                TimeRemainingColumn(compact=True, elapsed_when_finished=False, table_column=Column(min_width=5)),
                TextColumn("left", table_column=Column(min_width=4)),
                TextColumn("{task.fields[what]}", table_column=numbers),
                console=self._console,
                expand=True,
            )
            progress.start()
        task = progress.add_task(name, total=total, completed=start, what="")
        try:
            yield lambda done, line=False, **what: progress.update(task, completed=done, what=_format_values(what))
        finally:
            if self._depth > 1:
                progress.remove_task(task)
            else:
                progress.stop()
                self._progress = None

    def _plain_lines(self, name: str, total: int, start: int) -> Callable[..., None]:
        started, last = time.monotonic(), start

        def update(done: int, line: bool = False, **what: Any) -> None:
            nonlocal last
            if line or (done - last) * 5 >= total:
                last = done
                elapsed = time.monotonic() - started
                left = elapsed * (total - done) / max(1, done - start)
                self.note(f"{name} {done}/{total}  {elapsed:.0f} s, {left:.0f} s left  {_format_values(what)}".rstrip())

        return update


def _plain_text(text: str) -> Text:
    """Return a text that Rich does not parse as markup."""
    return Text(printable(text))


def _format_values(what: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in what.items())
