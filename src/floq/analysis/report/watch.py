"""Live table of runs in the terminal, for `floq watch`. Their files are read again when they change, and nothing is
written."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from floq.analysis.metrics import SUCCESS, Metric, last, primary_metric
from floq.analysis.report.groups import group_runs, short_count
from floq.analysis.report.tables import clock, short_task
from floq.runs.record import FILES, DamagedRun, RunRecord, find_runs, read_run
from floq.utils.files import is_locked
from floq.utils.untrusted import printable

BAD = "bold red"
STYLES = {"running": "bold green", "diverged": BAD, "damaged": BAD, "stopped": "yellow", "finished": "dim"}
"""By state, in the order in which states are shown."""

Read = RunRecord | DamagedRun
MAX_DAMAGED = 5  # damaged folders that are listed by name
WIDTHS = (5, 13, 10, 9, 9, 8, 7)  # of the columns, without the state


def look(folders: Iterable[Path], cache: dict[Path, tuple[Any, Read]]) -> dict[Path, Read]:
    """Read the runs in these folders; of those in the cache only the ones whose files or lock have changed."""
    found = {}
    for folder in folders:
        stamp = (*(_stamp(folder / name) for name in FILES), is_locked(folder))
        if folder not in cache or cache[folder][0] != stamp:
            cache[folder] = stamp, read_run(folder)
        found[folder] = cache[folder][1]
    return found


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a file's modification time and size; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def watch(
    paths: Sequence[str | Path], once: bool = False, seconds: float = 5.0, console: Console | None = None
) -> None:
    """Show the runs in and below these folders until all have ended or Ctrl-C is pressed, or `once`; they are read
    again after `seconds`. Raises UserError if there are none."""
    console = console or Console(highlight=False)
    cache: dict[Path, tuple[Any, Read]] = {}
    found = look(find_runs(paths), cache)
    if once or not console.is_terminal:
        console.print(screen(found, console.width))
        if once:
            return
    try:
        with Live(console=console, auto_refresh=False, transient=True) as live:
            while any(isinstance(run, RunRecord) and run.state == "running" for run in found.values()):
                live.update(screen(found, console.width, console.height), refresh=True)
                time.sleep(seconds)
                found = look(find_runs(paths), cache)
    except KeyboardInterrupt:
        pass  # only the view ends; the runs continue
    console.print(screen(found, console.width))


def state(run: Read) -> str:
    """Return the state of a run, a key of `STYLES`."""
    if isinstance(run, DamagedRun):
        return "damaged"
    if run.diverged_at is not None:
        return "diverged"
    return "damaged" if run.problems and not run.evaluations and not run.training else run.state


def screen(found: Mapping[Path, Read], width: int, height: int | None = None) -> Group:
    """Render runs by task and group, those that train first, for a terminal of this size. Runs that do not fit are
    counted."""
    runs = [run for run in found.values() if isinstance(run, RunRecord)]
    damaged = [run for run in found.values() if isinstance(run, DamagedRun)]
    counts = {name: sum(state(run) == name for run in found.values()) for name in STYLES}
    summary = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    head = [Text.assemble((summary, "bold"), (f"   {time.strftime('%H:%M:%S')}", "dim"))]
    for run in damaged[:MAX_DAMAGED]:
        reason = Text(printable(f"{run.folder}: {run.reason}"), style="red")
        head += reason.wrap(Console(width=width), width, overflow="fold")
    metrics = {task: primary_metric([run for run in runs if run.task == task]) for task in {run.task for run in runs}}
    header = "score" if len(set(metrics.values())) > 1 else next(iter(metrics.values()), SUCCESS).short
    if runs:
        head.append(_row(("seed", "step / total", header, "Q", "loss", "steps/s", "left"), Text("state"), "dim"))
    lines: list[tuple[Text, bool]] = []  # and whether it is that of a run
    rank = {run: list(STYLES).index(state(run)) for run in runs}
    sections: dict[tuple[str, str], list[RunRecord]] = {}
    for group in group_runs(runs):
        for run in sorted(group.runs, key=lambda run: (run.task, rank[run], run.seed, run.folder.name)):
            sections.setdefault((run.task, group.name), []).append(run)
    for (task, group), members in sorted(sections.items(), key=lambda item: min(rank[run] for run in item[1])):
        named = "" if header != "score" else f"  ({metrics[task].short})"
        lines.append((Text(f"{short_task(task)}  {group}{named}", "bold"), False))
        lines += [(_run_row(run, metrics[task]), True) for run in members]
    room = len(lines) if height is None or len(head) + len(lines) < height else max(0, height - len(head) - 2)
    shown = [*head, *(line for line, _ in lines[:room])]
    if left := sum(is_run for _, is_run in lines[room:]):
        shown.append(Text(f"... and {left} more: a taller window or --once shows them", "dim"))
    for line in shown:
        line.truncate(width, overflow="ellipsis")
    return Group(*shown)


def _run_row(run: RunRecord, metric: Metric) -> Text:
    name, rate = state(run), run.steps_per_second if run.state == "running" else math.nan
    cells = (
        str(run.seed),
        f"{short_count(run.step)} / {short_count(run.total_steps)}",
        metric.shown(last(run, metric)) or "-",
        _number(run.last("training/critic/q")),
        _number(run.last("training/critic/critic_loss")),
        _number(rate) if run.state == "running" else "",
        clock((run.total_steps - run.step) / rate if rate > 0 else math.nan),
    )
    return _row(cells, Text(name, style=STYLES[name]))


def _row(cells: Sequence[str], name: Text, style: str = "") -> Text:
    columns = (cell[:width].rjust(width) for cell, width in zip(cells, WIDTHS, strict=True))
    return Text(" ".join(columns) + " ", style).append_text(name)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
