"""What goes on in a critic that is updated often? Some critics of utd.toml again, with a checkpoint every 250 steps.

    python experiments/why.py --save_dir DIR --out DIR

Trains them on Hopper-v5 as `floq sweep experiments/utd.toml` does, with other seeds if `--seeds` says so. At each
checkpoint it takes the mean absolute TD error of the 250 transitions that come next, before any update on them, and of
the 250 before, nearly all of which were drawn; values and targets are means over source noise and actions. Beside it
what the critics log of themselves. Writes why.csv (group, metric, seed, step, value) and a figure, and prints means
over training with Student's intervals over seeds.

Decided before the runs: the primary comparison is flow against scalar at equal operations, the metric the ratio of the
error on new transitions to that on learned ones, on average over training, paired by seed. If iteration makes a critic
generalise or adapt better (arXiv 2603.04333), the flow's ratio is lower.
"""

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from floq import Run
from floq.agent.agent import Agent
from floq.analysis.figures.style import COLOURS, figure
from floq.analysis.report.csv_files import write_csv
from floq.analysis.statistics import mean_interval, sign_flip_p
from floq.data.dataset import Dataset
from floq.runs import checkpoint
from floq.sweep.experiment import read_experiment
from floq.sweep.jobs import plan, runs_of
from floq.training.train import train_fleet
from floq.utils.machine import clear_jit_cache, use_all_cores

EXPERIMENT = Path(__file__).parent / "utd.toml"
GROUPS = ("flow", "flow, K = 1", "looped", "scalar, equal operations", "scalar, distilled")
DRAWS = 16
EVERY = 250  # environment steps from one checkpoint to the next, and transitions in an error
METRICS = {
    "new": "TD error of new transitions",
    "learned": "TD error of learned ones",
    "ratio": "ratio",
    "feature_norm": "norm of features",
    "feature_rank": "rank of features",
    "contraction": "contraction dv/dz",
    "z0_spread": "spread over z(0)",
    "one_pass_gap": "gap of one pass",
}
LOGGED = "validation/critic/"


def main() -> None:
    """Train what is not trained, take the errors and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_dir", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the experiment")
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS, help="the flow among them")
    parser.add_argument("--also", type=Path, help="a why.csv of other seeds, which counts too")
    given = parser.parse_args()
    experiment = read_experiment(EXPERIMENT, "laptop")
    experiment = dataclasses.replace(experiment, seeds=tuple(given.seeds or experiment.seeds))
    use_all_cores(len(experiment.seeds))
    rows: list[dict[str, Any]] = []
    for entry in plan(experiment, given.save_dir, given.save_dir):
        if entry.group.name in given.groups:
            configs = [dataclasses.replace(config, save_interval=EVERY) for config in entry.configs]
            if missing := [config for config in configs if not any(run.is_finished for run in runs_of(config))]:
                train_fleet(missing, draw=False)
                clear_jit_cache()
            runs = [next(run for run in runs_of(config) if run.is_finished) for config in configs]
            rows += [{"group": entry.group.name} | row for run in runs for row in (*errors(run), *logged(run))]
    if given.also:
        with open(given.also, newline="") as file:
            kinds = {"seed": int, "step": int, "value": float}
            rows += [row | {name: kind(row[name]) for name, kind in kinds.items()} for row in csv.DictReader(file)]
    given.out.mkdir(parents=True, exist_ok=True)
    write_csv(given.out / "why.csv", rows, ("group", "metric", "seed", "step"))
    curves = {group: {metric: curve(rows, group, metric) for metric in METRICS} for group in given.groups}
    draw(given.out / "why.png", curves)
    show(curves)


def errors(run: Run) -> list[dict[str, Any]]:
    """Return the errors at each checkpoint of a run after which there are new transitions."""
    folder, last = run.folder / "checkpoints", run.config.total_steps
    replay = checkpoint.load_replay(folder, last)
    assert replay is not None

    def error(agent: Agent, first: int) -> float:
        ticks = slice(first, first + EVERY + 1)
        data = Dataset.from_rows(*(x[ticks, 0] for x in replay))  # of the only environment
        return float(td_error(agent, jax.vmap(lambda row: data.transition(row, 1, agent.hypers.discount))(data.starts)))

    rows = []
    for step in range(EVERY, last, EVERY):
        agent = checkpoint.load(folder, step).agent
        new, learned = error(agent, step), error(agent, step - EVERY)
        found = {"new": new, "learned": learned, "ratio": new / learned}
        rows += [{"metric": name, "seed": run.config.seed, "step": step, "value": x} for name, x in found.items()]
    return rows


@jax.jit
def td_error(agent: Agent, batch: dict[str, Any]) -> jax.Array:
    """Return the mean absolute TD error of a batch, whose targets and values are means over `DRAWS` draws."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        target_key, *keys = jax.random.split(key, 1 + len(batch["rewards"]))
        values = jax.vmap(agent.value)(batch["observations"], batch["actions"], jnp.stack(keys))
        return agent.td_targets(batch, target_key), values

    targets, values = jax.lax.map(draw, jax.random.split(jax.random.key(0), DRAWS))
    return jnp.mean(jnp.abs(jnp.mean(targets, axis=0) - jnp.mean(values, axis=0)))


def logged(run: Run) -> list[dict[str, Any]]:
    """Return what a run logged of its critic on held-out data."""
    found = run.training()
    named = {name: found[LOGGED + name] for name in METRICS if LOGGED + name in found}
    return [
        {"metric": name, "seed": run.config.seed, "step": int(step), "value": value}
        for name, values in named.items()
        for step, value in zip(found["step"], values, strict=True)
    ]


def curve(rows: list[dict[str, Any]], group: str, metric: str) -> tuple[list[int], np.ndarray] | None:
    """Return the steps of a metric and its values (seeds, steps), None if the group has no such."""
    own = {(row["seed"], row["step"]): row["value"] for row in rows if (row["group"], row["metric"]) == (group, metric)}
    seeds, steps = (sorted({key[i] for key in own}) for i in (0, 1))
    return (steps, np.array([[own[seed, step] for step in steps] for seed in seeds])) if own else None


def draw(path: Path, curves: dict[str, Any]) -> None:
    """Draw a panel for each metric."""
    with figure(path, 11, 5.6, 2, 4, "What goes on in critics with 32 updates per step") as (_, axes):
        for ax, (metric, title) in zip(axes, METRICS.items(), strict=True):
            for (group, found), colour in zip(curves.items(), COLOURS, strict=False):
                if found[metric]:
                    steps, values = found[metric]
                    low, high = np.transpose([mean_interval(column) for column in values.T])
                    ax.fill_between(steps, low, high, color=colour, alpha=0.1, linewidth=0)
                    ax.plot(steps, values.mean(axis=0), "o-", color=colour, markersize=3, label=group)
            ax.set(title=title)
        axes[0].legend(fontsize=7)


def show(curves: dict[str, Any]) -> None:
    """Print means over training, and of the ratio the differences to the flow's."""
    for metric, title in METRICS.items():
        print(f"\n{title}")
        for group, found in curves.items():
            if found[metric]:
                means = found[metric][1].mean(axis=1)
                print(f"  {group:<26} {interval(means)}")
                if metric == "ratio" and group != "flow":
                    difference = means - curves["flow"][metric][1].mean(axis=1)
                    print(f"  {'':<26} to the flow {interval(difference)}, p {sign_flip_p(difference):.2g}")


def interval(values: np.ndarray) -> str:
    """Describe the mean of values and its interval."""
    low, high = mean_interval(values)
    return f"{values.mean():.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main()
