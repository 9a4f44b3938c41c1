"""The machine: its cores, the versions of installed packages, and settings of JAX that precede its start.

JAX is imported where it is needed: worker processes import this file.
"""

import contextlib
import functools
import gc
import hashlib
import importlib
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from floq.utils.errors import UserError, in_one_line
from floq.utils.untrusted import free_memory

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # microseconds of processor time, and of the period that they are for
CORES = "FLOQ_CORES"  # environment variable: use no more cores than this
DATA_GB = "FLOQ_DATA_GB"  # and keep no more of a dataset's observations than this in memory, or on the device
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
PLATFORMS = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # environment variables that name JAX's backend
GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # and those that name GPUs
RENDERERS = ("MUJOCO_GL", "PYOPENGL_PLATFORM")  # and those that name MuJoCo's renderer
HEADLESS = {"darwin": ("cgl",), "win32": ("glfw",)}.get(sys.platform, ("egl", "osmesa"))  # that need no display
NO_GPU = ("", "-1", "none", "void", "nodevfiles")
TRY_RENDERER = "import mujoco; mujoco.GLContext(8, 8).make_current()"
INSTALL_RENDERER = "on Debian apt-get install libegl1 libgl1-mesa-dri, or libosmesa6, brings a software renderer"
NO_RENDERER = ("", "disable", "disabled", "off", "false", "0")


def version(package: str) -> str:
    """Return the version of an installed package; for floq, "from source" where it is not installed."""
    try:
        return installed_version(package)
    except PackageNotFoundError:
        if package != "floq":
            raise
        return "from source"


def worker_count(wanted: int | None, most: int) -> int:
    """Return how many workers to start: `wanted` or one per core, but at most `most`. UserError if fewer than 1."""
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


def data_memory() -> tuple[int, str]:
    """Return how many bytes of a dataset's observations may lie on the device, half of what it has free or what the
    variable FLOQ_DATA_GB says; and which of the two. Starts JAX unless that is set."""
    if (given := given_data_memory()) is not None:
        return given, f"{DATA_GB}={os.environ[DATA_GB]}"
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats["bytes_in_use"]
    else:  # a CPU, whose cores may be devices that have the data each
        free = free_memory() // jax.local_device_count()
    return free // 2, f"half of the {free / 1e9:,.1f} GB free for each device"


def given_data_memory() -> int | None:
    """Return how many bytes the variable FLOQ_DATA_GB says, None if it is not set. Raises UserError if it is wrong."""
    if (given := os.environ.get(DATA_GB)) is None:
        return None
    with contextlib.suppress(ValueError, OverflowError):
        if (number := float(given)) >= 0:
            return int(number * 1e9)
    raise UserError(f"{DATA_GB}={given}: it is how many GB of observations may be kept in memory, such as 8")


def use_all_cores(devices: int) -> None:
    """Make each core a JAX device, up to `devices` of them, where the backend is a CPU. Must be called before JAX is
    used in this process, and has no effect afterwards."""
    import jax

    if devices > 1:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", min(devices, cores()))


def device() -> str:
    """Start JAX, and describe the device that it computes on.

    Raises:
        UserError: an environment variable names an accelerator that this machine, or JAX here, lacks.
    """
    import jax

    try:
        devices = jax.local_devices()
    except Exception as error:  # RuntimeError, and AssertionError where JAX has no plugin of that name
        given = _set_variables(PLATFORMS) or "JAX's devices"
        cause = in_one_line(error).split(" (set JAX_PLATFORMS")[0]
        raise UserError(
            f"{given}: JAX cannot use that here ({cause}): install JAX for it, as with pip install 'jax[cuda12]', or "
            "set JAX_PLATFORMS=cpu to compute on the CPU"
        ) from error
    if devices[0].platform != "cpu":
        return f"{len(devices)} x {devices[0].device_kind}"
    visible = [name for name in GPUS if os.environ.get(name, "").lower() not in NO_GPU]
    if visible and "cpu" not in (jax.config.values["jax_platforms"] or "").split(","):
        raise UserError(
            f"{_set_variables(visible)} names a GPU, and JAX finds none here: install JAX for it, as with pip install "
            f"'jax[cuda12]', or unset {visible[0]}, or set JAX_PLATFORMS=cpu, to compute on the CPU"
        )
    return f"CPU, {cores()} cores"


@contextlib.contextmanager
def explain_renderer() -> Iterator[None]:
    """Raise UserError in place of another error if a variable of `RENDERERS` is set and MuJoCo, which imports what it
    names, cannot be imported; a context manager."""
    try:
        yield
    except Exception as error:
        named = [name for name in RENDERERS if os.environ.get(name, "").lower() not in NO_RENDERER]
        cause = _import_error("mujoco") or _import_error("dm_control._render") if named else None
        if cause is None:
            raise
        raise UserError(
            f"{_set_variables(named)}: MuJoCo cannot use that renderer on this machine ({cause}): unset "
            f"{' and '.join(named)}, or name one that is here; only films need it"
        ) from error


def use_renderer(what: str) -> None:
    """Name in MUJOCO_GL a renderer that works without a display, for this process and those that it starts, unless the
    user has named one. Must be called before MuJoCo is imported. Raises UserError if none works; `what` needs it."""
    if os.environ.get("MUJOCO_GL", "").lower() not in NO_RENDERER:
        return
    if "mujoco" in sys.modules:
        raise UserError(
            f"{what} shows images, and MuJoCo was loaded without a renderer before: set MUJOCO_GL={HEADLESS[0]} for "
            "this process"
        )
    reasons: dict[str, list[str]] = {}
    for renderer in HEADLESS:
        environment = os.environ | {"MUJOCO_GL": renderer}
        found = subprocess.run([sys.executable, "-c", TRY_RENDERER], env=environment, capture_output=True, text=True)
        if found.returncode == 0:
            os.environ["MUJOCO_GL"] = renderer
            return
        reasons.setdefault((found.stderr.strip() or f"exit code {found.returncode}").splitlines()[-1], []).append(
            renderer
        )
    failures = "; ".join(f"MUJOCO_GL={' and '.join(tried)}: {reason}" for reason, tried in reasons.items())
    raise UserError(f"{what} shows images, and nothing renders them here ({failures}): {INSTALL_RENDERER}")


def _import_error(module: str) -> str | None:
    """Return why a package that is installed cannot be imported; None if it can."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        return None
    except Exception as error:  # RuntimeError, ImportError, or AttributeError where a library of the system is missing
        return in_one_line(error)
    return None


def _set_variables(names: Iterable[str]) -> str:
    """Return which of these environment variables are set, and to what: `JAX_PLATFORMS=cuda`."""
    return " and ".join(f"{name}={os.environ[name]}" for name in names if os.environ.get(name))


def be_deterministic() -> None:
    """Make GPUs give bitwise equal results in every run, which costs speed: no atomic additions, no choice of kernels
    by their speed. Nothing changes on a CPU. Raises UserError if JAX already uses an accelerator without this setting.
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
        jax.config.update("jax_num_cpu_devices", now)
        return False
    except RuntimeError:
        return True


def enable_compilation_cache() -> Path | None:
    """Cache compiled programs on disk, and return the folder: that of JAX_COMPILATION_CACHE_DIR if it is set, else one
    under the user's cache, named after the processor, on whose kind alone its programs run; None if it cannot be
    written."""
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
    jax.config.update("jax_compilation_cache_max_size", 2**30)  # bytes
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    return folder


def clear_jit_cache() -> None:
    """Free all compiled programs of this process: on a CPU each takes thousands of memory mappings, of which Linux
    allows a process 65,530, and LLVM crashes without."""
    import jax

    jax.clear_caches()
    gc.collect()  # other references to a program may be part of a cycle


def processor() -> str:
    """Return the processor's name, and its instructions for bfloat16 if it has any."""
    names = {line.partition(":")[2].strip() for line in _cpu_lines("model name")}
    fast = sorted(flag for flag in cpu_flags() if "bf16" in flag)
    return ", ".join([*(sorted(names) or [platform.processor() or platform.machine()]), *fast])


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the names of the instruction sets of an x86 processor, as Linux has them; elsewhere none."""
    return frozenset(flag for line in _cpu_lines("flags") for flag in line.split())


def _cpu_lines(*starts: str) -> set[str]:
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {line for line in lines if line.startswith(starts)}


def processor_digest() -> str:
    """Return 8 hexadecimal digits that identify the kind of processor and its instructions."""
    kinds = _cpu_lines("flags", "Features", "model name", "CPU part")
    described = "\n".join([platform.machine(), platform.processor(), *sorted(kinds)])
    return hashlib.sha256(described.encode()).hexdigest()[:8]
