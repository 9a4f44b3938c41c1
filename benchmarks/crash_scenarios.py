"""What `crashes.py` trains, and what has to be true of it after each crash and in the end."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np

from floq.runs import checkpoint
from floq.runs.checkpoint import steps
from floq.utils.errors import UserError

ENV, EPISODE = "MountainCarContinuous-v0", 50  # light: its process starts in a second
TINY = (
    *("--agent.batch_size=8", "--agent.value_hidden_dims=(8,)", "--agent.actor_hidden_dims=(8,)"),
    *("--eval_episodes=2", "--log_interval=10", "--save_interval=20"),
)
FLOQ = ("--agent.block_width=8", "--agent.block_depth=1", "--agent.noise_samples=2")
LOGS = ("train.csv", "eval.csv")


@dataclass(frozen=True)
class Scenario:
    """A command that is crashed and resumed. What is promised of it: rows for the same steps in any case, the same
    bits until `same_until`, by default the end."""

    name: str
    flags: tuple[str, ...]
    points: tuple[str, ...]
    runs: int = 1
    same_until: int | None = None

    def command(self, data: Path, save_dir: Path) -> list[str]:
        """The words after `floq`."""
        return ["train", *(flag.format(data=data) for flag in (*self.flags, *TINY)), f"--save_dir={save_dir}"]


ALWAYS = ("create", "json", "find", "cut back", "cut csv", "log", "save", "save", "draw", "advance")
SCENARIOS = [
    Scenario(
        "offline",
        ("--dataset={data}", f"--env_name={ENV}", "--offline_steps=1200", "--eval_interval=400", *FLOQ),
        (*ALWAYS, "evaluate"),
    ),
    Scenario(
        "held-out data",
        ("--agent=fql", "--dataset={data}", "--offline_steps=1600", "--eval_interval=200"),
        (*ALWAYS, "held out"),
    ),
    Scenario(
        "fleet of 3",
        (
            *("--agent=fql", "--dataset={data}", f"--env_name={ENV}", "--seeds", "0", "1", "2"),
            *("--offline_steps=1200", "--eval_interval=400"),
        ),
        (*ALWAYS, "save", "save", "evaluate"),
        runs=3,
    ),
    Scenario(
        "offline, then online",
        (
            *("--agent=fql", "--dataset={data}", f"--env_name={ENV}", "--offline_steps=600", "--online_steps=300"),
            *("--eval_interval=150",),
        ),
        (*ALWAYS, "evaluate"),
        same_until=600,
    ),
    Scenario(
        "from scratch",
        (
            *("--agent=fql", f"--env_name={ENV}", "--offline_steps=0", "--online_steps=400", "--eval_interval=100"),
            *("--warmup_steps=100",),
        ),
        ("create", "json", "find", "cut back", "cut csv", "log", "save", "draw", "evaluate"),
        same_until=0,
    ),
]


def write_data(path: Path) -> Path:
    """Random play as an npz file, which any scenario can train on."""
    env, rng = gymnasium.make(ENV), np.random.default_rng(0)
    columns: dict[str, list[np.ndarray]] = {}
    obs, _ = env.reset(seed=0)
    for step in range(1, 30 * EPISODE + 1):
        act = rng.uniform(-1, 1, 1).astype(np.float32)
        next_obs, reward, terminated, truncated, _ = env.step(act)
        ends = truncated or step % EPISODE == 0
        row = {"observations": obs, "actions": act, "next_observations": next_obs}
        for name, value in (row | {"rewards": np.float32(reward), "terminals": terminated, "timeouts": ends}).items():
            columns.setdefault(name, []).append(np.asarray(value))
        obs = env.reset()[0] if terminated or ends else next_obs
    env.close()
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.stack(column) for name, column in columns.items()})
    return path


def run_folders(save_dir: Path) -> list[Path]:
    """The runs in a folder, in the order of their seeds."""
    return sorted(path.parent for path in save_dir.glob("*/*/*/*/config.json"))


def phase(folders: Sequence[Path], printed: str) -> str:
    """What a process was at when it ended, by what it had printed and by what lies in the folders."""
    if "run     " not in printed:
        return "start-up"
    if any(path for folder in folders for path in (folder / "checkpoints").glob(".*")):
        return "writing a checkpoint"
    if len({tuple(steps(folder / "checkpoints")) for folder in folders}) > 1:
        return "between the saves of a fleet"
    if "drawing" in printed:
        return "drawing"
    trained, evaluated = (_steps(folders[0] / name) for name in LOGS)
    interval = json.loads((folders[0] / "config.json").read_text())["eval_interval"]
    if trained and len(evaluated) <= trained[-1] // interval:
        return "training, and evaluating"
    return "training"


def damage(folders: Sequence[Path]) -> list[str]:
    """What a crash has done to runs that nothing may do: in words, nothing if all is well."""
    found = []
    for folder in folders:
        at = folder / "checkpoints"
        for step in steps(at)[-1:]:
            try:
                checkpoint.load(at, step)
                checkpoint.load_replay(at, step)
            except UserError as error:
                found.append(f"unreadable: {error}")
        found += [
            f"{folder.name} lost {name}" for name in ("config.json", "checkpoints") if not (folder / name).exists()
        ]
    return found


def losses(scenario: Scenario, reference: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """In what finished runs differ from the undisturbed ones although they must not, in words."""
    found = [] if len(reference) == len(folders) else [f"{len(folders)} runs in place of {len(reference)}"]
    for there, here in zip(reference, folders, strict=False):
        found += [f"{here.name}: {what}" for what in _differences(there, here, scenario.same_until)]
    return found


def _differences(there: Path, here: Path, same_until: int | None) -> list[str]:
    if not (here / "summary.json").exists():
        return ["not finished"]
    found, last = [], float("inf") if same_until is None else same_until
    for name in LOGS:
        due, written = _steps(there / name), _steps(here / name)
        found += [f"{name}: row {step} lost" for step in due if step not in written]
        found += [
            f"{name}: row {step} doubled or too many" for step in written if written.count(step) > due.count(step)
        ]
        if _rows(there / name, last) != _rows(here / name, last):
            found.append(f"{name}: rows differ")
    scheduled = [step for step in steps(there / "checkpoints") if step <= last]
    for step in scheduled:
        states = [folder / "checkpoints" / str(step) / checkpoint.TENSORS for folder in (there, here)]
        if not states[1].exists():
            found.append(f"checkpoint {step} lost")
        elif states[0].read_bytes() != states[1].read_bytes():
            found.append(f"checkpoint {step}: other bits")
    if steps(here / "checkpoints")[-1:] != steps(there / "checkpoints")[-1:]:
        found.append("another last checkpoint")
    left = [path.name for path in (*here.glob(".*"), *(here / "checkpoints").glob(".*"))]
    return found + [f"{name} left behind" for name in left]


def _steps(path: Path) -> list[int]:
    return [int(row["step"]) for row in _rows(path, float("inf"), every=True)]


def _rows(path: Path, last: float, every: bool = False) -> list[dict[str, str]]:
    """The rows up to a step, without the times; of a file that is being written, those that are complete."""
    if not path.exists():
        return []
    text = path.read_text()
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in rows
        if every or int(row["step"]) <= last
    ]
