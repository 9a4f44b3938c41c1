"""Creation, seeding and grouping of environments. No JAX in here: worker processes import this file.

OGBench environments cannot be reproduced by `reset(seed=...)` alone: mazes draw start noise and teleports from NumPy's
global generator, manipulation tasks sample a fresh and unseedable action space inside reset. `SeededEnv` gives each
environment its own global state and its own action space, so an episode depends on its seed only: not on the episodes
before it, nor on other environments of the process.
"""

import contextlib
import dataclasses
import functools
import importlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat

import cloudpickle
import gymnasium
import numpy as np

from floq.envs import probe
from floq.envs.spaces import action_box, ordered, part_names, unit_to_box
from floq.utils.errors import UserError, in_one_line, nearest
from floq.utils.machine import explain_renderer
from floq.utils.schema import NO_ARGUMENTS, FrozenDict

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
        """Return the result of an episode whose last step had this `info`. Raises ValueError for an odd flag."""
        return cls(probe.success(info), episode_return, length)

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


@dataclass(frozen=True)
class EnvFactory:
    """Makes environments of a task, in this process or in a worker to which it is sent: with it goes what this process
    has registered under that id, with cloudpickle where it is a class of the user's script.

    Args:
        name, success_timing, kwargs: see `make`.
    """

    name: str
    success_timing: str | None = None
    kwargs: FrozenDict = NO_ARGUMENTS

    def __call__(self, **more: Any) -> "SeededEnv":
        """Make an environment. Raises as `make`."""
        return make(self.name, self.success_timing, **(self.kwargs | more))

    def named(self, env_name: str) -> "EnvFactory":
        """Return the factory of another task of the same environment."""
        return dataclasses.replace(self, name=env_name)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named = self.name.rpartition(":")[2]
        versions = {known: spec for known, spec in gymnasium.registry.items() if _is_version(known, named)}
        try:
            return state | {"registered": cloudpickle.dumps(versions)}
        except Exception as error:
            raise UserError(f"{self.name} cannot be sent to other processes: {in_one_line(error)}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        gymnasium.registry.update(cloudpickle.loads(state.pop("registered")))
        for name, value in state.items():
            object.__setattr__(self, name, value)


def make(env_name: str, success_timing: str | None = None, **kwargs: Any) -> "SeededEnv":
    """Make the environment of a task such as `cube-double-play-singletask-task2-v0`, or of any Gymnasium id.

    Args:
        env_name: OGBench id with its dataset type, or a Gymnasium id.
        success_timing: for OGBench single tasks, whether reward and success come from the state after the step
            ("post", the published protocol) or before it ("pre", OGBench since 1.2.0).
        **kwargs: passed to the environment's constructor.

    Actions are rescaled to [-1, 1]; observations that are a dictionary or a tuple are laid end to end in the order of
    their names, and choices become one-hot (`floq.envs.spaces`). An environment without a time limit gets one of
    `TIME_LIMIT` steps, so that every evaluation ends.

    Raises:
        UserError: the id is unknown, its constructor raises, its actions are not a bounded box, or a part of its
            observations is not numeric.
    """
    timing = {"success_timing": success_timing} if success_timing is not None and is_singletask(env_name) else {}
    factory = EnvFactory(env_name, success_timing, FrozenDict(kwargs))
    with explain_renderer(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # OGBench's spaces
        warnings.filterwarnings("ignore", message=".*is out of date")  # Gymnasium, of old versions of an environment
        try:
            env = _construct(env_name, **timing, **kwargs)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"{env_name}: {' '.join(str(error).split())}") from error
        except gymnasium.error.Error as error:
            known = [*_ogbench_names(), *gymnasium.registry]
            raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}") from error
        except Exception as error:  # it is foreign code
            remedy = "; its arguments are given as --env_kwargs.NAME=VALUE" if isinstance(error, TypeError) else ""
            raise UserError(f"{env_name} could not be made: {in_one_line(error)}{remedy}") from error
        box = action_box(env.action_space, env_name)
        if env.spec is None or env.spec.max_episode_steps is None:
            env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
        parts = part_names(obs_space := ordered(env.observation_space), env_name)
        if not isinstance(obs_space, gymnasium.spaces.Box):
            flat = gymnasium.spaces.flatten_space(obs_space)
            env = gymnasium.wrappers.TransformObservation(
                env, functools.partial(gymnasium.spaces.flatten, obs_space), flat
            )
        if len(env.observation_space.shape or ()) != 1:
            raise UserError(f"{env_name}: floq needs a vector of observations, this one has {env.observation_space}")
        return SeededEnv(env, factory, parts, box)


def _construct(env_name: str, **kwargs: Any) -> Any:
    """Make the environment as its authors wrote it, without Gymnasium's warnings about what it returns."""
    ogbench = import_ogbench()
    if is_ogbench(env_name):
        return ogbench.make_env_and_datasets(env_name, env_only=True, disable_env_checker=True, **kwargs)
    if env_name in DIRECTED:
        wrapper = getattr(ogbench.online_locomotion.wrappers, DIRECTED[env_name])
        return wrapper(gymnasium.make(env_name.replace("-xy", ""), disable_env_checker=True, **kwargs))
    return gymnasium.make(env_name, disable_env_checker=True, **kwargs)


def check_task(env_name: str) -> None:
    """Raise UserError if the id is not that of an OGBench single task with state observations."""
    if env_name.startswith("visual-"):
        raise UserError(f"{env_name}: pixel tasks are not built yet; use {env_name.removeprefix('visual-')}")
    known = set(_ogbench_names())
    if env_name in known:
        return
    if is_singletask(env_name.rpartition(":")[2]):
        raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}")
    raise UserError(
        f"{env_name} is not an OGBench single task, as cube-double-play-singletask-v0 is: name its data with --dataset"
        f"{nearest(env_name, known)}"
    )


def is_ogbench(env_name: str) -> bool:
    """Return whether the id has OGBench's form (an environment, a dataset type, optionally a single task), and is not
    one of Gymnasium's, with or without a version or the module that registers it (`module:id`)."""
    if ":" in env_name or not any(kind in env_name.split("-") for kind in DATASET_TYPES):
        return False
    return not any(_is_version(known, env_name) for known in gymnasium.registry)


def _is_version(known: str, env_name: str) -> bool:
    """Return whether a registered id is this one, or a version of it."""
    return env_name in (known, known.rpartition("-v")[0])


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
    """An environment whose random draws are all determined by the seed of its last reset, and which is sent nothing but
    actions of its space.

    Args:
        env: with a vector of observations.
        factory: makes the same environment.
        parts: names of the parts of its observations, if they have any.
        box: the space of the actions of `env`, which are scaled from [-1, 1]; by default its own.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        factory: EnvFactory,
        parts: tuple[str, ...] = (),
        box: gymnasium.spaces.Box | None = None,
    ):
        super().__init__(env)
        self.parts, self.factory, self.box = parts, factory, box or action_box(env.action_space, factory.name)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.box.shape, np.float32)
        self.known_tasks: dict[str, int | None] = {}  # by name, tasks that were set before
        self._global_state: np.random.BitGenerator = np.random.MT19937(0)
        self._return, self._length = 0.0, 0
        base: Any = env.unwrapped
        self._own_space = space = base.action_space
        if not isinstance(space, gymnasium.spaces.Box):
            return  # a wrapper has changed it
        self._own_space = gymnasium.spaces.Box(space.low, space.high, dtype=space.dtype.type)
        if isinstance(getattr(type(base), "action_space", None), property):
            # Manipulation environments build a new space at each access; shadow the property, for this object only.
            base.__class__ = type(type(base).__name__, (type(base),), {"action_space": self._own_space})
        else:
            base.action_space = self._own_space

    @property
    def task(self) -> str:
        """The id of its task."""
        return self.factory.name

    def reset_with(self, seed: Seed) -> np.ndarray:
        """Start the episode of `seed`, a few non-negative integers. Returns its first observation."""
        words = np.random.SeedSequence(list(seed)).generate_state(2)
        self._global_state = np.random.MT19937(np.random.SeedSequence([*seed, 1]))
        self._own_space.seed(int(words[0]))
        return self.reset(seed=int(words[1]))[0]

    def begin_episode(self, seed: Seed) -> np.ndarray:
        """Start the episode of `seed`, to be continued with `advance`. Returns its first observation. Raises ValueError
        as `advance` does."""
        self._return, self._length = 0.0, 0
        return probe.observation(self.reset_with(seed), self.observation_space.shape or ())

    def advance(self, action: np.ndarray) -> EpisodeStep:
        """Take one step of the episode.

        Args:
            action: within [-1, 1]; rounding beyond is clipped.

        Raises:
            ValueError: a number that goes in or comes out is not finite, or of another shape or kind than it should be.
        """
        obs, reward, terminated, truncated, info = self.step(action)
        obs, reward = probe.observation(obs, self.observation_space.shape or ()), probe.reward(reward)
        terminated, truncated = probe.flag("terminated", terminated), probe.flag("truncated", truncated)
        self._return += reward
        self._length += 1
        ended = terminated or truncated
        result = EpisodeResult.ended(info, self._return, self._length) if ended else None
        return EpisodeStep(obs, reward, terminated, result, info)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        with self.own_global_state():
            return probe.check_reset(self.env.reset(seed=seed, options=options))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        sent = unit_to_box(np.asarray(action), self.box)
        with self.own_global_state():
            return probe.check_step(self.env.step(sent))

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
        made = env.factory.named(env_name)()
        made.known_tasks |= env.known_tasks
        return made
    base._reward_task_id = known
    env.factory = env.factory.named(env_name)
    return env


class EnvSlots:
    """Some of the slots of an evaluation, stepped together by one worker.

    Several policies may be evaluated together, each with its own task and seed and with S slots of its own. Slot s runs
    its policy's episodes s, s + S, s + 2 S, ...: the assignment does not depend on speed, on the number of workers, or
    on the other policies.
    """

    def __init__(self, make_env: EnvFactory, slots: Sequence[Slot], num_slots: int):
        self._envs = {slot: make_env() for slot in slots}
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
            obs, _, _, result, _ = env.advance(action)
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
        return self._envs[slot].begin_episode((*seed, self._episode[slot]))
