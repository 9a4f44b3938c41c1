"""Report as figures for a paper, in the widths of a column and of a page."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from floq.analysis.figures.style import COLOURS, INK, figure, mark_online
from floq.analysis.report.charts import BANDS, CROWDED, step_name
from floq.analysis.report.scores import THRESHOLDS, Report, TaskScores, lines, mean
from floq.analysis.report.tables import short_task

WIDTHS = {"column": (3.3, 1), "page": (6.8, 3)}
"""By suffix of the file name: width in inches, and number of columns of panels."""
RC: Any = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "axes.linewidth": 0.6,
    "grid.linewidth": 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.3,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,
}
MAX_TASKS = 12
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.")
Look = tuple[str, Any]
"""A colour and a line style."""
Panel = Callable[[Axes], None]


def draw_figures(stem: Path, suffix: str, report: Report) -> tuple[list[Path], list[str]]:
    """Draw the report in each width, as STEM-column.SUFFIX and STEM-page.SUFFIX. With more groups than colours, only
    the interquartile means are drawn.

    Returns:
        The files, and a line for each part that was left out.
    """
    names, tasks, left_out = [group.name for group in report.groups], report.tasks, []
    styles = {
        name: (COLOURS[n % len(COLOURS)], DASHES[n // len(COLOURS) % len(DASHES)]) for n, name in enumerate(names)
    }
    if _is_crowded(report):
        left_out.append(f"curves and profiles of {len(names)} groups, for which there are {len(COLOURS)} colours")
        tasks = ()
    elif len(tasks) > MAX_TASKS:
        left_out.append(
            f"learning curves of {len(tasks) - MAX_TASKS} of {len(tasks)} tasks: give fewer runs to see them"
        )
        tasks = tasks[:MAX_TASKS]
    paths = []
    for end, (width, columns) in WIDTHS.items():
        paths.append(stem.with_name(f"{stem.name}-{end}.{suffix}"))
        _draw(paths[-1], width, columns, report, tasks, styles)
    return paths, left_out


def _is_crowded(report: Report) -> bool:
    return len(report.groups) > len(COLOURS) and bool(report.aggregates)


def _draw(
    path: Path, width: float, columns: int, report: Report, tasks: Sequence[TaskScores], styles: dict[str, Look]
) -> None:
    crowded = _is_crowded(report)
    panels: list[Panel] = [lambda ax, task=task: _draw_curves(ax, task, styles) for task in tasks]
    if report.aggregates:
        panels.append(lambda ax: _draw_dots(ax, report, styles, int(19 * width) if crowded else 0))
    if report.aggregates and not crowded:
        panels.append(lambda ax: _draw_profiles(ax, report, styles))
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    heights = [0.7 + 0.24 * len(report.aggregates)] if crowded else [1.75] * rows
    legend = [] if crowded or len(styles) == 1 else _legend(styles)
    longest = max((len(line) for entry in legend for line in str(entry.get_label()).split("\n")), default=0)
    legend_columns = max(1, int(17 * width / (longest + 7)))
    note = textwrap.fill(_note(report, tasks), int(23 * width))
    height = sum(heights) + 0.15 * math.ceil(len(legend) / legend_columns) + 0.1 * (note.count("\n") + 2)
    with figure(path, width, height, rows, columns, look=RC, height_ratios=heights) as (fig, axes):
        for ax, panel in zip(axes, panels, strict=False):
            panel(ax)
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        if legend:
            fig.legend(handles=legend, loc="outside upper left", ncols=legend_columns, handlelength=2.2)
        fig.supxlabel(note, x=0.01, ha="left", fontsize=5.5, color="#666666")


def _legend(styles: dict[str, Look]) -> list[Line2D]:
    wrapped = {name: "\n".join(textwrap.wrap(name, 50)) for name in styles}
    return [Line2D([], [], color=c, linestyle=d, label=wrapped[name]) for name, (c, d) in styles.items()]


def _note(report: Report, tasks: Sequence[TaskScores]) -> str:
    found, banded = [], len(report.groups) <= BANDS
    if tasks:
        shaded = ", shaded its 95% interval" if banded else ""
        found.append(f"Thick: mean of runs{shaded}; thin: single runs, dotted while they have not ended.")
    if report.aggregates:
        found.append("Dots: interquartile mean and its 95% stratified bootstrap interval, over tasks with success.")
    protocols = sorted({str(run.records.get("protocol", "")) for run in report.runs} - {""})
    return " ".join([*found, f"{'; '.join(protocols)}."] if protocols else found)


def _draw_curves(ax: Axes, task: TaskScores, styles: dict[str, Look]) -> None:
    shown = [(name, line) for name, cell in task.cells.items() for line in lines(cell, task.metric)]
    phases = {(line.run.settings["offline_steps"], line.run.settings["online_steps"]) for _, line in shown}
    for name, line in shown:  # first, so that the means lie above them
        dots, width = ("-", 0.5) if line.run.ends else (":", 0.9)
        alpha = 0.9 if not line.run.ends else 0.35 if len(shown) <= CROWDED else 0.12
        ax.plot(line.steps, line.values, color=styles[name][0], linewidth=width, alpha=alpha, linestyle=dots)
    for name, cell in task.cells.items():
        found = mean(cell, task.metric)
        if found is None:
            continue
        colour, dash = styles[name]
        if len(task.cells) <= BANDS and found.over != "nothing":
            ax.fill_between(found.steps, found.low, found.high, color=colour, alpha=0.12, linewidth=0)
        alone = len(found.steps) == 1
        ax.plot(found.steps, found.values, color=colour, linestyle=dash, marker="o" if alone else None, markersize=3)
    for boundary in sorted({offline for offline, online in phases if offline and online}):
        mark_online(ax, boundary, 6)
    ax.set(xlabel=step_name(sorted(phases)), ylabel=task.metric.name)
    ax.set_title("\n".join(textwrap.wrap(short_task(task.name), 26)))
    if task.metric.is_rate:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_dots(ax: Axes, report: Report, styles: dict[str, Look], letters: int) -> None:
    """Draw interquartile means from top to bottom. If `letters` > 0: in one colour, each above its group's name, cut to
    that length."""
    for place, (name, found) in enumerate(report.aggregates.items()):
        colour = INK if letters else styles[name][0]
        if math.isfinite(found.iqm.low):
            ax.plot(found.iqm[1:], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        ax.plot(found.iqm.value, place, "o", color=colour, markersize=3.5)
        if letters:
            ax.text(0, place - 0.3, textwrap.shorten(name, letters, placeholder=" ..."), fontsize=6, va="center")
    ax.set(ylim=(len(report.aggregates) - 0.5, -0.6), xlim=(-0.03, 1.03), xlabel="success rate", yticks=[])
    ax.set_title("interquartile mean")
    ax.grid(visible=False, axis="y")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_profiles(ax: Axes, report: Report, styles: dict[str, Look]) -> None:
    for name, found in report.aggregates.items():
        colour, dash = styles[name]
        share, low, high = found.profile
        if len(report.aggregates) <= BANDS and np.isfinite(low).all():
            ax.fill_between(THRESHOLDS, low, high, color=colour, alpha=0.1, linewidth=0, step="post")
        ax.plot(THRESHOLDS, share, color=colour, linestyle=dash, drawstyle="steps-post")
    ax.set(xlabel="success rate, threshold", ylabel="runs above it", ylim=(-0.03, 1.03), xlim=(0, 1))
    ax.set_title("performance profiles")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
