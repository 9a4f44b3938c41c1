"""What kills cost a sweep on Ray: whether each job still ends once, and as a serial sweep does.

    python benchmarks/ray_kills.py [--sweeps 3] [--kills 4] [--steps 2000] [--seed 0] [--keep DIR]

Each sweep trains six small runs as three jobs on a Ray cluster of this machine: a head without cores and two nodes
with one each, all of them processes of their own. Meanwhile, at random moments, something is killed: the process that
trains a job (SIGKILL), the same with the notice that a cluster gives before it takes a machine back (SIGTERM), or a
whole node (SIGKILL to its raylet; a fresh one joins). Then every file of every run is compared with a serial sweep of
the same runs, bit by bit but for the times in them. Needs floq[ray].
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import signal
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from floq import cli
from floq.sweep.jobs import ATTEMPTS

KINDS = {"worker": signal.SIGKILL, "notice": signal.SIGTERM, "node": signal.SIGKILL}
STORE_BYTES = 80 * 2**20


class Cluster:
    """A head without cores and nodes with one each, as processes of this machine. A context manager."""

    def __init__(self, nodes: int = 2, cores: int = 1):
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # of JAX: another program begins at once
        from ray.cluster_utils import Cluster as RayCluster

        self._cores = cores
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        self._cluster = RayCluster(
            initialize_head=True, head_node_args=head, shutdown_at_exit=False
        )  # signals are ours
        self.address = self._cluster.address
        for _ in range(nodes):
            self.add_node()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()

    def add_node(self) -> None:
        self._cluster.add_node(num_cpus=self._cores, object_store_memory=STORE_BYTES)

    def kill_node(self, name: str) -> None:
        """Kill the node whose id begins like this, and have a fresh one join."""
        (node,) = (node for node in self._cluster.worker_nodes if node.node_id.startswith(name))
        self._cluster.remove_node(node, allow_graceful=False)
        self.add_node()


class Killer(threading.Thread):
    """Kills, one kind after another, each a random while after another checkpoint has appeared."""

    def __init__(self, cluster: Cluster, save_dir: Path, kinds: Sequence[str], rng: random.Random, pause: float = 0.5):
        super().__init__(daemon=True)
        self._cluster, self._save_dir, self._kinds, self._rng = cluster, save_dir, kinds, rng
        self._pause = pause
        self.done: Counter[str] = Counter()
        self.over = threading.Event()

    def run(self) -> None:
        for kind in self._kinds:
            before = self._saved()
            while self._saved() <= before:
                if self.over.wait(0.02):
                    return
            time.sleep(self._rng.uniform(0, self._pause))
            running = self._running()
            if running:
                self._kill(kind, self._rng.choice(running))

    def _kill(self, kind: str, run: dict) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if kind == "node":
                self._cluster.kill_node(run["node"].split()[-1])
            else:
                os.kill(run["pid"], KINDS[kind])
            self.done[kind] += 1

    def _saved(self) -> int:
        return len(list(self._save_dir.glob("*/*/*/*/checkpoints/[0-9]*")))

    def _running(self) -> list[dict]:
        """The newest try of each job whose process is alive."""
        tries = []
        for path in self._save_dir.glob(f".sweep-*/{ATTEMPTS.format('*')}"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                last = json.loads(path.read_text().splitlines()[-1])
                os.kill(last["pid"], 0)
                tries.append(last)
        return tries


def make_data(path: Path) -> Path:
    """Episodes of nothing in particular, as an npz file."""
    rng = np.random.default_rng(0)
    rows = 400
    ends = np.arange(rows) % 50 == 49
    np.savez(
        path,
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        rewards=-rng.random(rows).astype(np.float32),
        terminals=ends.astype(np.float32),
        timeouts=np.zeros(rows, np.float32),
    )
    return path


def flags(data: Path, steps: int, seeds: int = 2) -> list[str]:
    """What is swept: programs of three sizes, some seeds each."""
    return [
        *("--agent=fql", f"--dataset={data}", "--env_name=None", f"--offline_steps={steps}"),
        *(f"--log_interval={steps // 40}", f"--eval_interval={steps // 4}", f"--save_interval={steps // 20}"),
        *("--agent.batch_size=8", "--agent.actor_hidden_dims=(8,)", "--agent.value_hidden_dims=(8,)"),
        *("--agent.flow_steps", "2", "3", "4", "--seeds", *map(str, range(seeds))),
    ]


def difference(one: Path, other: Path) -> str | None:
    """In what two folders of runs differ, times and names aside; None if in nothing."""
    runs = [{_name(folder): folder for folder in root.glob("*/*/*/sd*")} for root in (one, other)]
    counts = [len(list(root.glob("*/*/*/sd*"))) for root in (one, other)]
    if counts[0] != counts[1] or runs[0].keys() != runs[1].keys():
        return f"{counts[0]} and {counts[1]} run folders"
    for name, folder in runs[0].items():
        there = runs[1][name]
        if not all((run / "summary.json").exists() for run in (folder, there)):
            return f"{name} has not ended"
        for file in ("train.csv", "eval.csv"):
            if _rows(folder / file) != _rows(there / file):
                return f"{file} of {name}"
        for mine, theirs in zip(_tensors(folder), _tensors(there), strict=True):
            if mine[0] != theirs[0] or not np.array_equal(mine[1], theirs[1]):
                return f"{mine[0]} of {name}"
    return None


def _name(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return f"seed {config['seed']}, actor_flow_steps {config['agent']['actor_flow_steps']}"


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]


def _tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    last = max((folder / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    return iter(sorted(load_file(last / "state.safetensors").items()))


def sweep(words: Sequence[str], save_dir: Path) -> tuple[int, str]:
    """The exit code of `floq sweep`, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.run(["sweep", *words, f"--save_dir={save_dir}"])
    return code, printed.getvalue()


def killed_sweep(words: Sequence[str], save_dir: Path, kinds: Sequence[str], rng: random.Random) -> tuple[Counter, str]:
    """A sweep in the middle of which these kinds of things are killed. Returns how often what was, and what the sweep
    printed."""
    with Cluster() as cluster:
        killer = Killer(cluster, save_dir, kinds, rng)
        killer.start()
        code, printed = sweep([*words, f"--address={cluster.address}", "--cores_per_cell=1"], save_dir)
        killer.over.set()
        killer.join()
    if code:
        raise RuntimeError(f"floq sweep ended with {code}:\n{printed}")
    return killer.done, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", help="leave the runs in this folder")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with contextlib.ExitStack() as stack:
        root = Path(options.keep or stack.enter_context(tempfile.TemporaryDirectory()))
        root.mkdir(parents=True, exist_ok=True)
        words = flags(make_data(root / "data.npz"), options.steps)
        sweep(words, root / "serial")
        print(f"{'sweep':>5} {'jobs':>5} {'runs':>4}  " + "  ".join(f"{kind:>6}" for kind in KINDS), end="")
        print(f"  {'retries':>7}  {'seconds':>7}  against the serial sweep")
        for number in range(1, options.sweeps + 1):
            kinds, began = (list(KINDS) * options.kills)[: options.kills], time.monotonic()
            rng.shuffle(kinds)
            killed, printed = killed_sweep(words, root / f"sweep{number}", kinds, rng)
            (done, retries), *_ = re.findall(r"jobs +(\d+) done; (\d+) retr", printed)
            runs = len(list((root / f"sweep{number}").glob("*/*/*/sd*")))
            counts = "  ".join(f"{killed[kind]:>6}" for kind in KINDS)
            found = difference(root / "serial", root / f"sweep{number}") or "equal"
            seconds = time.monotonic() - began
            print(f"{number:>5} {done:>5} {runs:>4}  {counts}  {retries:>7}  {seconds:>7.0f}  {found}", flush=True)


if __name__ == "__main__":
    main()
