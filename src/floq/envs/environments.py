"""Creation, seeding and grouping of environments. No JAX in here: worker processes import this file.

OGBench environments cannot be reproduced by `reset(seed=...)` alone: mazes draw start noise and teleports from NumPy's
global generator, manipulation tasks sample a fresh and unseedable action space inside reset. `SeededEnv` gives each
environment its own global state and its own action space, so an episode depends on its seed only: not on the episodes
before it, nor on other environments of the process.
"""

import contextlib
import functools
import importlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

import gymnasium
import numpy as np

from floq.envs.spaces import ordered, part_names
from floq.utils.errors import UserError, nearest
from floq.utils.machine import explain_renderer

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
TIME_LIMIT = 10_000
DIRECTED = {"online-ant-xy-v0": "GymXYWrapper", "online-humanoid-xy-v0": "DMCHumanoidXYWrapper"}
"""OGBench's tasks of walking in a direction that changes every 100 steps, on which its expert policies are trained."""

Seed = Sequence[int]
Slot = tuple[int, int]  # the index of an evaluated policy (or a run), and of a slot among its own


class EpisodeResult(NamedTuple):
    """Outcome of one evaluation episode. `success` is the environment's own flag at the episode's last step, or NaN
    where there is none."""

    success: float
    episode_return: float
    length: int

    @classmethod
    def ended(cls, info: Mapping[str, Any], episode_return: float, length: int) -> "EpisodeResult":
        """Return the result of an episode whose last step had this `info`."""
        return cls(float(info.get("success", info.get("is_success", np.nan))), episode_return, length)

    @classmethod
    def mean(cls, episodes: Sequence["EpisodeResult"]) -> dict[str, float]:
        """Average over episodes, under the published names. Success is NaN if no episode has the flag; an episode
        without it counts as a failure if others have it."""
        success, *others = np.array(episodes, dtype=np.float64).T
        flagged = np.nan if np.isnan(success).all() else np.nan_to_num(success).mean()
        means = (flagged, *(x.mean() for x in others))
        return dict(zip(("success", "episode.return", "episode.length"), map(float, means), strict=True))


class EpisodeStep(NamedTuple):
    """One step of an episode; `result` is None before the last. Observations are float32."""

    obs: np.ndarray
    reward: float
    terminated: bool
    result: EpisodeResult | None
    info: dict[str, Any]


def index_of(slots: Sequence[Slot]) -> tuple[np.ndarray, ...]:
    """Return the index that selects these slots from the first two axes of an array."""
    return tuple(np.array(slots).T)


def make(env_name: str, success_timing: str | None = None, **kwargs: Any) -> "SeededEnv":
    """Make the environment of a task such as `cube-double-play-singletask-task2-v0`, or of any Gymnasium id.

    Args:
        env_name: OGBench id with its dataset type, or a Gymnasium id.
        success_timing: for OGBench single tasks, whether reward and success come from the state after the step
            ("post", the published protocol) or before it ("pre", OGBench since 1.2.0).
        **kwargs: passed to the environment's constructor.

    Actions are rescaled to [-1, 1]; observations that are a dictionary or a tuple are laid end to end in the order of
    their names (`floq.envs.spaces`). An environment without a time limit gets one of `TIME_LIMIT` steps, so that every
    evaluation ends.

    Raises:
        UserError: the id is unknown, its actions are not a bounded box, or a part of its observations is not
            numeric.
    """
    if success_timing is not None and is_singletask(env_name):
        kwargs["success_timing"] = success_timing
    with explain_renderer(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # OGBench's spaces
        warnings.filterwarnings("ignore", message=".*is out of date")  # Gymnasium, of old versions of an environment
        try:
            ogbench = import_ogbench()
            if is_ogbench(env_name):
                env: Any = ogbench.make_env_and_datasets(env_name, env_only=True, disable_env_checker=True, **kwargs)
            elif env_name in DIRECTED:
                wrapper = getattr(ogbench.online_locomotion.wrappers, DIRECTED[env_name])
                env = wrapper(gymnasium.make(env_name.replace("-xy", ""), disable_env_checker=True, **kwargs))
            else:
                env = gymnasium.make(env_name, disable_env_checker=True, **kwargs)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"{env_name}: {' '.join(str(error).split())}") from error
        except gymnasium.error.Error as error:
            known = [*_ogbench_names(), *gymnasium.registry]
            raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}") from error
        space = env.action_space
        if not isinstance(space, gymnasium.spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
            raise UserError(f"{env_name}: floq needs a bounded, one-dimensional Box of actions, this one has {space}")
        if env.spec is None or env.spec.max_episode_steps is None:
            env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
        parts = part_names(obs_space := ordered(env.observation_space), env_name)
        if parts:
            flat = gymnasium.spaces.flatten_space(obs_space)
            env = gymnasium.wrappers.TransformObservation(
                env, functools.partial(gymnasium.spaces.flatten, obs_space), flat
            )
        if len(env.observation_space.shape or ()) != 1:
            raise UserError(f"{env_name}: floq needs a vector of observations, this one has {env.observation_space}")
        if (space.low != -1).any() or (space.high != 1).any():
            env = gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        return SeededEnv(env, env_name, success_timing, parts)


def check_task(env_name: str) -> None:
    """Raise UserError if the id is not that of an OGBench single task with state observations."""
    if env_name.startswith("visual-"):
        raise UserError(f"{env_name}: pixel tasks are not built yet; use {env_name.removeprefix('visual-')}")
    known = set(_ogbench_names())
    if env_name in known:
        return
    if is_singletask(env_name):
        raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}")
    raise UserError(
        f"{env_name} is not an OGBench single task, as cube-double-play-singletask-v0 is: name its data with --dataset"
        f"{nearest(env_name, known)}"
    )


def sizes(env: "SeededEnv") -> dict[str, int]:
    """Return the dimensions of observations and actions."""
    return {"observations": len(env.reset()[0]), "actions": env.action_space.sample().size}


def is_ogbench(env_name: str) -> bool:
    """Return whether the id has OGBench's form (an environment, a dataset type, optionally a single task), and is not
    one of Gymnasium's, with or without a version or the module that registers it (`module:id`)."""
    if ":" in env_name or not any(kind in env_name.split("-") for kind in DATASET_TYPES):
        return False
    return not any(env_name in (known, known.rpartition("-v")[0]) for known in gymnasium.registry)


def is_singletask(env_name: str) -> bool:
    """Return whether the id names one fixed task, with rewards."""
    return is_ogbench(env_name) and "singletask" in env_name.split("-")


def is_heavy(env_name: str) -> bool:
    """Return whether making an environment takes most of a second and 100 to 200 MB, as for manipulation tasks. A
    worker can hold dozens of the others."""
    return is_ogbench(env_name) and any(kind in env_name.split("-") for kind in ("play", "noisy"))


def dataset_name(env_name: str) -> str:
    """Return the name of a task's dataset: `cube-double-play-singletask-task2-v0` -> `cube-double-play-v0`."""
    return re.sub(r"-singletask(-task\d+)?", "", env_name)


@functools.cache
def import_ogbench() -> Any:
    """Import OGBench, which registers its environments, and return it. It imports MuJoCo, which must not look for a
    renderer: nothing here renders."""
    os.environ.setdefault("MUJOCO_GL", "disable")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OGBench's imports warn about GLFW
        importlib.import_module("ogbench.online_locomotion.wrappers")
        return importlib.import_module("ogbench")


def _ogbench_names() -> Iterator[str]:
    import_ogbench()
    for registered in gymnasium.registry:
        if "-singletask" in registered:
            for kind in DATASET_TYPES:
                yield registered.replace("-singletask", f"-{kind}-singletask")


class SeededEnv(gymnasium.Wrapper):
    """An environment whose random draws are all determined by the seed of its last reset. `parts` names those of its
    observations, if they have any."""

    def __init__(
        self, env: gymnasium.Env, task: str = "", success_timing: str | None = None, parts: tuple[str, ...] = ()
    ):
        super().__init__(env)
        self.parts = parts
        self.task, self.success_timing = task, success_timing
        self.known_tasks: dict[str, int | None] = {}  # by name, tasks that were set before
        self._global_state: np.random.BitGenerator = np.random.MT19937(0)
        self._return, self._length = 0.0, 0
        base: Any = env.unwrapped
        space = base.action_space
        self._box = gymnasium.spaces.Box(space.low, space.high, dtype=space.dtype.type)
        if isinstance(getattr(type(base), "action_space", None), property):
            # Manipulation environments build a new space at each access; shadow the property, for this object only.
            base.__class__ = type(type(base).__name__, (type(base),), {"action_space": self._box})
        else:
            base.action_space = self._box

    def reset_with(self, seed: Seed) -> np.ndarray:
        """Start the episode of `seed`, a few non-negative integers. Returns its first observation."""
        words = np.random.SeedSequence(list(seed)).generate_state(2)
        self._global_state = np.random.MT19937(np.random.SeedSequence([*seed, 1]))
        self._box.seed(int(words[0]))
        return self.reset(seed=int(words[1]))[0]

    def begin_episode(self, seed: Seed, check: bool = True) -> np.ndarray:
        """Start the episode of `seed`, to be continued with `advance`. Returns its first observation. Raises ValueError
        as `advance` does."""
        self._return, self._length = 0.0, 0
        obs = self.reset_with(seed)
        return self._checked(obs, 0.0) if check else np.array(obs, np.float32)

    def advance(self, action: np.ndarray, check: bool = True) -> EpisodeStep:
        """Take one step of the episode. Raises ValueError, with `check`, if a number is not finite or the observation's
        shape is not that of its space: such a step must not become data."""
        obs, reward, terminated, truncated, info = self.step(action)
        obs = self._checked(obs, reward) if check else np.array(obs, np.float32)
        self._return += float(reward)
        self._length += 1
        ended = terminated or truncated
        result = EpisodeResult.ended(info, self._return, self._length) if ended else None
        return EpisodeStep(obs, float(reward), bool(terminated), result, info)

    def _checked(self, obs: Any, reward: Any) -> np.ndarray:
        if np.shape(obs) != self.observation_space.shape:
            raise ValueError(f"its observation had the shape {np.shape(obs)}, and not {self.observation_space.shape}")
        obs = np.array(obs, np.float32)
        if not np.isfinite(obs).all():
            raise ValueError(f"its observation was not finite, in number {int((~np.isfinite(obs)).argmax())}")
        if not np.isfinite(np.float32(reward)):
            raise ValueError(f"its reward was {reward}")
        return obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        with self.own_global_state():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        with self.own_global_state():
            return self.env.step(action)

    @contextlib.contextmanager
    def own_global_state(self) -> Iterator[None]:
        """Make NumPy's global generator this environment's own within the context."""
        random: Any = np.random  # its stubs lack these functions
        others = random.get_bit_generator()
        random.set_bit_generator(self._global_state)
        try:
            yield
        finally:
            random.set_bit_generator(others)


def with_task(env: SeededEnv, env_name: str) -> SeededEnv:
    """Return an environment of the OGBench task `env_name`: the given one, switched, or else a new one. Making one
    takes a second and over 100 MB that are never freed. Switching works if `env_name` contains a task number, or was
    the environment's task before."""
    if env.task == env_name:
        return env
    number = re.search(r"-task(\d+)-", env_name)
    base: Any = env.unwrapped
    env.known_tasks[env.task] = getattr(base, "_reward_task_id", None)  # OGBench's labels and resets depend on it
    known = int(number[1]) if number else env.known_tasks.get(env_name)
    if known is None or dataset_name(env_name) != dataset_name(env.task):
        made = make(env_name, env.success_timing)
        made.known_tasks |= env.known_tasks
        return made
    base._reward_task_id = known
    env.task = env_name
    return env


class EnvSlots:
    """Some of the slots of an evaluation, stepped together by one worker.

    Several policies may be evaluated together, each with its own task and seed and with S slots of its own. Slot s runs
    its policy's episodes s, s + S, s + 2 S, ...: the assignment does not depend on speed, on the number of workers, or
    on the other policies.
    """

    def __init__(self, env_name: str, success_timing: str | None, slots: Sequence[Slot], num_slots: int):
        self._envs = {slot: make(env_name, success_timing) for slot in slots}
        self._num_slots = num_slots

    def start(
        self,
        tasks: Sequence[tuple[str, Seed]],
        num_episodes: int,
        episodes: Mapping[Slot, int] | None = None,
    ) -> np.ndarray:
        """Reset every slot to its first episode, or to that in `episodes`. `tasks` has the environment and the seed of
        each policy: its episode e is seeded by (*seed, e). A slot without an episode left, or without a policy, is
        inactive. Returns the first observations (slots, obs)."""
        self._tasks, self._num_episodes = tuple(tasks), num_episodes
        self._episode = {
            (policy, slot): (episodes or {}).get((policy, slot), slot) if policy < len(tasks) else num_episodes
            for policy, slot in self._envs
        }
        for slot, env in self._envs.items():
            if self._is_active(slot):
                self._envs[slot] = with_task(env, tasks[slot[0]][0])
        return np.stack([self._first_observation(slot) for slot in self._envs])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, list[tuple[Slot, EpisodeResult]]]:
        """Take one step in every active slot. Returns observations (slots, obs), where a slot whose episode ended has
        the first observation of its next one, and (slot, result) for each episode that ended."""
        observations, finished = [], []
        for (slot, env), action in zip(self._envs.items(), actions, strict=True):
            if not self._is_active(slot):
                observations.append(self._first_observation(slot))
                continue
            obs, _, _, result, _ = env.advance(action, check=False)
            if result is not None:
                finished.append((slot, result))
                self._episode[slot] += self._num_slots
                obs = self._first_observation(slot)
            observations.append(obs)
        return np.stack(observations), finished

    def _is_active(self, slot: Slot) -> bool:
        return self._episode[slot] < self._num_episodes

    def _first_observation(self, slot: Slot) -> np.ndarray:
        """Return the first observation of the slot's episode; zeros if the slot is inactive."""
        if not self._is_active(slot):
            return np.zeros(self._envs[slot].observation_space.shape or (), np.float32)
        _, seed = self._tasks[slot[0]]
        return self._envs[slot].begin_episode((*seed, self._episode[slot]), check=False)
