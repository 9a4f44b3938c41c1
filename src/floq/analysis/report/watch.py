"""Live table of runs in the terminal, for `floq watch`. Their files are read again when they change, and nothing is
written."""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from floq.analysis.metrics import Metric, last, primary_metric
from floq.analysis.report.groups import group_runs, short_count
from floq.analysis.report.tables import short_task
from floq.runs.record import FILES, DamagedRun, RunRecord, find_runs, read_run
from floq.utils.files import is_locked
from floq.utils.untrusted import printable

STYLES = {
    "running": "bold green",
    "diverged": "bold red",
    "damaged": "bold red",
    "stopped": "yellow",
    "finished": "dim",
}
"""By state, in the order in which states are shown."""

MAX_DAMAGED = 5  # damaged folders that are listed by name

Read = dict[Path, RunRecord | DamagedRun]


class Watcher:
    """Reader of runs that caches those that did not change."""

    def __init__(self) -> None:
        self._stamps: dict[Path, tuple] = {}
        self._found: Read = {}

    def look(self, folders: Iterable[Path]) -> Read:
        """Read the runs in these folders. Files that did not change are not read again."""
        now: Read = {}
        for folder in folders:
            stamp, before = tuple(_stamp(folder / name) for name in FILES), self._found.get(folder)
            if isinstance(before, RunRecord) and self._stamps.get(folder) == stamp:
                locked = not before.ends and is_locked(folder)  # no file shows whether it still runs
                now[folder] = before if before.ends else replace(before, state="running" if locked else "stopped")
            else:
                now[folder] = read_run(folder)
            self._stamps[folder] = stamp
        self._found |= now
        return now


def watch(
    paths: Sequence[str | Path], once: bool = False, seconds: float = 5.0, console: Console | None = None
) -> None:
    """Show runs until all have ended or Ctrl-C is pressed.

    Args:
        paths: folders of runs, or above them.
        once: print one table with every run, and return.
        seconds: time between updates.
        console: output; by default the terminal.

    Raises:
        UserError: there are no runs.
    """
    console = console or Console(highlight=False)
    watcher = Watcher()
    found = watcher.look(find_runs(paths))
    if once or not console.is_terminal:
        console.print(screen(found, console.width))
        if once:
            return
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while not all(map(_is_over, found.values())):
                live.update(screen(found, console.width, console.height), refresh=True)
                time.sleep(seconds)
                found = watcher.look(find_runs(paths))
    except KeyboardInterrupt:
        pass  # only the view ends; the runs continue
    console.print(screen(found, console.width))


def state(run: RunRecord | DamagedRun) -> str:
    """Return the state of a run, a key of `STYLES`."""
    if isinstance(run, DamagedRun):
        return "damaged"
    if run.diverged_at is not None:
        return "diverged"
    return "damaged" if run.problems and not run.evaluations and not run.training else run.state


def screen(found: Read, width: int, height: int | None = None, summary: str = "") -> Group:
    """Render runs by task and group, those that train first, for a terminal of this size. Runs that do not fit are
    counted. The first line is the `summary`, by default the number of runs in each state."""
    runs = [run for run in found.values() if isinstance(run, RunRecord)]
    damaged = [run for run in found.values() if isinstance(run, DamagedRun)]
    metrics = {task: primary_metric([run for run in runs if run.task == task]) for task in {run.task for run in runs}}
    names = {metric.short for metric in metrics.values()}
    header = names.pop() if len(names) == 1 else "score"
    counts = {name: sum(state(run) == name for run in found.values()) for name in STYLES}
    summary = summary or ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    head = Text(summary, style="bold", no_wrap=True)
    head.append(f"   {time.strftime('%H:%M:%S')}", style="dim")
    reasons = [printable(f"{run.folder}: {run.reason}") for run in damaged[:MAX_DAMAGED]]
    parts: list[RenderableType] = [head, *(Text(text, style="red", overflow="fold") for text in reasons)]
    used = 3 + sum(1 + len(text) // width for text in reasons)  # with the header of the table, and a last line
    room = math.inf if height is None else height - used
    left = len(runs)
    if runs:
        parts.append(_rows([], next(iter(metrics.values())), header))
    for (task, group), members in _sections(runs):
        shown = members[: int(max(0, min(room - 1, len(members))))]
        if not shown:
            break
        metric = metrics[task]
        named = "" if header != "score" else f"  ({metric.short})"
        parts.append(_one_line(f"{short_task(task)}  {group}{named}", "bold"))
        parts.append(_rows(shown, metric))
        room, left = room - 1 - len(shown), left - len(shown)
    if left:
        parts.append(_one_line(f"... and {left} more: a taller window or --once shows them", "dim"))
    return Group(*parts)


def _sections(runs: Sequence[RunRecord]) -> list[tuple[tuple[str, str], list[RunRecord]]]:
    """Sort runs into sections by task and group, in the order of their states; sections with a running run first."""
    rank = {run: list(STYLES).index(state(run)) for run in runs}
    sections: dict[tuple[str, str], list[RunRecord]] = {}
    for group in group_runs(runs):
        for run in sorted(group.runs, key=lambda run: (run.task, rank[run], run.seed, run.folder.name)):
            sections.setdefault((run.task, group.name), []).append(run)
    return sorted(sections.items(), key=lambda item: min(rank[run] for run in item[1]))


COLUMNS = (
    ("seed", 5),
    ("step / total", 13),
    ("", 10),
    ("Q", 9),
    ("loss", 9),
    ("steps/s", 8),
    ("left", 7),
    ("state", 8),
)
"""Names and widths; the third is named after the metric of the runs."""


def _rows(runs: Sequence[RunRecord], metric: Metric, header: str = "") -> Table:
    """Make rows of the table, or, with the metric's name as `header`, the table's header."""
    table = Table(box=None, padding=(0, 1, 0, 0), show_header=bool(header), header_style="dim")
    for name, size in COLUMNS:
        justify = "left" if name == "state" else "right"
        table.add_column(name or header, width=size, justify=justify, no_wrap=True)
    for run in runs:
        name = state(run)
        rate = run.steps_per_second
        left = (run.total_steps - run.step) / rate if run.state == "running" and rate > 0 else math.nan
        table.add_row(
            str(run.seed),
            f"{short_count(run.step)} / {short_count(run.total_steps)}",
            metric.shown(last(run, metric)) or "-",
            _number(run.last("training/critic/q")),
            _number(run.last("training/critic/critic_loss")),
            _number(rate) if run.state == "running" else "",
            clock(left),
            Text(name, style=STYLES[name]),
        )
    return table


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Format a duration as `45s`, `12m`, `3h05` or `2d04h`; empty for NaN."""
    if math.isnan(seconds):
        return ""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 2:
        return f"{seconds:.0f}s"
    if hours < 2:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60:02d}" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def _one_line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _is_over(run: RunRecord | DamagedRun) -> bool:
    return isinstance(run, DamagedRun) or run.state != "running"


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's modification time and size; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
