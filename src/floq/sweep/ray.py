"""Jobs of a sweep on Ray, which places them on nodes and retries those that were killed.

Ray carries no results: a job writes run folders, and the next try resumes from their checkpoints. So all nodes must see
the same folders, which is checked on each node before training.
"""

import contextlib
import io
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
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from floq.runs.config import Config
from floq.runs.run import installed_versions
from floq.sweep.jobs import ATTEMPTS, Board, Job, Outcome, runs_of, try_job
from floq.sweep.sweep import SweepOptions
from floq.utils.errors import Failed, Interrupted, UserError, in_one_line
from floq.utils.files import is_locked, user_path
from floq.utils.machine import CORES, cores, enable_compilation_cache
from floq.utils.progress import Display
from floq.utils.signals import catch_signals

STORE_BYTES = 100 * 2**20  # for objects that tasks exchange, which are few
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 180.0  # for the first answer of a node
PREDECESSOR_TIMEOUT_S = 60.0  # for the exit of a process that Ray has given up
POLL_SECONDS = 0.5
GPU_MEMORY = 0.9  # fraction of a shared GPU's memory for all its jobs together


class JobResources(NamedTuple):
    """Resources of each job, the number of jobs that run at once, and a description of the machines."""

    cores: int
    gpus: float
    slots: int
    machines: str

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.machines}: {_plural(self.slots, 'job')} at once, each with {_plural(self.cores, 'core')}{gpus}"


class Preempted(Exception):
    """A signal ended a job that the user has not stopped: Ray is to retry it."""


# --- Driver ---


@contextlib.contextmanager
def ray_cluster(options: SweepOptions) -> Iterator[JobResources]:
    """Connect to Ray, or start it on this machine, and yield the resources of a job; a context manager. Raises
    UserError if there is no such cluster, or no node of it is large enough for a job."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would send usage statistics
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = options.address or "auto"
    if address == "local":
        how |= {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        if address not in ("auto", "local"):  # without this check, Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        with warnings.catch_warnings():  # JAX warns of os.fork, which is safe here: another program is executed at once
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address=address, **how)
    except (OSError, RayError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--address={address}: no Ray cluster answers ({in_one_line(error)[:200]}): start one with ray "
            "start --head, or give --address=local"
        ) from error
    try:
        yield _share(options, _nodes())
    finally:
        ray.shutdown()


def train_jobs(jobs: Sequence[Job], max_retries: int, share: JobResources, display: Display) -> list[Outcome]:
    """Train jobs, whose runs have the same `save_dir` and `dataset_dir`, on the cluster, as many at once as it has room
    for; a lost one is tried so many more times. Shows their progress, and returns the outcome of each.

    Raises:
        UserError: a node does not see the folders of the runs.
        Failed: the cluster itself is lost.
        Interrupted: a signal arrived; the jobs that were being trained have written checkpoints.
    """
    configs = [config for job in jobs for config in job.configs]
    save_dir = user_path(configs[0].save_dir)
    mark, cwd = save_dir.absolute() / f".sweep-{uuid.uuid4().hex[:12]}", None if save_dir.is_absolute() else os.getcwd()
    mark.mkdir(parents=True)
    inputs = {path for c in configs for path in (c.dataset_dir, c.dataset, c.restore_path) if path}
    options = {"num_cpus": share.cores, "num_gpus": share.gpus, "max_retries": max_retries}
    task: Any = ray.remote(max_calls=1)(_train_on_node)  # each in a new process with its own devices and memory
    waiting: dict[Any, int] = {}
    board, handled = Board(jobs, mark, display), 0  # signals
    quiet = io.StringIO()  # for Ray's messages about retries; its logs keep them
    try:
        _check_nodes(_nodes(), [str(mark), *sorted(path for path in inputs if os.path.exists(user_path(path)))])
        with catch_signals() as received, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            for number, job in enumerate(jobs):
                own = json.dumps([config.to_json() for config in job.configs])
                submit = task.options(**options, retry_exceptions=[Preempted], name=f"job {number + 1}")
                ref = submit.remote(str(mark), cwd, number, job.label, own, share.cores, share.gpus)
                waiting[ref] = number
            while waiting:
                for ref in ray.wait(list(waiting), timeout=POLL_SECONDS)[0]:
                    board.ended(waiting.pop(ref), _outcome(ref))
                if len(received) > handled:
                    for ref in waiting:
                        ray.cancel(ref, force=handled > 0)
                    if not handled:
                        display.note("stopping: jobs write checkpoints; once more, and they end at once")
                    handled = len(received)
                board.look()
        board.summarise()
    except RayError as error:
        raise Failed(f"the cluster is lost ({in_one_line(error)[:200]}); the same command goes on") from error
    finally:
        shutil.rmtree(mark, ignore_errors=True)
    if received:
        raise Interrupted("stopped; the same command goes on, with what is on disk", received[0])
    return [board.outcomes[number] for number in range(len(jobs))]


def _outcome(ref: Any) -> Outcome:
    """Return the outcome of a job whose task has ended."""
    try:
        return ray.get(ref)
    except TaskCancelledError:
        return Outcome("stopped")
    except RayError as error:
        reason = in_one_line(error.cause if isinstance(error, RayTaskError) else error)[:300]
        was_lost = isinstance(error, Preempted) or not isinstance(error, RayTaskError)
        return Outcome("failed", f"lost on every try: {reason}" if was_lost else reason, str(error))


# --- Nodes ---


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _amount(node: dict[str, Any], resource: str) -> float:
    return node["Resources"].get(resource, 0.0)


def _plural(number: int | float, noun: str) -> str:
    return f"{number:g} {noun}{'s' * (number != 1)}"


def _share(options: SweepOptions, nodes: Sequence[dict[str, Any]]) -> JobResources:
    """Resolve the resources of a job on these nodes: by default a GPU with its part of a node's cores, or without GPUs
    two cores. Raises UserError if no node is large enough."""
    with_gpus = [node for node in nodes if _amount(node, "GPU")]
    gpus = options.gpus_per_cell if options.gpus_per_cell is not None else float(bool(with_gpus))
    if options.cores_per_cell is not None:
        wanted = options.cores_per_cell
    elif gpus and with_gpus:
        wanted = max(1, int(min(gpus * _amount(node, "CPU") / _amount(node, "GPU") for node in with_gpus)))
    else:
        wanted = max(1, min(2, int(max((_amount(node, "CPU") for node in nodes), default=1))))
    room = [int(min(_amount(n, "CPU") // wanted, _amount(n, "GPU") / gpus if gpus else float("inf"))) for n in nodes]
    have = [
        _plural(_amount(node, "CPU"), "core") + (f" and {_plural(_amount(node, 'GPU'), 'GPU')}" if with_gpus else "")
        for node in nodes
    ]
    if not sum(room):
        largest = "; ".join(dict.fromkeys(have)) or "nothing"
        flags = f"--cores_per_cell={wanted} --gpus_per_cell={gpus:g}"
        raise UserError(f"no node has room for a job with {flags}: they have {largest}; give less of one of them")
    usable = [kind for kind, jobs in zip(have, room, strict=True) if jobs]
    described = (f"{_plural(usable.count(kind), 'node')} with {kind}" for kind in dict.fromkeys(usable))
    return JobResources(wanted, gpus, sum(room), ", ".join(described))


def _check_nodes(nodes: Sequence[dict[str, Any]], paths: Sequence[str]) -> None:
    """Raise UserError if a node does not see these paths, or has another version of floq."""
    probe = ray.remote(_probe_node)
    asked = {}
    for node in nodes:
        strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        asked[probe.options(num_cpus=0, scheduling_strategy=strategy).remote(paths)] = node
    answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=PROBE_TIMEOUT_S)
    if silent:
        names = ", ".join(asked[ref]["NodeManagerHostname"] for ref in silent)
        raise Failed(f"no answer from {names} within {PROBE_TIMEOUT_S:.0f} s: look at ray status")
    here = installed_versions()["floq"]
    for ref in answered:
        name = asked[ref]["NodeManagerHostname"]
        try:
            lacking, version = ray.get(ref)
        except RayError as error:
            if asked[ref]["NodeID"] not in {node["NodeID"] for node in _nodes()}:
                continue  # it has left the cluster
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


# --- Worker processes on the nodes ---


def _probe_node(paths: Sequence[str]) -> tuple[list[str], str]:
    """Return which of these paths cannot be read here (the first: read and written), and the version of floq."""
    needed = {path: os.R_OK if number else os.R_OK | os.W_OK for number, path in enumerate(paths)}
    return [path for path, mode in needed.items() if not os.access(user_path(path), mode)], installed_versions()["floq"]


def _train_on_node(
    mark: str, cwd: str | None, number: int, label: str, configs: str, cores: int, gpus: float
) -> Outcome:
    """Train a job in a process of its own, or resume it. `configs` are its configurations as JSON.

    Raises:
        Preempted: a signal ended it; its checkpoints are written.
    """
    node = f"{socket.gethostname()} {ray.get_runtime_context().get_node_id()[:4]}"
    if not os.path.isdir(mark):  # nodes that joined later were not probed
        return Outcome("failed", f"node {node} does not see {Path(mark).parent}, which all must share")
    if cwd is not None:
        os.chdir(cwd)
    with open(Path(mark) / ATTEMPTS.format(number), "a") as file:
        file.write(json.dumps({"node": node, "pid": os.getpid(), "time": time.time()}) + "\n")
    os.environ |= {CORES: str(cores), "NPROC": str(cores)}  # XLA reads NPROC
    if 0 < gpus < 1:
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_MEMORY * gpus:.2f}")
    enable_compilation_cache()
    job = Job(label, tuple(map(Config.from_json, json.loads(configs))))
    folders = [run.folder for config in job.configs for run in runs_of(config)]
    end = time.monotonic() + PREDECESSOR_TIMEOUT_S  # an earlier try may outlive its node's connection to Ray
    while any(map(is_locked, folders)) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    try:
        return try_job(job)
    except Interrupted as stop:
        if stop.signum == signal.SIGINT:  # Ray's way to cancel a task
            return Outcome("stopped", str(stop))
        raise Preempted(str(stop)) from None
