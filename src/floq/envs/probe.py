"""Checks of environments that others wrote: one probe before anything is trained, and of each step what it returned.
Messages name what was wrong."""

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from floq.utils.errors import UserError, in_one_line
from floq.utils.obs_spec import ObsSpec

if TYPE_CHECKING:
    from floq.envs.environments import EnvFactory, SeededEnv

PROBE_SEED = (0, 4)
RESET_API = "reset(seed=..., options=...) -> (observation, info)"
STEP_API = "step(action) -> (observation, reward, terminated, truncated, info)"


def probe(env: "SeededEnv") -> tuple[ObsSpec, int]:
    """Reset an environment twice and take one step, as a run will. Returns what an observation is, and the action
    dimension.

    Raises:
        UserError: a call raises, as with the API of old versions of Gym, or returns something else than it should.
    """
    _called(lambda: env.begin_episode(PROBE_SEED), env.task, RESET_API)
    obs = _called(lambda: env.begin_episode(PROBE_SEED), env.task, RESET_API)
    action = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32)
    _called(lambda: success(env.advance(action).info), env.task, STEP_API)
    return ObsSpec(obs.size), action.size


@functools.lru_cache(maxsize=256)
def task_dims(make_env: "EnvFactory") -> tuple[ObsSpec, int]:
    """Make an environment and return what `probe` does."""
    env = make_env()
    try:
        return probe(env)
    finally:
        env.close()


def _called(call: Callable[[], Any], task: str, api: str) -> Any:
    try:
        return call()
    except Exception as error:  # it is foreign code
        raise UserError(f"{task}: {in_one_line(error)}; floq needs Gymnasium's {api}") from error


def check_reset(result: Any) -> tuple[Any, dict[str, Any]]:
    """Return what `reset` returned. Raises ValueError if that is no observation and a dictionary."""
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
        raise ValueError(f"its reset returned {_kind(result)}")
    return result


def check_step(result: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
    """Return what `step` returned. Raises ValueError if these are not five values, the last a dictionary."""
    if not isinstance(result, tuple) or len(result) != 5 or not isinstance(result[4], dict):
        raise ValueError(f"its step returned {_kind(result)}")
    return result


def observation(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an observation as float32. Raises ValueError if it is of another shape, or not finite."""
    try:
        found = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its observation was {_kind(value)}, and no array of numbers") from error
    if found.shape != shape:
        raise ValueError(f"its observation had the shape {found.shape}, and not {shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"its observation was not finite, in number {int((~np.isfinite(found)).argmax())}")
    return found


def reward(value: Any) -> float:
    """Return a reward. Raises ValueError if it is not a finite number."""
    found = _scalar(value)
    if found is None:
        raise ValueError(f"its reward was {_kind(value)}, and no number")
    if not np.isfinite(np.float32(found)):
        raise ValueError(f"its reward was {found}")
    return found


def flag(name: str, value: Any) -> bool:
    """Return a truth value. Raises ValueError if it is none, nor 0 or 1."""
    if (found := _scalar(value)) not in (0, 1):
        raise ValueError(f"its flag {name!r} was {_kind(value)}, and neither true nor false")
    return bool(found)


def success(info: Mapping[str, Any]) -> float:
    """Return the environment's own flag of success; NaN if it has none. Raises ValueError if that is not between 0 and
    1."""
    for name in ("success", "is_success"):
        if name in info:
            if (found := _scalar(info[name])) is None or not 0 <= found <= 1:
                raise ValueError(f"its info[{name!r}] was {_kind(info[name])}, and neither true nor false")
            return found
    return np.nan


def _scalar(value: Any) -> float | None:
    """Return a single number or truth value; None if it is anything else."""
    array = np.asarray(value) if isinstance(value, bool | int | float | np.generic | np.ndarray) else None
    return float(array) if array is not None and array.shape == () and array.dtype.kind in "biuf" else None


def _kind(value: Any) -> str:
    """Describe a value for messages, shortly."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value[:8])})"
    if value is None or isinstance(value, str | int | float | np.generic):
        return repr(value)[:80]
    return f"a {type(value).__name__}"
