"""Which critic knows what a policy is worth? Fitted Q evaluation of policies whose returns are measured.

    floq sweep experiments/ope.toml --save_dir DIR/policies            # trains the policies
    python experiments/ope.py critics --save_dir DIR/policies --out DIR  # --policies experiments/ope_cube.toml: others

Parts: `critics` (five of them, all bounded alike), `looped`, `steps` (K = 2, 4, 16) and `noise` (on the targets, 4 and
8% of the range of returns). Values have the discount of the policies' runs, and tau is such that the updates are five
time constants. A critic's estimates are a file DIR/NAME.json; one that is there is not made again, so the same command
goes on. ope-policies.csv has all estimates beside the true values. The table over them, ope.csv and ope.md, has the
operations of an update, the mean absolute error, which ope.png draws over these, its difference to that of flow K = 8
with as much noise, the error as a share of the spread of the true values, Kendall's rank correlation, the signed
error on the policies of each origin, positive where a critic overrates them, and how far noise moves the estimates. An
early policy is what the late one of its agent and seed once was, so intervals are Student's over these pairs; a
policy's estimate is the mean over seeds, which share the episodes.

Decided before the runs: primary comparison, flow K = 8 against categorical at equal operations; metric, mean absolute
error.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import floq
from floq.agent.config import AgentConfig, settings_type
from floq.analysis.cost import cost_of
from floq.analysis.figures.style import COLOURS, GREY, figure
from floq.analysis.matching import matched
from floq.analysis.report.csv_files import write_csv
from floq.analysis.statistics import mean_interval
from floq.sweep.experiment import read_experiment
from floq.sweep.jobs import plan
from floq.training.off_policy import FIXED

HERE = Path(__file__).parent
REFERENCE = "flow, K = 8"
SETTINGS = {"offline_steps": 25_000, "clip_targets": True, "lr": 1e-3, "batch_size": 64}
TIME_CONSTANTS = 5  # of the target network and the discount, that the updates are
SIZES: dict[str, Any] = {"block_width": 64, "block_depth": 2, "value_hidden_dims": (64, 64)}
FLOW: dict[str, Any] = {"noise_samples": 4, "target_noise_samples": 2, "noise_scheme": "stratified"}
ACTIONS = {"target_action_samples": 2}

CRITICS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "critics": {
        "flow, K = 8": ("floq", FLOW | {"critic_flow_steps": 8}),
        "flow, K = 1": ("floq", FLOW | {"critic_flow_steps": 1}),
        "scalar": ("scalar", ACTIONS),
        "ten members": ("scalar", ACTIONS | {"value_num_ensembles": 10}),
        "categorical, equal operations": ("categorical", ACTIONS),
    },
    "looped": {"looped, K = 8": ("looped", {"critic_flow_steps": 8, "target_noise_samples": 2})},
    "steps": {f"flow, K = {k}": ("floq", FLOW | {"critic_flow_steps": k}) for k in (2, 4, 16)},
    "noise": {
        f"{name}, noise {share:.0%}": (critic, own | {"noise": share})
        for share in (0.04, 0.08)
        for name, critic, own in (
            ("flow, K = 8", "floq", FLOW | {"critic_flow_steps": 8}),
            ("scalar", "scalar", ACTIONS),
            ("categorical, equal operations", "categorical", ACTIONS),
        )
    },
}


def main() -> None:
    """Let the critics of a part estimate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=CRITICS)
    parser.add_argument("--policies", type=Path, default=HERE / "ope.toml", help="the experiment that trains them")
    parser.add_argument("--save_dir", required=True, help="of the sweep that trained them")
    parser.add_argument("--dataset_dir", default="~/.ogbench/data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--truth", type=int, default=100, help="episodes that measure the return of a policy")
    parser.add_argument("--offline_steps", type=int, default=SETTINGS["offline_steps"])
    given = parser.parse_args()
    if given.truth < 2:
        raise SystemExit(f"--truth={given.truth}: give at least 2 episodes")
    try:
        estimate(given)
    except floq.UserError as error:
        raise SystemExit(str(error)) from error
    runs = trained(given.policies, given.save_dir, given.dataset_dir)
    run = next(iter(runs.values()))
    every = [(name, *one) for part in CRITICS.values() for name, one in part.items()]
    costs = {one[0]: settings_of(*one, run)[1] for one in every if (given.out / f"{one[0]}.json").exists()}
    draw(given.out / "ope.png", write_tables(given.out, costs))


def estimate(given: argparse.Namespace) -> None:
    """Let each critic of the part estimate, unless its file is there."""
    runs = trained(given.policies, given.save_dir, given.dataset_dir)
    given.out.mkdir(parents=True, exist_ok=True)
    protocol = {"seeds": given.seeds, "truth": given.truth, "offline_steps": given.offline_steps, "policies": [*runs]}
    known = [json.loads(file.read_text()) for file in sorted(given.out.glob("*.json"))]
    if any(one["protocol"] != protocol for one in known):
        raise SystemExit(
            f"{given.out} has estimates of another --seeds, --truth or --offline_steps: give another --out"
        )
    for name, (critic, own) in CRITICS[given.part].items():
        file = given.out / f"{name}.json"
        if file.exists():
            continue
        settings = settings_of(name, critic, own, next(iter(runs.values())))[0]
        settings |= {"offline_steps": given.offline_steps}
        where = {"starts": "env", "truth": 0 if known else given.truth}  # the first measures for all
        found = floq.ope(runs, critic=critic, seeds=given.seeds, save_dir=str(given.out), **where, **settings).policies
        truths = known[0]["truths"] if known else {policy.policy: policy.truth for policy in found}
        estimates = {policy.policy: policy.seeds for policy in found}
        known.append({"protocol": protocol, "estimates": estimates, "truths": truths})
        file.write_text(json.dumps(known[-1]))


def trained(experiment: Path, save_dir: str, dataset_dir: str) -> dict[str, floq.Run]:
    """Return the runs whose policies are evaluated, by the group that they come from and the seed."""
    entries = plan(read_experiment(experiment, "laptop"), save_dir, dataset_dir)
    runs = [(entry.group.name, run) for entry in entries for run in entry.finished]
    if any(run is None for _, run in runs):
        raise SystemExit(f"train the policies first: floq sweep {experiment} --save_dir {save_dir}")
    return {f"{group} {run.config.seed}": run for group, run in runs if run is not None}


def settings_of(name: str, critic: str, own: dict[str, Any], run: floq.Run) -> tuple[dict[str, Any], float]:
    """Return the settings of a critic, with noise in units of return and the width that equal operations need, and the
    GFLOP of its update."""
    discount = run.config.agent.discount
    known = SETTINGS | {"discount": discount, "tau": TIME_CONSTANTS / (SETTINGS["offline_steps"] * (1 - discount))}
    settings = dict(own)
    if share := settings.pop("noise", 0):
        scale = run.load_agent().scale
        settings["target_noise_magnitude"] = share * float(scale.r_max - scale.r_min) / (1 - discount)

    def agent(critic: str, own: dict[str, Any]) -> AgentConfig:
        names = settings_type(critic, "fixed").__dataclass_fields__
        wanted = SIZES | known | own | FIXED
        return AgentConfig.from_flat(critic, "fixed", {name: x for name, x in wanted.items() if name in names})

    config, dims = agent(critic, settings), run.load_agent()
    if "equal operations" in name:
        flow = agent("floq", FLOW | {"critic_flow_steps": 8})
        config = matched(config, flow, dims.obs_spec, dims.action_dim, "flops")
    wanted = SIZES | known | settings
    gflop = cost_of(config, dims.obs_spec, dims.action_dim).update_flops / 1e9
    return {key: value for key, value in config.flat().items() if key in wanted}, gflop


def write_tables(out: Path, costs: dict[str, float]) -> list[dict[str, Any]]:
    """Write ope.csv and ope.md from the files of estimates and the GFLOP of each critic's update; return the rows."""
    found = {file.stem: json.loads(file.read_text()) for file in sorted(out.glob("*.json"))}
    names = sorted(next(iter(found.values()))["estimates"])
    truths = np.array([np.mean(next(iter(found.values()))["truths"][name]) for name in names])
    labels = [(name.split()[0], name.split()[-1].partition("_")[0]) for name in names]  # agent and seed
    trajectories = np.array([sorted(set(labels)).index(label) for label in labels])
    values = {critic: np.array([np.mean(one["estimates"][name]) for name in names]) for critic, one in found.items()}
    rows = []
    for critic, own in values.items():
        clean, _, noise = critic.partition(", noise")
        row: dict[str, Any] = {"critic": critic, "GFLOP per update": costs[critic]}
        row |= scores(own, truths, trajectories, values.get(REFERENCE + critic.removeprefix(clean)))
        moved = own - values[clean] if noise and clean in values else np.full(len(own), np.nan)
        row |= {"noise moves it by": moved.mean()} | interval("moved", moved, trajectories)
        for origin in sorted({name.split()[0] for name in names}):
            of_origin = [number for number, name in enumerate(names) if name.split()[0] == origin]
            row[f"overrates {origin}"] = float((own - truths)[of_origin].mean())
        rows.append(row)
    write_csv(out / "ope.csv", rows, ("critic",))
    each = [
        {"critic": critic, "policy": name, "truth": truth, "estimate": estimate}
        for critic, own in values.items()
        for name, truth, estimate in zip(names, truths, own, strict=True)
    ]
    write_csv(out / "ope-policies.csv", each, ("critic", "policy"))
    shown = [[x if isinstance(x, str) else "" if np.isnan(x) else f"{x:.3g}" for x in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *shown]
    (out / "ope.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    print((out / "ope.md").read_text())
    return rows


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Draw the error over the operations of an update, without noise on the targets."""
    clean = {row["critic"]: row for row in rows if "noise" not in row["critic"]}
    steps = sorted((name for name in clean if name.startswith("flow")), key=lambda name: int(name.split()[-1]))
    with figure(path, 7, 4, title="Error of values over operations") as (_, (ax,)):
        for number, names in enumerate([steps, *([name] for name in clean if name not in steps)]):
            x, y = np.transpose([(clean[name]["GFLOP per update"], clean[name]["error"]) for name in names])
            label = "flow, K = " + ", ".join(name.split()[-1] for name in steps) if number == 0 else names[0]
            ax.plot(x, y, "o-", color=COLOURS[number], label=label)
        spread = rows[0]["error"] / rows[0]["error / spread"]
        ax.axhline(spread, color=GREY, linestyle=":", label="spread of the true values")
        ax.set(xlabel="GFLOP per update", ylabel="mean absolute error", xlim=(0, None), ylim=(0, None))
        ax.legend(fontsize=8)


def scores(
    estimates: np.ndarray, truths: np.ndarray, trajectories: np.ndarray, reference: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the metrics of a critic's estimates (policies,), with intervals over the `trajectories` that these are
    from, by number; `reference`: the estimates of the critic that it is compared with."""
    errors = np.abs(estimates - truths)
    row = {"error": errors.mean()} | interval("error", errors, trajectories)
    if reference is not None:
        difference = errors - np.abs(reference - truths)
        row |= {"to the reference": difference.mean()} | interval("difference", difference, trajectories)
    row["error / spread"] = errors.mean() / truths.std() if truths.std() else np.nan
    row["rank correlation"] = np.asarray(stats.kendalltau(estimates, truths))[0]
    return {name: float(x) for name, x in row.items()}


def interval(name: str, x: np.ndarray, trajectories: np.ndarray) -> dict[str, float]:
    """Return Student's interval over the trajectories that policies are from, of one number for each policy."""
    means = np.array([x[trajectories == number].mean() for number in np.unique(trajectories)])
    return dict(zip((f"{name} low", f"{name} high"), mean_interval(means), strict=True))


if __name__ == "__main__":
    main()
