"""Common style of all figures."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

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
    "axes.titlesize": 11,
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
BOX: Any = {"facecolor": "white", "alpha": 0.85, "edgecolor": "none", "pad": 2}
"""Background of text on a drawing."""


@contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, look: Any = None, **kwargs
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a figure of `width` x `height` inches; yields it and its axes, row by row, and closes it at the end. `look`:
    Matplotlib settings that override the common style."""
    with plt.rc_context(RC | (look or {})):
        fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **kwargs)
        try:
            yield fig, list(axes.flat)
        finally:
            plt.close(fig)


def check_suffix(path: Path) -> None:
    """Raise UserError if Matplotlib writes no pictures whose files end so."""
    known = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--out={path}: end it in {', '.join(f'.{name}' for name in ('png', 'pdf', 'svg'))}")


@contextmanager
def figure(
    path: Path, width: float, height: float, rows: int = 1, columns: int = 1, look: Any = None, **kwargs
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Open a `canvas` that is saved to `path`, whole or not at all, unless an exception is raised."""
    with canvas(width, height, rows, columns, look, **kwargs) as (fig, axes):
        yield fig, axes
        make_drawable(fig)
        content = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # boxes stand for characters that the font lacks
            warnings.filterwarnings("ignore", "constrained_layout not applied")
            fig.savefig(content, format=path.suffix.removeprefix("."))
        files.replace(path, content.getvalue())


def make_drawable(fig: Figure) -> None:
    """Replace in all texts of a figure what Matplotlib cannot draw, and cut those that are too long: names of runs,
    groups and data may hold anything."""
    for text in fig.findobj(Text):
        assert isinstance(text, Text)
        lines = [line.expandtabs(4)[:MAX_LETTERS] for line in printable(text.get_text()).split("\n")[:MAX_LINES]]
        if (drawable := "\n".join(lines)) != text.get_text():
            text.set_text(drawable)


def mark_online(ax: Axes, boundary: int, size: int = 8) -> None:
    """Mark the step at which a run goes online, with a label of this font size."""
    ax.axvline(boundary, color=GREY, linestyle="--", linewidth=0.9)
    ax.annotate(
        "online",
        (boundary, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(size / 2, -size - 2),
        textcoords="offset points",
        fontsize=size,
        color=GREY,
    )


def star(ax: Axes, x: float, y: float, label: str) -> None:
    """Draw the mean of TD targets as a star, which may be outside of the axes."""
    ax.plot(x, y, "*", color="gold", markeredgecolor=INK, markersize=13, clip_on=False, label=label)
