"""Success before, at and after the boundary between offline and online, from a CSV file of group, seed, step, success.

    python benchmarks/boundary.py docs/results/online/boundary_cube.csv --before 500 --out boundary_cube.png

Groups are called "SHARE, warm-up" and "SHARE, no warm-up". Prints for each what it had at the last evaluation before,
the lowest of the 2,000 steps after, their difference, the mean of all evaluations after, and the last; and of each
share the differences that the warm-up makes, and of the mean those between shares, by pairs of seeds, with Student's
95% interval and the exact p of flipping signs.
"""

import argparse
import csv
from itertools import combinations
from pathlib import Path
from statistics import mean

import numpy as np

from floq.analysis.figures.style import BLUE, ORANGE, figure
from floq.analysis.statistics import mean_interval, sign_flip_p

WINDOW = 2_000  # steps in which the lowest success is looked for
WARM = ("no warm-up", "warm-up")


def interval(values: list[float]) -> str:
    low, high = mean_interval(values)
    return f"{mean(values):.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--before", type=int, required=True, help="the step of the last evaluation before")
    parser.add_argument("--out", type=Path, help="a picture")
    options = parser.parse_args()
    with open(options.results) as file:
        rows = [row for row in csv.DictReader(file) if float(row["step"]) >= options.before]
    success = {(row["group"], row["seed"], round(float(row["step"]))): float(row["success"]) for row in rows}
    seeds, steps = sorted({seed for _, seed, _ in success}), sorted({step for *_, step in success})
    shares = dict.fromkeys(row["group"].partition(", ")[0] for row in rows)
    curves = {
        group: np.array([[success[group, seed, step] for step in steps] for seed in seeds])
        for group in dict.fromkeys(row["group"] for row in rows)
    }
    soon = [0 < step - options.before <= WINDOW for step in steps]
    found = {}
    print("group: before; lowest of the next steps; drop; mean after; at the end")
    for group, curve in curves.items():
        lowest = curve[:, soon].min(axis=1)
        found[group] = {"drop": lowest - curve[:, 0], "mean": curve[:, 1:].mean(axis=1), "end": curve[:, -1]}
        drop, after, end = (interval(list(values)) for values in found[group].values())
        print(f"{group}: {curve[:, 0].mean():.2f}; {lowest.mean():.2f}; {drop}; {after}; {end}")
    for share in shares:
        for what in ("drop", "mean", "end"):
            cold, warm = (found[f"{share}, {name}"][what] for name in WARM)
            print(
                f"{share}, {what}, warm-up less none: {interval(list(warm - cold))}, p {sign_flip_p(warm - cold):.2f}"
            )
    for one, other in combinations(shares, 2):
        less = found[f"{other}, {WARM[0]}"]["mean"] - found[f"{one}, {WARM[0]}"]["mean"]
        print(f"mean, {other} less {one}, {WARM[0]}: {interval(list(less))}, p {sign_flip_p(less):.2f}")
    if options.out:
        with figure(options.out, 3 * len(shares), 3.1, 1, len(shares), "Success after going online") as (_, axes):
            time = np.array(steps) - options.before
            for ax, share in zip(axes, shares, strict=True):
                for name, colour in zip(WARM, (BLUE, ORANGE), strict=True):
                    curve = curves[f"{share}, {name}"]
                    low, high = np.transpose([mean_interval(column) for column in curve.T]).clip(0, 1)
                    ax.fill_between(time, low, high, color=colour, alpha=0.12, linewidth=0)
                    ax.plot(time, curve.T, color=colour, alpha=0.3, linewidth=0.7)
                    ax.plot(time, curve.mean(axis=0), "o-", color=colour, markersize=4, label=name)
                ax.set(title=share, xlabel="environment steps online", ylim=(-0.02, 1.02))
            axes[0].set(ylabel="success")
            axes[0].legend(fontsize=8)


if __name__ == "__main__":
    main()
