"""Figures of a report: learning curves, averages over tasks and performance profiles, together for a paper, or one by
one for a page."""

import html
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from floq.analysis.figures.style import COLOURS, FAINT, INK, figure, mark_online
from floq.analysis.report.scores import Report, TaskScores
from floq.analysis.report.tables import short_task
from floq.utils.errors import in_one_line
from floq.utils.untrusted import printable

WIDTHS = {"column": (3.3, 1), "page": (6.8, 3)}
"""By suffix of the file name: width in inches, and number of columns of panels."""
SMALL: Any = {"font.size": 7, "axes.linewidth": 0.6, "grid.linewidth": 0.5, "lines.linewidth": 1.3}
PAPER: Any = SMALL | {"savefig.dpi": 300, "pdf.fonttype": 42}
MAX_TASKS = 12  # in a figure for a paper
CROWDED = 20  # runs that are still distinguishable in one panel
BANDS = 4  # groups whose intervals are still distinguishable when they overlap
SVG_WIDTH = 3.2  # inches of one panel; a page scales it
DASHES = ("-", "--", ":", "-.")
Look = tuple[str, Any]
"""A colour and a line style."""


def group_looks(report: Report) -> dict[str, Look]:
    """Assign each group a colour and a line style: colours vary first; after 32 groups they repeat."""
    return {
        group.name: (COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)])
        for n, group in enumerate(report.groups)
    }


def curves_svg(task: TaskScores, looks: Mapping[str, Look]) -> str:
    """Draw the learning curves of a task as an SVG element."""
    return _svg(1.9, lambda ax: _draw_curves(ax, task, looks))


def aggregate_svgs(report: Report, looks: Mapping[str, Look]) -> list[str]:
    """Draw the averages over tasks and the performance profiles as SVG elements; none without aggregates."""
    if not report.aggregates:
        return []
    dots = lambda ax: _draw_dots(ax, report, looks, letters=60)  # noqa: E731
    height = max(1.9, _dots_height(report))
    return [_svg(height, dots), _svg(1.9, lambda ax: _draw_profiles(ax, report, looks))]


def _svg(height: float, draw: Callable[[Axes], None]) -> str:
    """Draw a panel as an SVG element that scales with the page; or tell why it is left out."""
    content = io.BytesIO()
    try:
        with figure(content, SVG_WIDTH, height, look=SMALL | {"svg.fonttype": "none"}) as (_, (ax,)):
            draw(ax)
    except Exception as error:  # a run's numbers may be anything
        return f"<p>left out: {html.escape(printable(in_one_line(error)))}</p>"
    text = content.getvalue().decode()
    return re.sub(r' (width|height)="[\d.]+pt"', "", text[text.index("<svg") :].strip(), count=2)


def draw_figure(path: Path, report: Report, end: str = "page", title: str = "", curves: bool = True) -> list[str]:
    """Draw the report in one of the `WIDTHS`: the learning curves of each task, averages over tasks, and performance
    profiles. With more groups than colours, only the averages are drawn.

    Returns:
        A line for each part that was left out.
    """
    (width, columns), names, left_out = WIDTHS[end], [group.name for group in report.groups], []
    tasks, crowded = report.tasks if curves else (), len(names) > len(COLOURS) and bool(report.aggregates)
    looks = dict.fromkeys(names, (INK, "-")) if crowded else group_looks(report)
    if crowded:
        left_out.append(f"curves and profiles of {len(names)} groups, for which there are {len(COLOURS)} colours")
        tasks = ()
    elif len(tasks) > MAX_TASKS:
        more = len(tasks) - MAX_TASKS
        left_out.append(f"learning curves of {more} of {len(tasks)} tasks: give fewer runs to see them")
        tasks = tasks[:MAX_TASKS]
    panels: dict[str, Callable[[Axes], None]] = {
        task.name: lambda ax, task=task: _draw_curves(ax, task, looks) for task in tasks
    }
    if report.aggregates:
        panels["averages"] = lambda ax: _draw_dots(ax, report, looks, int(19 * width) if crowded else 0)
    if report.aggregates and not crowded:
        panels["profiles"] = lambda ax: _draw_profiles(ax, report, looks)
    columns = 2 if columns > 1 and len(panels) == 4 else max(1, min(columns, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    heights = [_dots_height(report)] if crowded else [1.75] * rows
    labels = {} if crowded or len(looks) == 1 else {name: "\n".join(textwrap.wrap(name, 50)) for name in looks}
    legend = [Line2D([], [], color=looks[n][0], linestyle=looks[n][1], label=label) for n, label in labels.items()]
    legend_columns = max(1, int(17 * width / (max(map(len, "\n".join(labels.values()).split("\n"))) + 7)))
    note = textwrap.fill(_note(report, bool(tasks)), int(23 * width))
    lines = math.ceil(len(legend) / legend_columns) + bool(title)
    height = sum(heights) + 0.15 * lines + 0.1 * (note.count("\n") + 2)
    with figure(path, width, height, rows, columns, look=PAPER, height_ratios=heights) as (fig, axes):
        for ax, (name, panel) in zip(axes, panels.items(), strict=False):
            try:
                panel(ax)
            except Exception as error:  # a run's numbers may be anything
                ax.clear()
                left_out.append(f"{name}: {in_one_line(error)}")
        if legend:  # with the title, over which the layout would draw it
            look = {"alignment": "left", "title_fontproperties": {"weight": "bold", "size": 9}, "handlelength": 2.2}
            fig.legend(handles=legend, loc="outside upper left", ncols=legend_columns, title=title, **look)
        elif title:
            fig.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=9)
        fig.supxlabel(note, x=0.01, ha="left", fontsize=5.5, color="#666666")
    return left_out


def _note(report: Report, has_curves: bool) -> str:
    found = []
    if has_curves:
        shaded = ", shaded its 95% interval" if len(report.groups) <= BANDS else ""
        found.append(f"Thick: mean of runs{shaded}; thin: single runs, dotted while they have not ended.")
    if report.aggregates:
        of = " of the areas under the curves (filled) and of the last values (hollow)" if report.by_area else ""
        interval = "stratified bootstrap interval" if report.has_many_seeds else "Student's interval over seeds"
        found.append(f"Dots: {_average(report)}{of} and its 95% {interval}.")
    if report.by_area and report.reference in report.aggregates:
        found.append(f"Dashed: {report.reference}.")
    if absent := [group.name for group in report.groups if report.by_area and group.name not in report.aggregates]:
        found.append(f"Without finished runs: {', '.join(absent)}.")
    return " ".join([*found, f"{report.protocol}."] if report.protocol else found)


def _average(report: Report) -> str:
    return "interquartile mean" if report.has_many_seeds else "mean"


def _draw_curves(ax: Axes, task: TaskScores, styles: Mapping[str, Look]) -> None:
    for name, run, steps, values in task.lines:  # first, so that the means lie above them
        dots, width = ("-", 0.5) if run.ends else (":", 0.9)
        alpha = 0.9 if not run.ends else 0.35 if len(task.lines) <= CROWDED else 0.12
        ax.plot(steps, values, color=styles[name][0], linewidth=width, alpha=alpha, linestyle=dots)
    for name, found in task.means.items():
        colour, dash = styles[name]
        if len(task.cells) <= BANDS and found.over != "nothing":
            ax.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.12, linewidth=0)
        alone = len(found.steps) == 1
        ax.plot(found.steps, found.values, color=colour, linestyle=dash, marker="o" if alone else None, markersize=3)
    runs = [run for _, run, _, _ in task.lines]
    for boundary in {run.boundary for run in runs} - {0}:
        mark_online(ax, boundary, 6)
    kinds = {"gradient": "offline_steps", "environment": "online_steps"}
    phases = ", then ".join(kind for kind, name in kinds.items() if any(run.settings[name] for run in runs))
    ax.set(xlabel=f"{phases} steps".strip(), ylabel=task.metric.name)
    ax.set_title("\n".join(textwrap.wrap(short_task(task.name), 26)))
    if task.metric.is_rate:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_dots(ax: Axes, report: Report, styles: Mapping[str, Look], letters: int) -> None:
    """Draw averages over tasks from top to bottom: of last scores; above them, filled, of areas, if groups are compared
    by these. With `letters`, the name of each group stands above its own, cut to that length."""
    for place, (name, found) in enumerate(report.aggregates.items()):
        colour = styles[name][0]
        marks = [(0.17, found.last, "white"), (-0.13, found.area, colour)] if report.by_area else []
        for offset, estimate, face in marks or [(0.0, found.last, colour)]:
            ends, width = [place + offset] * 2, 1.4 if face == colour else 0.8
            if math.isfinite(estimate.low):
                ax.plot(estimate[1:], ends, color=colour, linewidth=width, solid_capstyle="butt")
            ax.plot(estimate.value, ends[0], "o", color=colour, markersize=3.5, markerfacecolor=face)
        if report.by_area and name == report.reference:
            ax.axvline(found.area.value, color=FAINT, linewidth=0.8, linestyle="--", zorder=0)
        if letters:
            label = textwrap.shorten(name, letters, placeholder=" ...")
            at = 0.004, place - (0.42 if report.by_area else 0.3)
            ax.text(*at, label, fontsize=6, va="center", transform=ax.get_yaxis_transform())
    ax.set(ylim=(len(report.aggregates) - 0.5, -0.6), xlabel=report.metric.name, yticks=[])
    ax.set_title("area (filled), last (hollow)" if report.by_area else _average(report))
    ax.grid(visible=False, axis="y")
    if report.metric.is_rate:
        ax.set_xlim(-0.03, 1.03)
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))


def _dots_height(report: Report) -> float:
    """Return the height of averages with the names of their groups, in inches."""
    return 0.7 + (0.3 if report.by_area else 0.24) * len(report.aggregates)


def _draw_profiles(ax: Axes, report: Report, styles: Mapping[str, Look]) -> None:
    for name, found in report.aggregates.items():
        colour, dash = styles[name]
        share, low, high = found.profile
        if len(report.aggregates) <= BANDS and np.isfinite(low).all():
            ax.fill_between(report.thresholds, low, high, color=colour, alpha=0.1, linewidth=0, step="post")
        ax.plot(report.thresholds, share, color=colour, linestyle=dash, drawstyle="steps-post")
    what = "area under the curve" if report.by_area else report.metric.name
    ends = report.thresholds[[0, -1]]
    ax.set(xlabel=f"{what}, threshold", ylabel="runs above it", ylim=(-0.03, 1.03), xlim=ends)
    ax.set_title("performance profiles")
    for axis in (ax.xaxis, ax.yaxis) if report.metric.is_rate else (ax.yaxis,):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
