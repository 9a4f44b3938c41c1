"""Draw where a flow critic pays: the differences in the first table of docs/results/index.md, as shares of the other
critic's score.

    python experiments/effects.py
"""

import re
from pathlib import Path

from floq.analysis.figures.style import BLUE, FAINT, GREY, figure

PAGE = Path(__file__).parents[1] / "docs" / "results" / "index.md"
EFFECT = re.compile(r"(-?[\d.]+) \[(-?[\d.]+), (-?[\d.]+)\] of ([\d.]+)")


def effects(page: str) -> list[tuple[str, str, list[float]]]:
    """Return regime, opponent, and the difference with its interval as shares, of each row that has them."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    found = [(row[0], row[1], match.groups()) for row in rows for match in EFFECT.finditer(row[2])]
    return [(regime, other, [float(x) / float(of) for x in numbers]) for regime, other, (*numbers, of) in found]


def draw(path: Path, rows: list[tuple[str, str, list[float]]]) -> None:
    """Draw a row for each effect, under the name of its regime."""
    regimes = list(dict.fromkeys(regime for regime, *_ in rows))
    with figure(path, 9, 0.27 * (len(rows) + len(regimes)) + 1, title="Where a flow critic pays") as (_, (ax,)):
        y, ticks = 0, {}
        for regime in regimes:
            ax.annotate(regime, (0.005, y), xycoords=("axes fraction", "data"), weight="bold", va="center", fontsize=9)
            for _, other, (mean, low, high) in (row for row in rows if row[0] == regime):
                y += 1
                colour = FAINT if low <= 0 <= high else BLUE
                ax.plot([100 * low, 100 * high], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
                ax.plot(100 * mean, y, "o", color=colour, markersize=6)
                ticks[y] = f"against {other}"
            y += 1
        ax.axvline(0, color=GREY, linewidth=1)
        ax.set_yticks(list(ticks), list(ticks.values()))
        ax.set(ylim=(y - 0.5, -0.8), xlabel="score over training less the other critic's, in % of that [95% interval]")
        ax.grid(axis="y", visible=False)


if __name__ == "__main__":
    draw(PAGE.with_name("effects.png"), effects(PAGE.read_text()))
