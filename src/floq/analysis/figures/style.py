"""Common style of all figures."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter

from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.untrusted import printable

INK, GREY, FAINT = "#222222", "#666666", "#9a9a9a"
BLUE, ORANGE = "#2166ac", "#d6604d"
COLOURS = (BLUE, ORANGE, "#4d9221", "#762a83", "#8c510a", "#01665e", "#de77ae", "#e0a010")
RC: Any = {
    "text.parse_math": False,  # names of runs and groups may have dollar signs
    "text.usetex": False,
    "font.size": 10,
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 100,
    "savefig.dpi": 160,
}
MAX_LETTERS, MAX_LINES = 200, 12  # of a text: longer ones would leave no place for the axes
TITLE: Any = {"x": 0.01, "ha": "left", "weight": "bold", "fontsize": 11}
"""Look of a figure's title."""
BOX: Any = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
"""Background of text on a drawing."""


@contextmanager
def figure(
    target: Path | io.BytesIO, width: float, height: float, rows=1, columns=1, title="", look: Any = None, **kwargs: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure of `width` x `height` inches; yields it and its axes, row by row, and saves it to a file, whole or
    not at all, or as SVG to a buffer, unless an exception is raised. Axes without data are hidden. `look`: Matplotlib
    settings that override the common style."""
    with matplotlib.rc_context(RC | (look or {})):
        fig = Figure((width, height), layout="constrained")
        if title:
            fig.suptitle(title, **TITLE)
        axes = list(fig.subplots(rows, columns, squeeze=False, **kwargs).flat)
        yield fig, axes
        for ax in axes:
            ax.set_visible(ax.has_data())
        make_drawable(fig)
        content = io.BytesIO() if isinstance(target, Path) else target
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # boxes stand for characters that the font lacks
            warnings.filterwarnings("ignore", "constrained_layout not applied")
            fig.savefig(content, format=target.suffix.removeprefix(".") if isinstance(target, Path) else "svg")
        if isinstance(target, Path):
            files.replace(target, content.getvalue())


def make_drawable(fig: Figure) -> None:
    """Replace in all texts of a figure what Matplotlib cannot draw, and cut those that are too long: names of runs,
    groups and data may hold anything."""
    for text in fig.findobj(Text):
        assert isinstance(text, Text)
        lines = [line.expandtabs(4)[:MAX_LETTERS] for line in printable(text.get_text()).split("\n")[:MAX_LINES]]
        if (drawable := "\n".join(lines)) != text.get_text():
            text.set_text(drawable)


def check_suffix(path: Path) -> None:
    """Raise UserError if Matplotlib writes no pictures whose files end so."""
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--out={path}: end it in {', '.join(f'.{name}' for name in ('png', 'pdf', 'svg'))}")


def legend_below(fig: Figure, ax: Axes, most: int = 6) -> None:
    """Put the legend of one of the axes below all, in at most so many columns."""
    handles, labels = ax.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), most), fontsize=9)


def label_steps(ax: Axes, boundary: int | None, size: int = 8) -> None:
    """Label the axis of a run's steps, and mark the step at which it goes online; None if it does not."""
    name = "gradient steps, then environment steps" if boundary else "environment steps"
    ax.set_xlabel("gradient steps" if boundary is None else name)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if boundary:
        mark_online(ax, boundary, size)


def mark_online(ax: Axes, boundary: int, size: int = 8) -> None:
    """Mark the step at which a run goes online, with a label of this font size."""
    ax.axvline(boundary, color=GREY, linestyle="--", linewidth=0.9)
    look = {"textcoords": "offset points", "fontsize": size, "color": GREY}
    ax.annotate("online", (boundary, 1.0), (size / 2, -size - 2), xycoords=("data", "axes fraction"), **look)


def star(ax: Axes, x: float, y: float, label: str) -> None:
    """Draw the mean of TD targets as a star, which may be outside of the axes."""
    ax.plot(x, y, "*", color="gold", markeredgecolor=INK, markersize=13, clip_on=False, label=label)
