"""Figure that compares groups of runs: learning curves, aggregates with their intervals, performance profiles."""

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter

from floq.analysis.comparison import Comparison
from floq.analysis.figures.style import COLOURS, FAINT, INK, figure
from floq.analysis.statistics import mean_interval, performance_profile

THRESHOLDS = 101  # of a profile
BANDS = 3  # groups whose intervals are still distinguishable when they overlap


def draw_comparison(path: Path, found: Comparison, title: str, curves: bool = True) -> None:
    """Draw learning curves by task, the groups' interquartile means, and performance profiles; with more groups than
    colours, only the means."""
    coloured = 0 < len(found.members) <= len(COLOURS)
    colours = {m.name: COLOURS[number] if coloured else INK for number, m in enumerate(found.members)}
    tasks = found.tasks if curves and coloured else ()
    panels = len(tasks) + (2 if coloured else 1)
    columns = panels if panels < 4 else 2 if panels == 4 else 3
    rows = math.ceil(panels / columns)
    heights = [3.0] * (rows - 1) + [max(3.0, 1.0 + 0.36 * len(found.members))]
    width = 9.0 if columns == 1 else 4.6 * columns
    note = _footnote(found, columns > 1, bool(tasks), int(15.5 * width))
    height = sum(heights) + 0.9 + 0.17 * note.count("\n")
    with figure(path, width, height, rows, columns, gridspec_kw={"height_ratios": heights}) as (fig, axes):
        _draw_title(fig, title, colours if coloured else {}, int(13 * width))
        for ax, task in zip(axes, tasks, strict=False):
            _draw_curves(ax, task, found, colours)
        _draw_dots(axes[len(tasks)], found, colours)
        if coloured:
            _draw_profiles(axes[len(tasks) + 1], found, colours)
        for ax in axes[panels:]:
            ax.set_axis_off()
        fig.supxlabel(note, x=0.012, ha="left", fontsize=8, color="#666666")


def _draw_title(fig: Figure, title: str, colours: dict[str, str], width: int) -> None:
    """Draw the title, as that of the legend if there is one: the layout would draw a figure title over the legend. The
    legend has as many rows as it needs in a figure that is `width` letters wide."""
    if not colours:
        fig.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=13)
        return
    rows = math.ceil(len(colours) * (max(map(len, colours)) + 6) / width)
    fig.legend(
        handles=[Line2D([], [], color=colour, linewidth=2.5, label=name) for name, colour in colours.items()],
        loc="outside upper left",
        ncols=math.ceil(len(colours) / rows),
        title=title,
        title_fontproperties={"weight": "bold", "size": 13},
        alignment="left",
    )


def _footnote(found: Comparison, profiles: bool, curves: bool, width: int) -> str:
    bands = len(found.members) <= BANDS
    parts = [f"curves: mean of the seeds{' and its 95% Student interval' if bands else ''}."] if curves else []
    parts.append("Dots: interquartile mean over tasks and seeds, lines its 95% stratified bootstrap interval;")
    parts.append(f"dashed: {found.reference}." if found.reference in {m.name for m in found.members} else "")
    if profiles:
        parts.append(f"Profiles: share of runs, tasks weighing the same{', band pointwise 95%' if bands else ''}.")
    parts.append(f"{found.protocol}: {', '.join(map(_short, found.tasks))}.")
    if found.absent:
        parts.append(f"Without finished runs: {', '.join(found.absent)}.")
    text = " ".join(filter(None, parts))
    return textwrap.fill(text[:1].upper() + text[1:], width)


def _short(task: str) -> str:
    """Shorten a task's id: `pointmaze-large-navigate-singletask-v0` -> `pointmaze-large-navigate`; numbers stay."""
    return task.removesuffix("-v0").replace("-singletask", "")


def _draw_curves(ax: Axes, task: str, found: Comparison, colours: dict[str, str]) -> None:
    for member in found.members:
        if task not in member.curves:
            continue
        steps, scores = member.curves[task]
        if len(scores) > 1 and len(found.members) <= BANDS:
            low, high = np.transpose([mean_interval(column) for column in scores.T])
            if found.score.is_rate:
                low, high = low.clip(0, 1), high.clip(0, 1)
            ax.fill_between(steps, low, high, color=colours[member.name], alpha=0.10, linewidth=0)
        ax.plot(steps, scores.mean(axis=0), "o-", color=colours[member.name], markersize=3, linewidth=1.6)
    ax.set(title=_short(task), xlabel="steps", ylabel=found.score.label)
    if found.score.is_rate:
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_dots(ax: Axes, found: Comparison, colours: dict[str, str]) -> None:
    """Draw the groups from top to bottom: the area under the curve filled, the last success hollow, slightly below."""
    for place, member in enumerate(found.members):
        for offset, estimate, filled in ((-0.13, member.auc_iqm, True), (0.17, member.final_iqm, False)):
            colour, y = colours[member.name], place + offset
            if math.isfinite(estimate.low):
                ax.plot(estimate[1:], [y, y], color=colour, linewidth=2.2 if filled else 1.1, solid_capstyle="butt")
            face = colour if filled else "white"
            ax.plot(estimate.value, y, "o", color=colour, markerfacecolor=face, markersize=7 if filled else 5.5)
        if member.name == found.reference:
            ax.axvline(member.auc_iqm.value, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    labels = [textwrap.fill(member.name, 26) for member in found.members]
    ax.set_yticks(range(len(found.members)), labels)
    for label, member in zip(ax.get_yticklabels(), found.members, strict=True):
        label.set_color(colours[member.name])
    ax.set(ylim=(len(found.members) - 0.45, -0.55), xlabel=found.score.label)
    ax.set_title("area under curve (filled), last (hollow)", fontsize=10)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if found.score.is_rate:
        ax.xaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_profiles(ax: Axes, found: Comparison, colours: dict[str, str]) -> None:
    areas = np.concatenate([runs for member in found.members for runs in member.auc.values()])
    low, high = float(areas.min()), float(areas.max())
    low, high = (0.0, min(1.0, high + 0.1)) if found.score.is_rate else (low - 0.1 * (high - low), high)
    thresholds = np.linspace(low, high, THRESHOLDS)
    for member in found.members:
        profile = performance_profile(list(member.auc.values()), thresholds)
        if np.isfinite(profile.low).all() and len(found.members) <= BANDS:
            ax.fill_between(thresholds, profile.low, profile.high, color=colours[member.name], alpha=0.08, linewidth=0)
        ax.plot(thresholds, profile.share, color=colours[member.name], linewidth=1.6, drawstyle="steps-post")
    ax.set(xlabel="area under the curve, threshold", ylabel="runs above it", ylim=(-0.03, 1.03), xlim=(low, high))
    ax.set_title("performance profiles", fontsize=10)
    for axis in (ax.xaxis, ax.yaxis) if found.score.is_rate else (ax.yaxis,):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
