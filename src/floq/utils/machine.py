"""The machine: its cores, the versions of installed packages, and what JAX has to know before it starts.

JAX is imported where it is needed: worker processes import this file.
"""

import gc
import hashlib
import math
import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from floq.utils.errors import UserError

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time in so many microseconds
CORES = "FLOQ_CORES"  # variable of the environment: use no more cores than this
FROM_SOURCE = "from source"
CACHE_BYTES = 2**30
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CACHED_FROM_SECONDS = 0.3  # what compiles faster is not worth a file


def version(package: str) -> str:
    """The version of an installed package; of floq, "from source" where it runs without being installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        if package != "floq":
            raise
        return FROM_SOURCE


def worker_count(wanted: int | None, most: int) -> int:
    """How many workers to start: what the user wants or one per core, but no more than there is work for.

    Raises:
        UserError: the user wants less than one.
    """
    if wanted is not None and wanted < 1:
        raise UserError(f"workers={wanted}: must be at least 1")
    return min(wanted or cores(), most)


def cores() -> int:
    """The cores that this process may use, by its affinity, the quota of its container and the variable FLOQ_CORES."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (given := os.environ.get(CORES, "")).isdigit():
        count = max(1, min(count, int(given)))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        return count


def use_all_cores(devices: int) -> None:
    """Let each core be a device of its own, where the backend is a CPU and so many devices have something to do. It
    must come before JAX is used in this process, and does nothing after."""
    import jax

    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", min(devices, cores()))
        except RuntimeError:
            return


def be_deterministic() -> None:
    """Have GPUs give the same bits in every run, which costs speed: no atomic additions, no choice of kernels by their
    speed. Nothing changes on a CPU.

    Raises:
        UserError: JAX is at work on an accelerator in this process already, without this.
    """
    if DETERMINISTIC in (flags := os.environ.get("XLA_FLAGS", "")):
        return
    import jax

    if _jax_is_in_use() and jax.default_backend() != "cpu":
        raise UserError(
            f"--deterministic: JAX is in use in this process already; start Python with XLA_FLAGS={DETERMINISTIC}"
        )
    os.environ["XLA_FLAGS"] = f"{flags} {DETERMINISTIC}".strip()


def _jax_is_in_use() -> bool:
    """Whether its backends have started: then they refuse what must come before."""
    import jax

    now = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", cores() + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", now)
    return False


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs on disk from now on, so that the next process starts quickly, and return the folder: that
    of JAX_COMPILATION_CACHE_DIR if it is set, else one under the user's cache. None where that cannot be written.

    A program compiled for one processor may be illegal on another, and homes are shared between machines, so the folder
    is named after the processor's features.
    """
    import jax

    if (chosen := jax.config.values["jax_compilation_cache_dir"]) is not None:
        return Path(chosen)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = home / "floq" / "programs" / processor_digest()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # it cannot be written, or there is no home
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", CACHED_FROM_SECONDS)
    return folder


def clear_jit_cache() -> None:
    """Let go of all that was compiled in this process. On a CPU each program maps its code in thousands of pieces, and
    Linux grants a process 65,530 of them: after some thirty programs of training, LLVM dies for want of more."""
    import jax

    jax.clear_caches()
    gc.collect()  # what else holds a program may be part of a cycle


def processor_digest() -> str:
    """8 hexadecimal digits that tell processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    described = "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])
    return hashlib.sha256(described.encode()).hexdigest()[:8]
