"""Cells of a sweep on Ray, which decides where each is trained, and tries again what was killed.

Ray carries no results: a job leaves run folders, and whoever tries it again goes on from their checkpoints. So all
nodes must see the same folders, which is checked on each before anything is trained.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from floq.runs.run import installed_versions
from floq.sweep.board import ATTEMPTS, Board
from floq.sweep.jobs import Job, Outcome, attempt
from floq.sweep.plan import runs_of
from floq.utils.errors import Failed, Interrupted, UserError, in_one_line
from floq.utils.files import is_held, user_path
from floq.utils.machine import CORES, cores, enable_compilation_cache
from floq.utils.signals import catch_signals

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before Ray is imported: it would report to its makers
try:
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise UserError("--address needs Ray: pip install 'floq[ray]'") from error

STORE_BYTES = 100 * 2**20  # for objects that tasks exchange, of which there are next to none
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 180.0  # what a node may take to answer for the first time
DYING_SECONDS = 60.0  # what a process may take that its node has given up
POLL_SECONDS = 0.5
GPU_MEMORY = 0.9  # of a shared GPU, what its jobs may take together


@dataclass(frozen=True)
class Placement:
    """Where jobs are trained, and what each is given; None is decided when the machines are known."""

    address: str
    cores_per_cell: int | None = None
    gpus_per_cell: float | None = None
    fleet_size: int | None = None
    max_retries: int = 20


class Share(NamedTuple):
    """What each job is given, how many fit the machines at once, and these in words."""

    cores: int
    gpus: float
    slots: int
    machines: str

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.machines}: {_counted(self.slots, 'job')} at once, each with {_counted(self.cores, 'core')}{gpus}"


class Preempted(Exception):
    """A signal ended a job that nobody here has stopped: it is to be tried elsewhere."""


# --- here ---


@contextlib.contextmanager
def connected(placement: Placement) -> Iterator[Share]:
    """Ray, at that address or of this machine's own, and what it gives to a job.

    Raises:
        UserError: there is no such cluster, or no node of it is large enough for a job.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if placement.address == "local":
        options |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        if placement.address not in ("auto", "local"):  # Ray would try for minutes
            host, _, port = placement.address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        with warnings.catch_warnings():  # JAX warns of forks, which these are not: another program begins at once
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address=placement.address, **options)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address={placement.address}: no Ray cluster answers ({in_one_line(error)[:200]}): start one with ray "
            "start --head, or give --address=local"
        ) from error
    try:
        yield _share(placement, _nodes())
    finally:
        ray.shutdown()


def train_jobs(jobs: Sequence[Job], placement: Placement, share: Share, show: bool = True) -> list[Outcome]:
    """Train jobs on the cluster, as many at once as it has room for, and show how they are getting on.

    Args:
        jobs: whose runs have the same `save_dir` and `dataset_dir`.
        placement: what the user wants.
        share: what `connected` says.
        show: print a table of the jobs, live on a terminal.

    Returns:
        What came of each job.

    Raises:
        UserError: a node does not see the folders of the runs.
        Failed: the cluster itself is lost.
        Interrupted: a signal came; the jobs that were being trained have written checkpoints.
    """
    first = jobs[0].configs[0]
    mark = user_path(first.save_dir).absolute() / f".sweep-{uuid.uuid4().hex[:12]}"
    mark.mkdir(parents=True)
    home = None if user_path(first.save_dir).is_absolute() else os.getcwd()
    try:
        _check_nodes(_nodes(), [str(mark), *_read_by(jobs)])
        with catch_signals() as received, Board(jobs, mark, show) as board:
            outcomes = _train(jobs, placement, share, board, received, (str(mark), home))
    except RayError as error:
        raise Failed(f"the cluster is lost ({in_one_line(error)[:200]}); the same command goes on") from error
    finally:
        shutil.rmtree(mark, ignore_errors=True)
    if received:
        raise Interrupted("stopped; the same command goes on, with what is on disk", received[0])
    return outcomes


def _read_by(jobs: Sequence[Job]) -> list[str]:
    """The files and folders on this machine that the runs of these jobs are going to read."""
    configs = [config for job in jobs for config in job.configs]
    named = {path for c in configs for path in (c.dataset_dir, c.dataset, c.restore_path) if path}
    return sorted(path for path in named if os.path.exists(user_path(path)))


def _train(
    jobs: Sequence[Job], placement: Placement, share: Share, board: Board, received: list[int], where: tuple
) -> list[Outcome]:
    """Have Ray train the jobs until all have ended, or until a signal has stopped those that had not."""
    options = {"num_cpus": share.cores, "num_gpus": share.gpus, "max_retries": placement.max_retries}
    task: Any = ray.remote(max_calls=1)(_train_there)  # each in a fresh process, whose devices and memory are its own
    waiting: dict[Any, int] = {}
    for number, job in enumerate(jobs):
        configs = json.dumps([config.to_json() for config in job.configs])
        begin = task.options(**options, retry_exceptions=[Preempted], name=f"job {number + 1}")
        waiting[begin.remote(*where, number, job.label, configs, share.cores, share.gpus)] = number
    outcomes: dict[int, Outcome] = {}
    asked = 0
    while waiting:
        for ref in ray.wait(list(waiting), timeout=POLL_SECONDS)[0]:
            number = waiting.pop(ref)
            outcomes[number] = _outcome(ref)
            board.ended(number, outcomes[number])
        if len(received) > asked:
            for ref in waiting:
                ray.cancel(ref, force=asked > 0)
            if not asked:
                board.say("stopping: jobs write checkpoints; once more, and they end at once")
            asked = len(received)
        board.look()
    return [outcomes[number] for number in range(len(jobs))]


def _outcome(ref: Any) -> Outcome:
    """What came of a job whose task is over."""
    try:
        return ray.get(ref)
    except TaskCancelledError:
        return Outcome("stopped")
    except RayError as error:
        reason = in_one_line(error.cause if isinstance(error, RayTaskError) else error)[:300]
        was_lost = isinstance(error, Preempted) or not isinstance(error, RayTaskError)
        return Outcome("failed", f"lost on every try: {reason}" if was_lost else reason, str(error))


# --- the nodes ---


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _has(node: dict[str, Any], resource: str) -> float:
    return node["Resources"].get(resource, 0.0)


def _counted(number: int | float, what: str) -> str:
    return f"{number:g} {what}{'s' * (number != 1)}"


def _share(placement: Placement, nodes: Sequence[dict[str, Any]]) -> Share:
    """What a job gets of these nodes: a GPU with its part of the cores of a node, or where there is none two cores."""
    with_gpus = [node for node in nodes if _has(node, "GPU")]
    gpus = placement.gpus_per_cell if placement.gpus_per_cell is not None else float(bool(with_gpus))
    if placement.cores_per_cell is not None:
        wanted = placement.cores_per_cell
    elif gpus and with_gpus:
        wanted = max(1, int(min(gpus * _has(node, "CPU") / _has(node, "GPU") for node in with_gpus)))
    else:
        wanted = max(1, min(2, int(max((_has(node, "CPU") for node in nodes), default=1))))
    room = [int(min(_has(n, "CPU") // wanted, _has(n, "GPU") / gpus if gpus else float("inf"))) for n in nodes]
    have = [
        _counted(_has(node, "CPU"), "core") + (f" and {_counted(_has(node, 'GPU'), 'GPU')}" if with_gpus else "")
        for node in nodes
    ]
    if not sum(room):
        largest = "; ".join(dict.fromkeys(have)) or "nothing"
        flags = f"--cores_per_cell={wanted} --gpus_per_cell={gpus:g}"
        raise UserError(f"no node has room for a job with {flags}: they have {largest}; give less of one of them")
    usable = [kind for kind, jobs in zip(have, room, strict=True) if jobs]
    nodes_in_words = (f"{_counted(usable.count(kind), 'node')} with {kind}" for kind in dict.fromkeys(usable))
    return Share(wanted, gpus, sum(room), ", ".join(nodes_in_words))


def _check_nodes(nodes: Sequence[dict[str, Any]], paths: Sequence[str]) -> None:
    """Raises UserError if a node does not see these paths, or has another version of floq."""
    probe = ray.remote(_look_around)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[probe.options(num_cpus=0, scheduling_strategy=there).remote(paths)] = node
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_SECONDS)
    if silent:
        names = ", ".join(asked[ref]["NodeManagerHostname"] for ref in silent)
        raise Failed(f"no answer from {names} within {PROBE_SECONDS:.0f} s: look at ray status")
    here = installed_versions()["floq"]
    for ref in answered:
        name = asked[ref]["NodeManagerHostname"]
        try:
            lacking, version = ray.get(ref)
        except RayError as error:
            if asked[ref]["NodeID"] not in {node["NodeID"] for node in _nodes()}:
                continue  # it has left
            raise UserError(
                f"node {name} cannot use floq ({in_one_line(error)[-200:]}): install it there, in the same version"
            ) from error
        if lacking:
            raise UserError(
                f"node {name} does not see {Path(lacking[0]).parent if lacking[0] == paths[0] else lacking[0]}: "
                "--save_dir, --dataset_dir and other data must be on storage that all nodes share"
            )
        if version != here:
            raise UserError(f"node {name} has floq {version}, this one {here}: install the same version on all nodes")


# --- there ---


def _look_around(paths: Sequence[str]) -> tuple[list[str], str]:
    """On a node: which of these paths cannot be read, or the first written to, and the version of floq."""
    needed = {path: os.R_OK if number else os.R_OK | os.W_OK for number, path in enumerate(paths)}
    return [path for path, mode in needed.items() if not os.access(user_path(path), mode)], installed_versions()["floq"]


def _train_there(
    mark: str, home: str | None, number: int, label: str, configs: str, cores: int, gpus: float
) -> Outcome:
    """On a node, in a process of its own: train a job, whose configurations come as JSON, or go on with it.

    Raises:
        Preempted: a signal ended it; there are checkpoints.
    """
    from floq.runs.config import Config

    node = f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:4]}"
    if not os.path.isdir(mark):  # of a node that joined later
        return Outcome("failed", f"node {node} does not see {Path(mark).parent}, which all must share")
    if home is not None:
        os.chdir(home)
    with open(Path(mark) / ATTEMPTS.format(number), "a") as file:
        file.write(json.dumps({"node": node, "pid": os.getpid(), "time": time.time()}) + "\n")
    os.environ |= {CORES: str(cores), "NPROC": str(cores)}  # NPROC is what XLA goes by
    if 0 < gpus < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_MEMORY * gpus:.2f}")
    enable_compilation_cache()
    job = Job(label, tuple(map(Config.from_json, json.loads(configs))))
    _await_predecessor(job)
    try:
        return attempt(job)
    except Interrupted as stop:
        if stop.signum == signal.SIGINT:  # which is how Ray tells a task that it is cancelled
            return Outcome("stopped", str(stop))
        raise Preempted(str(stop)) from None


def _await_predecessor(job: Job) -> None:
    """Wait while a process holds a run of the job: where its node is lost to Ray, it may live a little longer."""
    folders = [run.folder for config in job.configs for run in runs_of(config)]
    end = time.monotonic() + DYING_SECONDS
    while any(map(is_held, folders)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
