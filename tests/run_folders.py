"""Run folders as `floq train` leaves them, without training: for the tests of reports."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TASK = "cube-double-play-singletask-v0"
AGENT = {"critic": "floq", "actor": "fql", "discount": 0.99, "alpha": 300.0, "critic_flow_steps": 8}


def make_run(
    root: Path,
    task: str | None = TASK,
    seed: int = 0,
    success: Sequence[float] = (0.0, 0.4, 0.6),
    *,
    agent: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Sequence[float]] | None = None,
    diverged: int | None = None,
    value: float = -10.0,
    finished: bool = True,
    **settings: Any,
) -> Path:
    """A run with an evaluation at step 1 and then every 100 steps, of these success rates or of what `evaluation` says,
    and a row of train.csv for each; training `diverged` at that step. What is not `finished` has no summary and was
    meant to go on."""
    agent = AGENT | dict(agent or {})
    columns = dict(evaluation or {"evaluation/success": success, "evaluation/episode.return": [-100.0] * len(success)})
    count = len(next(iter(columns.values())))
    steps = [1, *range(100, 100 * count, 100)]
    total = steps[-1] if finished else 10 * steps[-1]
    config = {
        "project_name": "floq",
        "run_group": "debug",
        "seed": seed,
        "env_name": task,
        "save_dir": str(root),
        "dataset": None,
        "offline_steps": total,
        "online_steps": 0,
        "eval_episodes": 50,
        "success_timing": "post",
        "agent": agent,
        "protocol": "50 episodes, success_timing=post, label_timing=pre",
        "versions": {"floq": "0.1.0", "jax": "0.10.2"},
        "data": {"provenance": "cube-double-play-v0: downloaded"},
    } | settings
    folder = root / config["run_group"] / str(task) / f"sd{seed:03d}_{len(list(root.rglob('config.json'))):04d}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    times = [10.0 * (number + 1) for number in range(count)]
    _write(folder / "eval.csv", {"step": steps, **columns, "time/total_time": times})
    train = {"step": range(50, 50 * count + 50, 50), "training/critic/critic_loss": [1.0] * count}
    train |= {"training/critic/q": [value] * count, "time/epoch_time": [0.01] * count, "time/total_time": times}
    _write(folder / "train.csv", train)
    if diverged is not None:
        (folder / "diverged.json").write_text(json.dumps({"step": diverged, "term": "loss"}))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"eval_episodes": 50, **SUMMARY, "steps": total}))
    return folder


SUMMARY = {"updates_per_second": 100.0, "seconds": 60.0, "runs_in_fleet": 1}


def _write(path: Path, columns: Mapping[str, Sequence[float]]) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerow(columns)
        csv.writer(file).writerows(zip(*columns.values(), strict=True))
