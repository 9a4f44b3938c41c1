"""OGBench's suite of environments: ids, tasks and datasets. No JAX in here: worker processes import this file."""

import functools
import importlib
import os
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import gymnasium

from floq.utils.errors import UserError, nearest
from floq.utils.machine import use_renderer

if TYPE_CHECKING:
    from floq.envs.environments import SeededEnv

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
DIRECTED = {"online-ant-xy-v0": "GymXYWrapper", "online-humanoid-xy-v0": "DMCHumanoidXYWrapper"}
"""OGBench's tasks of walking in a direction that changes every 100 steps, on which its expert policies are trained."""


def takes(env_name: str) -> bool:
    """Return whether the id is of this suite."""
    return env_name in DIRECTED or is_dataset(env_name)


def is_dataset(env_name: str) -> bool:
    """Return whether the id names a dataset or a task on one: an environment, a dataset type, optionally a
    single task; and it is not one of Gymnasium's, with or without a version or the module that registers it
    (`module:id`)."""
    if ":" in env_name or not any(kind in env_name.split("-") for kind in DATASET_TYPES):
        return False
    return not any(is_version(known, env_name) for known in gymnasium.registry)


def is_version(known: str, env_name: str) -> bool:
    """Return whether a registered id is this one, or a version of it."""
    return env_name in (known, known.rpartition("-v")[0])


def make(env_name: str, **kwargs: Any) -> gymnasium.Env:
    """Make the environment of an id that this suite takes."""
    if shows_images(env_name):
        use_renderer(env_name)
    package = import_ogbench()
    if env_name in DIRECTED:
        env = gymnasium.make(env_name.replace("-xy", ""), disable_env_checker=True, **kwargs)
        return getattr(package.online_locomotion.wrappers, DIRECTED[env_name])(env)
    return package.make_env_and_datasets(env_name, env_only=True, disable_env_checker=True, **kwargs)


def names() -> Iterator[str]:
    """Yield the ids of all single tasks."""
    import_ogbench()
    for registered in gymnasium.registry:
        if "-singletask" in registered:
            for kind in DATASET_TYPES:
                yield registered.replace("-singletask", f"-{kind}-singletask")


def is_singletask(env_name: str) -> bool:
    """Return whether the id names one fixed task, with rewards."""
    return is_dataset(env_name) and "singletask" in env_name.split("-")


def is_heavy(env_name: str) -> bool:
    """Return whether making an environment takes most of a second and 100 to 200 MB, as for manipulation tasks and
    those with images."""
    return shows_images(env_name) or any(kind in env_name.split("-") for kind in ("play", "noisy"))


def shows_images(env_name: str) -> bool:
    """Return whether observations are images, which a renderer must make."""
    return env_name.startswith("visual-")


def dataset_name(env_name: str) -> str:
    """Return the name of a task's dataset: `cube-double-play-singletask-task2-v0` -> `cube-double-play-v0`."""
    return re.sub(r"-singletask(-task\d+)?", "", env_name)


def check_task(env_name: str) -> None:
    """Raise UserError if the id is not that of a single task, or nothing here renders its images."""
    if shows_images(env_name):
        use_renderer(env_name)
    known = set(names())
    if env_name in known:
        return
    if is_singletask(env_name.rpartition(":")[2]):
        raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}")
    raise UserError(
        f"{env_name} is not an OGBench single task, as cube-double-play-singletask-v0 is: name its data with --dataset"
        f"{nearest(env_name, known)}"
    )


def with_task(env: "SeededEnv", env_name: str) -> "SeededEnv":
    """Return an environment of the task `env_name`: the given one, switched, or else a new one. Making one takes a
    second and over 100 MB that are never freed. Switching works if `env_name` contains a task number, or was the
    environment's task before."""
    if env.task == env_name:
        return env
    number = re.search(r"-task(\d+)-", env_name)
    base: Any = env.unwrapped
    env.known_tasks[env.task] = getattr(base, "_reward_task_id", None)  # OGBench's labels and resets depend on it
    known = int(number[1]) if number else env.known_tasks.get(env_name)
    if known is None or dataset_name(env_name) != dataset_name(env.task):
        made = env.factory.named(env_name)()
        made.known_tasks |= env.known_tasks
        return made
    base._reward_task_id = known
    env.factory = env.factory.named(env_name)
    return env


@functools.cache
def import_ogbench() -> Any:
    """Import OGBench, which registers its environments, and return it. It imports MuJoCo, which must not look for a
    renderer: nothing here renders."""
    os.environ.setdefault("MUJOCO_GL", "disable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OGBench's imports warn about GLFW
        importlib.import_module("ogbench.online_locomotion.wrappers")
        return importlib.import_module("ogbench")
