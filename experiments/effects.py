"""Draw where a flow critic pays: the differences in the first table of docs/results/index.md, as shares of the other
critic's score.

    python experiments/effects.py
"""

import re
from pathlib import Path

from floq.analysis.figures.style import BLUE, FAINT, GREY, ORANGE, figure

PAGE = Path(__file__).parents[1] / "docs" / "results" / "index.md"
EFFECT = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\] of ([\d.]+)")
LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")


def effects(page: str) -> list[tuple[str, str, list[float]]]:
    """Return regime, opponent, and the difference with its interval in percent, of each row that has them."""
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")]
    found = [(row, match.groups()) for row in rows if len(row) > 2 and (match := EFFECT.match(row[2]))]
    names = ([LINK.sub(r"\1", cell.strip("| ")) for cell in row[:2]] for row, _ in found)
    numbers = [[100 * float(x) / float(of) for x in numbers] for _, (*numbers, of) in found]
    return [(regime, other, own) for (regime, other), own in zip(names, numbers, strict=True)]


def draw(path: Path, rows: list[tuple[str, str, list[float]]]) -> None:
    """Draw a line for each effect, under the name of its regime."""
    labels: list[str] = []
    regimes = list(dict.fromkeys(regime for regime, *_ in rows))
    with figure(path, 8.5, 0.25 * (len(rows) + len(regimes)) + 0.7) as (_, (ax,)):
        for regime in regimes:
            labels.append(regime)
            for _, other, (mean, low, high) in (row for row in rows if row[0] == regime):
                colour = BLUE if low > 0 else ORANGE if high < 0 else FAINT
                ax.plot([low, high], [len(labels)] * 2, color=colour, linewidth=2.5, solid_capstyle="butt")
                ax.plot(mean, len(labels), "o", color=colour, markersize=6)
                labels.append(f"against {other}")
        ax.axvline(0, color=GREY, linewidth=1)
        ax.set_yticks(range(len(labels)), labels, fontsize=9)
        for label in ax.get_yticklabels():
            label.set_weight("bold" if label.get_text() in regimes else "normal")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        ax.grid(axis="y", visible=False)
        ax.set(
            ylim=(len(labels) - 0.3, -0.7),
            xlabel="flow critic less the other, in % of the other's score",
        )


if __name__ == "__main__":
    draw(PAGE.with_name("effects.png"), effects(PAGE.read_text()))
