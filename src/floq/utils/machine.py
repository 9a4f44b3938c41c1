"""The machine: its cores, the versions of installed packages, and settings of JAX that precede its start.

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

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, and of the period that they are for
CORES = "FLOQ_CORES"  # environment variable: use no more cores than this
FROM_SOURCE = "from source"
MAX_CACHE_BYTES = 2**30
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
MIN_COMPILE_SECONDS = 0.3  # programs that compile faster are not cached


def version(package: str) -> str:
    """Return the version of an installed package; for floq, "from source" where it is not installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        if package != "floq":
            raise
        return FROM_SOURCE


def worker_count(wanted: int | None, most: int) -> int:
    """Return how many workers to start: `wanted` or one per core, but at most `most`.

    Raises:
        UserError: `wanted` is less than 1.
    """
    if wanted is not None and wanted < 1:
        raise UserError(f"workers={wanted}: must be at least 1")
    return min(wanted or cores(), most)


def cores() -> int:
    """Count the cores that this process may use, by its affinity, its container's quota and the variable FLOQ_CORES."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (given := os.environ.get(CORES, "")).isdigit():
        count = max(1, min(count, int(given)))
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or the quota is "max"
        return count


def use_all_cores(devices: int) -> None:
    """Make each core a JAX device, up to `devices` of them, where the backend is a CPU. Must be called before JAX is
    used in this process, and has no effect afterwards."""
    import jax

    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", min(devices, cores()))
        except RuntimeError:
            return


def be_deterministic() -> None:
    """Make GPUs give bitwise equal results in every run, which costs speed: no atomic additions, no choice of kernels
    by their speed. Nothing changes on a CPU.

    Raises:
        UserError: JAX already uses an accelerator in this process, without this setting.
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
    """Return whether JAX's backends have started, after which some settings are refused."""
    import jax

    now = jax.config.values["jax_num_cpu_devices"]
    try:
        jax.config.update("jax_num_cpu_devices", cores() + 1)
    except RuntimeError:
        return True
    jax.config.update("jax_num_cpu_devices", now)
    return False


def enable_compilation_cache() -> Path | None:
    """Cache compiled programs on disk, so that the next process starts quickly, and return the folder: that of
    JAX_COMPILATION_CACHE_DIR if it is set, else one under the user's cache; None if it cannot be written.

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
    except (OSError, RuntimeError):  # it cannot be written, or there is no home folder
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)
    return folder


def clear_jit_cache() -> None:
    """Free all compiled programs of this process. On a CPU each program takes thousands of memory mappings, and Linux
    allows a process 65,530: after about thirty training programs, LLVM would crash."""
    import jax

    jax.clear_caches()
    gc.collect()  # other references to a program may be part of a cycle


def processor_digest() -> str:
    """Return 8 hexadecimal digits that identify the kind of processor and its instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kinds = {line for line in lines if line.startswith(("flags", "Features", "model name", "CPU part"))}
    described = "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])
    return hashlib.sha256(described.encode()).hexdigest()[:8]
