"""Success over training of groups of runs that differ in their seeds, as a table and a picture.

    python benchmarks/learning_curves.py --out curves.png "flow critic=exp/floq/a" "monolithic critic=exp/floq/b"

Each NAME=FOLDER is a group: all finished runs below that folder. Prints the mean over seeds with its 95% Student
interval at every evaluation that all runs of the group have, each seed's mean over them, when it first reached 0.9, and
what the last evaluations pooled say.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter, PercentFormatter

from floq.analysis.figures.style import COLOURS, figure
from floq.analysis.statistics import mean_interval, wilson_interval
from floq.runs.run import Run, protocol

GOOD = 0.9  # success


def read_group(folder: Path) -> tuple[list[float], np.ndarray, list[Run]]:
    """Steps, success of shape (seeds, steps), and the runs of a folder."""
    runs = [Run.open(path.parent, makes_env=False) for path in sorted(folder.glob("**/summary.json"))]
    if not runs:
        sys.exit(f"no finished run below {folder}")
    if len({run.config.digest() for run in runs}) > 1:
        sys.exit(f"the runs below {folder} differ in more than their seeds: give one group for each configuration")
    curves = [dict(zip(*(run.evaluations()[k] for k in ("step", "evaluation/success")), strict=True)) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return steps, np.array([[curve[step] for step in steps] for curve in curves]), runs


def compared_curves(
    path: Path, groups: Mapping[str, tuple[Sequence[float], np.ndarray]], title: str, protocol: str
) -> None:
    """Draw several groups of runs: each seed as a thin line, their mean as a thick one, and its 95% interval.

    Args:
        path: the picture's file.
        groups: by name, gradient steps and success of shape (seeds, steps).
        title: of the figure.
        protocol: of the evaluation.
    """
    with figure(path, 7.2, 4.2) as (_, (ax,)):
        for (name, (steps, success)), colour in zip(groups.items(), COLOURS, strict=False):
            low, high = np.transpose([mean_interval(column) for column in success.T]).clip(0, 1)
            ax.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
            ax.plot(steps, success.T, color=colour, alpha=0.35, linewidth=0.8)
            mean = success.mean(axis=0)
            ax.plot(
                steps,
                mean,
                "o-",
                color=colour,
                markersize=4,
                label=f"{name}: {mean[-1]:.0%} at the end, {len(success)} seeds",
            )
        ax.set(xlabel="gradient steps", ylabel="success rate", ylim=(-0.03, 1.05))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.set_title(title, pad=16 * len(groups) + 8)  # the legend lies between the title and the curves
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), borderaxespad=0.2)
        note = f"thin: seeds; shaded: 95% interval of their mean; {protocol}"
        ax.text(0.0, -0.19, note, transform=ax.transAxes, fontsize=8, color="#666666", va="top")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True, help="the picture, a PNG file")
    options = parser.parse_args()
    groups = {}
    for pair in options.groups:
        name, equals, folder = pair.rpartition("=")
        if not equals:
            sys.exit(f"{pair}: write NAME=FOLDER")
        groups[name] = read_group(Path(folder))
        steps, success, runs = groups[name]
        rates = [f"{run.summary['updates_per_second'] or 0:.0f}" for run in runs]
        print(f"\n{name}: seeds {[run.config.seed for run in runs]}, updates/s {', '.join(rates)}")
        print(f"{protocol(runs[0].config)}\n{'step':>8}  mean  95% interval  seeds")
        for step, column in zip(steps, success.T, strict=True):
            low, high = mean_interval(column)
            seeds = " ".join(f"{value:.2f}" for value in column)
            print(f"{step:>8.0f}  {column.mean():.2f}  [{low:.2f}, {high:.2f}]  {seeds}")
        after = success[:, 1:] if steps[0] == 1 else success  # the evaluation of step 1 is of an untrained policy
        print(f"mean over evaluations: {after.mean():.2f}; seeds {' '.join(f'{x:.2f}' for x in after.mean(axis=1))}")
        reached = [next((step for step, x in zip(steps, curve, strict=True) if x >= GOOD), np.nan) for curve in success]
        print(f"first at {GOOD} or more: {np.mean(reached):.0f}; seeds {' '.join(f'{x:.0f}' for x in reached)}")
        episodes = runs[0].config.eval_episodes * len(runs)
        low, high = wilson_interval(round(success[:, -1].sum() * runs[0].config.eval_episodes), episodes)
        print(
            f"last evaluation, {episodes} episodes pooled: {success[:, -1].mean():.2f}, Wilson [{low:.2f}, {high:.2f}]"
        )
    tasks = {(runs[0].config.env_name, protocol(runs[0].config)) for _, _, runs in groups.values()}
    if len(tasks) > 1:
        sys.exit(f"these groups do not compare: {sorted(tasks)}")
    ((env_name, how),) = tasks
    compared_curves(
        options.out,
        {name: (steps, success) for name, (steps, success, _) in groups.items()},
        env_name,
        how,
    )


if __name__ == "__main__":
    main()
