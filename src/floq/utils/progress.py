"""What a command shows while it works: live bars on a terminal, plain lines elsewhere, nothing if asked."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from floq.utils.untrusted import printable


class _Output:
    """A stream that may go away, as a terminal or a pipe that is closed, or a file on a disk that is full: what is said
    then is lost, and the work goes on."""

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
        output: Any = _Output(sys.stdout)
        self._console = Console(file=output, quiet=not show, highlight=False)
        self._progress: Progress | None = None
        self._depth = 0

    def note(self, text: str) -> None:
        """One line that stays."""
        self._console.print(printable(text), markup=False, soft_wrap=True)

    def table(self, title: str, rows: Mapping[str, str]) -> None:
        """A short table of names and values."""
        table = Table(
            title=_plain(title), title_justify="left", title_style="bold", show_header=False, box=None, padding=(0, 2)
        )
        table.add_column(style="dim", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(_plain(name), _plain(value))
        self._console.print(table)

    def columns(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table with a header; the first column is text, which is folded where the terminal is narrow, the others are
        numbers."""
        table = Table(title=_plain(title), title_justify="left", title_style="bold", box=None, padding=(0, 0, 0, 1))
        for number, name in enumerate(header):
            table.add_column(_plain(name), justify="right" if number else "left", no_wrap=number > 0)
        for row in rows:
            table.add_row(*map(_plain, row))
        self._console.print(table)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, start: int = 0) -> Iterator[Callable[..., None]]:
        """A bar from `start` to `total`. Yields `update(done, **what)`, where `what` is shown behind the bar.

        Where there is no terminal, every fifth part and every update with `line=True` becomes a line; a bar within a
        bar stays silent.
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
        outermost = self._progress is None
        progress = self._progress
        if progress is None:
            numbers = Column(no_wrap=True, overflow="ellipsis", ratio=1)  # this column gives way on a narrow terminal
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

        def update(done: int, line: bool = False, **what: Any) -> None:
            progress.update(task, completed=done, what=_shown(what))

        try:
            yield update
        finally:
            if outermost:
                progress.stop()
                self._progress = None
            else:
                progress.remove_task(task)

    def _plain_lines(self, name: str, total: int, start: int) -> Callable[..., None]:
        started, last = time.monotonic(), start

        def update(done: int, line: bool = False, **what: Any) -> None:
            nonlocal last
            if line or (done - last) * 5 >= total:
                last = done
                elapsed = time.monotonic() - started
                left = elapsed * (total - done) / max(1, done - start)
                self.note(f"{name} {done}/{total}  {elapsed:.0f} s, {left:.0f} s left  {_shown(what)}".rstrip())

        return update


def _plain(text: str) -> Text:
    """A text of which Rich takes no part for its markup."""
    return Text(printable(text))


def _shown(what: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value}" for name, value in what.items())
