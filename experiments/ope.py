"""Which critic knows what a policy is worth? Fitted Q evaluation of policies whose returns are measured.

    floq sweep experiments/ope.toml --save_dir DIR/policies            # trains the policies
    python experiments/ope.py critics --save_dir DIR/policies --out DIR

Parts: `critics` (six of them, all bounded alike), `steps` (K = 2, 4, 16) and `noise` (on the targets, 4 and 8% of the
range of returns). A critic's estimates are a file DIR/NAME.json; one that is there is not made again, so the same
command goes on. The table over all that is there, ope.csv and ope.md, has the mean absolute error, the same as a share
of the spread of the true values, and Kendall's rank correlation, with 95% intervals that resample policies and seeds
alike, and the signed error on the policies of each origin: positive where a critic overrates them.

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
from floq.analysis.matching import matched
from floq.analysis.report.csv_files import write_csv
from floq.sweep.experiment import read_experiment
from floq.sweep.jobs import plan

HERE = Path(__file__).parent
STEPS = (2_000, 6_000)  # of the checkpoints whose policies are evaluated
SETTINGS = {"tau": 0.02, "offline_steps": 25_000, "clip_targets": True, "lr": 1e-3, "batch_size": 64}
SIZES: dict[str, Any] = {"block_width": 64, "block_depth": 2, "value_hidden_dims": (64, 64)}
FLOW: dict[str, Any] = {"noise_samples": 4, "target_noise_samples": 2, "noise_scheme": "stratified"}
ACTIONS = {"target_action_samples": 2}
RESAMPLES = 4_000

CRITICS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "critics": {
        "flow, K = 8": ("floq", FLOW | {"critic_flow_steps": 8}),
        "flow, K = 1": ("floq", FLOW | {"critic_flow_steps": 1}),
        "looped, K = 8": ("looped", {"critic_flow_steps": 8, "target_noise_samples": 2}),
        "scalar": ("scalar", ACTIONS),
        "ten members": ("scalar", ACTIONS | {"value_num_ensembles": 10}),
        "categorical, equal operations": ("categorical", ACTIONS),
    },
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
    parser.add_argument("--save_dir", required=True, help="of the sweep that trained the policies")
    parser.add_argument("--dataset_dir", default="~/.ogbench/data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--truth", type=int, default=100, help="episodes that measure the return of a policy")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS)
    parser.add_argument("--offline_steps", type=int, default=SETTINGS["offline_steps"])
    given = parser.parse_args()
    runs = trained(given.save_dir, given.dataset_dir)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, (critic, own) in CRITICS[given.part].items():
        file, measured = given.out / f"{name}.json", sorted(given.out.glob("*.json"))
        if file.exists():
            continue
        settings = settings_of(name, critic, own, next(iter(runs.values()))) | {"offline_steps": given.offline_steps}
        where = {"starts": "env", "truth": 0 if measured else given.truth}  # the first measures for all
        common = {"steps": given.steps, "seeds": given.seeds, "save_dir": str(given.out)}
        policies = floq.ope(runs, critic=critic, **where, **common, **settings).policies
        truths = json.loads(measured[0].read_text())["truths"] if measured else {p.policy: p.truth for p in policies}
        file.write_text(json.dumps({"estimates": {p.policy: p.seeds for p in policies}, "truths": truths}))
    write_tables(given.out)


def trained(save_dir: str, dataset_dir: str) -> dict[str, floq.Run]:
    """Return the runs whose policies are evaluated, by the group that they come from and the seed."""
    entries = plan(read_experiment(HERE / "ope.toml", "laptop"), save_dir, dataset_dir)
    runs = [(entry.group.name, run) for entry in entries for run in entry.finished]
    if any(run is None for _, run in runs):
        raise SystemExit(f"train the policies first: floq sweep {HERE / 'ope.toml'} --save_dir {save_dir}")
    return {f"{group}-{run.config.seed}": run for group, run in runs if run is not None}


def settings_of(name: str, critic: str, own: dict[str, Any], run: floq.Run) -> dict[str, Any]:
    """Return the settings of a critic: noise in units of return, and the width that equal operations need."""
    settings = dict(own)
    if share := settings.pop("noise", 0):
        low, high = run.load_agent().scale.support(0.0)
        settings["target_noise_magnitude"] = share * float(high - low)

    def agent(critic: str, own: dict[str, Any]) -> AgentConfig:
        known = settings_type(critic, "fixed").__dataclass_fields__
        return AgentConfig.from_flat(critic, "fixed", {k: x for k, x in (SIZES | SETTINGS | own).items() if k in known})

    config = agent(critic, settings)
    if "equal operations" in name:
        flow, dims = agent("floq", FLOW | {"critic_flow_steps": 8}), run.load_agent()
        config = matched(config, flow, dims.obs_spec, dims.action_dim, "flops")
    wanted = SIZES | SETTINGS | settings
    return {key: value for key, value in config.flat().items() if key in wanted}


def write_tables(out: Path) -> None:
    """Write ope.csv and ope.md from the files of estimates."""
    rows = []
    for file in sorted(out.glob("*.json")):
        content = json.loads(file.read_text())
        names = sorted(content["estimates"])
        estimates = np.array([content["estimates"][name] for name in names])  # (policies, seeds)
        truths = np.array([np.mean(content["truths"][name]) for name in names])
        row: dict[str, Any] = {"critic": file.stem}
        for metric, values in scores(estimates, truths).items():
            row |= dict(zip((metric, f"{metric} low", f"{metric} high"), values, strict=True))
        for origin in sorted({name.split("-")[0] for name in names}):
            own = [number for number, name in enumerate(names) if name.startswith(f"{origin}-")]
            row[f"overrates {origin}"] = float((estimates.mean(axis=1) - truths)[own].mean())
        rows.append(row)
    write_csv(out / "ope.csv", rows, ("critic",))
    shown = [[str(x) if isinstance(x, str) else f"{x:.3g}" for x in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *shown] if rows else []
    (out / "ope.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))
    print((out / "ope.md").read_text())


def scores(estimates: np.ndarray, truths: np.ndarray) -> dict[str, tuple[float, float, float]]:
    """Return each metric of estimates (policies, seeds) with its 95% interval over resampled policies and seeds."""

    def metrics(estimates: np.ndarray, truths: np.ndarray) -> list[float]:
        mean = estimates.mean(axis=1)
        error = float(np.abs(mean - truths).mean())
        rank = float(np.asarray(stats.kendalltau(mean, truths))[0]) if len(set(truths)) > 1 else np.nan
        return [error, error / float(np.std(truths)) if np.std(truths) else np.nan, rank]

    rng, (policies, seeds) = np.random.default_rng(0), estimates.shape
    draws = []
    for _ in range(RESAMPLES):
        rows, columns = rng.integers(policies, size=policies), rng.integers(seeds, size=seeds)
        draws.append(metrics(estimates[rows][:, columns], truths[rows]))
    low, high = np.nanquantile(draws, (0.025, 0.975), axis=0)
    names = ("error", "error / spread", "rank correlation")
    found = zip(names, metrics(estimates, truths), low, high, strict=True)
    return {name: (value, float(lower), float(upper)) for name, value, lower, upper in found}


if __name__ == "__main__":
    main()
