"""Environments: make, seed and group them. No JAX in here: worker processes import this file.

OGBench environments cannot be reproduced by `reset(seed=...)` alone: mazes draw start noise and teleports from NumPy's
global generator, manipulation tasks sample a fresh and unseedable action space inside reset. `SeededEnv` gives each
environment its own global state and its own action space, so an episode depends on its seed and on nothing else: not
on the episodes before it, nor on the environments beside it.
"""

import contextlib
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, SupportsFloat

os.environ.setdefault("MUJOCO_GL", "disable")  # before MuJoCo is imported: nothing here renders

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # OGBench's imports warn about GLFW
    import gymnasium
    import numpy as np
    import ogbench
    import ogbench.online_locomotion
    from ogbench.online_locomotion.wrappers import DMCHumanoidXYWrapper, GymXYWrapper

from floq.utils.errors import UserError, nearest

DATASET_TYPES = ("navigate", "stitch", "explore", "play", "noisy")
TIME_LIMIT = 10_000
DIRECTED = {"online-ant-xy-v0": GymXYWrapper, "online-humanoid-xy-v0": DMCHumanoidXYWrapper}
"""OGBench's tasks of walking in a direction that changes every 100 steps: those that its expert policies learn."""

Seed = Sequence[int]
Slot = tuple[int, int]  # a player's number, and the number among its slots


class EpisodeResult(NamedTuple):
    """What one evaluation episode came to. `success` is the environment's own flag at the episode's last step, or NaN
    where there is none."""

    success: float
    episode_return: float
    length: int

    @classmethod
    def ended(cls, info: Mapping[str, Any], episode_return: float, length: int) -> "EpisodeResult":
        """Of an episode whose last step had this `info`."""
        return cls(float(info.get("success", info.get("is_success", np.nan))), episode_return, length)

    @classmethod
    def mean(cls, episodes: Sequence["EpisodeResult"]) -> dict[str, float]:
        """Means over episodes, under the published names. Success is NaN if none had such a flag, and an episode
        without one counts as a failure if others have it."""
        success, *others = np.array(episodes, dtype=np.float64).T
        flagged = np.nan if np.isnan(success).all() else np.nan_to_num(success).mean()
        means = (flagged, *(x.mean() for x in others))
        return dict(zip(("success", "episode.return", "episode.length"), map(float, means), strict=True))


def index_of(slots: Sequence[Slot]) -> tuple[np.ndarray, ...]:
    """What to index the first two axes of an array with to get these slots."""
    return tuple(np.array(slots).T)


def make(env_name: str, success_timing: str | None = None, **kwargs: Any) -> "SeededEnv":
    """The environment of a task such as `cube-double-play-singletask-task2-v0`, or any registered Gymnasium id.

    Args:
        env_name: OGBench id with its dataset type, or a Gymnasium id.
        success_timing: for OGBench single tasks, whether reward and success come from the state after the step
            ("post", the published protocol) or before it ("pre", OGBench since 1.2.0).

    Actions are rescaled to [-1, 1] where they are not; observations that are a dictionary or a tuple are laid end to
    end, in the order of their space. An environment without a time limit gets one of `TIME_LIMIT` steps, or a policy
    that never ends an episode would never be evaluated.

    Raises:
        UserError: the id is unknown, or its actions are not a bounded box.
    """
    if success_timing is not None and is_singletask(env_name):
        kwargs["success_timing"] = success_timing
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # OGBench's spaces
        warnings.filterwarnings("ignore", message=".*is out of date")  # Gymnasium, of old versions of an environment
        try:
            if is_ogbench(env_name):
                env: Any = ogbench.make_env_and_datasets(env_name, env_only=True, disable_env_checker=True, **kwargs)
            elif env_name in DIRECTED:
                env = DIRECTED[env_name](
                    gymnasium.make(env_name.replace("-xy", ""), disable_env_checker=True, **kwargs)
                )
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
        if isinstance(env.observation_space, gymnasium.spaces.Dict | gymnasium.spaces.Tuple):
            env = gymnasium.wrappers.FlattenObservation(env)
        if len(env.observation_space.shape or ()) != 1:
            raise UserError(f"{env_name}: floq needs a vector of observations, this one has {env.observation_space}")
        if (space.low != -1).any() or (space.high != 1).any():
            env = gymnasium.wrappers.RescaleAction(env, np.float32(-1), np.float32(1))
        return SeededEnv(env, env_name, success_timing)


def check_task(env_name: str) -> None:
    """Raises UserError if the id is not that of an OGBench single task with state observations."""
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
    """How many numbers an observation and an action have."""
    return {"observations": len(env.reset()[0]), "actions": env.action_space.sample().size}


def is_ogbench(env_name: str) -> bool:
    """Whether the id has OGBench's form: an environment, a dataset type, perhaps a single task."""
    return any(kind in env_name.split("-") for kind in DATASET_TYPES)


def is_singletask(env_name: str) -> bool:
    """Whether the id names one fixed task, with rewards."""
    return is_ogbench(env_name) and "singletask" in env_name.split("-")


def is_heavy(env_name: str) -> bool:
    """Whether an environment costs most of a second and 100 to 200 MB to make, as those of manipulation do: of others
    a worker can have dozens."""
    return any(kind in env_name.split("-") for kind in ("play", "noisy"))


def dataset_name(env_name: str) -> str:
    """The dataset that a task is learned from: `cube-double-play-singletask-task2-v0` -> `cube-double-play-v0`."""
    return re.sub(r"-singletask(-task\d+)?", "", env_name)


def _ogbench_names() -> Iterator[str]:
    for registered in gymnasium.registry:
        if "-singletask" in registered:
            for kind in DATASET_TYPES:
                yield registered.replace("-singletask", f"-{kind}-singletask")


class SeededEnv(gymnasium.Wrapper):
    """An environment whose every random draw follows from the seed of its last reset."""

    def __init__(self, env: gymnasium.Env, task: str = "", success_timing: str | None = None):
        super().__init__(env)
        self.task, self.success_timing = task, success_timing
        self.known_tasks: dict[str, int | None] = {}  # by name, tasks that it has had
        self._global_state: np.random.BitGenerator = np.random.MT19937(0)
        base: Any = env.unwrapped
        space = base.action_space
        self._box = gymnasium.spaces.Box(space.low, space.high, dtype=space.dtype.type)
        if isinstance(getattr(type(base), "action_space", None), property):
            # Manipulation environments build a new space at each access; shadow the property, for this object only.
            base.__class__ = type(type(base).__name__, (type(base),), {"action_space": self._box})
        else:
            base.action_space = self._box

    def reset_with(self, seed: Seed) -> np.ndarray:
        """Start the episode that `seed`, a few non-negative integers, names. Returns its first observation."""
        words = np.random.SeedSequence(list(seed)).generate_state(2)
        self._global_state = np.random.MT19937(np.random.SeedSequence([*seed, 1]))
        self._box.seed(int(words[0]))
        return self.reset(seed=int(words[1]))[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        with self.own_global_state():
            return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        with self.own_global_state():
            return self.env.step(action)

    @contextlib.contextmanager
    def own_global_state(self) -> Iterator[None]:
        """Within it, NumPy's global generator is this environment's own."""
        random: Any = np.random  # its stubs lack these functions
        others = random.get_bit_generator()
        random.set_bit_generator(self._global_state)
        try:
            yield
        finally:
            random.set_bit_generator(others)


def checked(obs: Any, reward: Any, obs_shape: Sequence[int] | None) -> tuple[np.ndarray, np.float32]:
    """What an environment showed. Raises ValueError if a number is not finite, or the observation not of this shape."""
    if np.shape(obs) != obs_shape:
        raise ValueError(f"its observation had the shape {np.shape(obs)}, and not {obs_shape}")
    obs, given = np.asarray(obs, np.float32), np.float32(reward)
    if not np.isfinite(obs).all():
        raise ValueError(f"its observation was not finite, in number {int((~np.isfinite(obs)).argmax())}")
    if not np.isfinite(given):
        raise ValueError(f"its reward was {reward}")
    return obs, given


def with_task(env: SeededEnv, env_name: str) -> SeededEnv:
    """The environment with another of its OGBench tasks, itself if it can be switched: making one anew takes a second
    and over 100 MB that never come back. It can if `env_name` numbers a task, or it once had that very name."""
    if env.task == env_name:
        return env
    number = re.search(r"-task(\d+)-", env_name)
    base: Any = env.unwrapped
    env.known_tasks[env.task] = getattr(base, "_reward_task_id", None)  # OGBench's own labels and resets go by it
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

    Several players may be evaluated together, each with its own task and seed and with S slots of its own. Slot s plays
    its player's episodes s, s + S, s + 2 S, ...: which episode runs where does not depend on how fast anything is, nor
    on how many workers share the slots, nor on who else plays.
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
        """Reset every slot to its first episode, or to the one that `episodes` names. For each player, `tasks` says the
        environment and the seed: its episode e is seeded by (*seed, e). A slot that has no episode left, or no player,
        stays at rest. Returns the first observations (slots, obs)."""
        self._tasks, self._num_episodes = tuple(tasks), num_episodes
        self._episode = {
            (player, slot): (episodes or {}).get((player, slot), slot) if player < len(tasks) else num_episodes
            for player, slot in self._envs
        }
        self._return, self._length = dict.fromkeys(self._envs, 0.0), dict.fromkeys(self._envs, 0)
        for slot, env in self._envs.items():
            if self._plays(slot):
                self._envs[slot] = with_task(env, tasks[slot[0]][0])
        return np.stack([self._first(slot) for slot in self._envs]).astype(np.float32)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, list[tuple[Slot, EpisodeResult]]]:
        """One step in every slot that still plays. Returns observations (slots, obs), where a finished slot shows the
        first observation of its next episode, and (slot, result) for each episode that ended."""
        observations, finished = [], []
        for (slot, env), action in zip(self._envs.items(), actions, strict=True):
            if not self._plays(slot):
                observations.append(self._first(slot))
                continue
            obs, reward, terminated, truncated, info = env.step(action)
            self._return[slot] += float(reward)
            self._length[slot] += 1
            if terminated or truncated:
                finished.append((slot, EpisodeResult.ended(info, self._return[slot], self._length[slot])))
                self._episode[slot] += self._num_slots
                self._return[slot], self._length[slot] = 0.0, 0
                obs = self._first(slot)
            observations.append(obs)
        return np.stack(observations).astype(np.float32), finished

    def _plays(self, slot: Slot) -> bool:
        return self._episode[slot] < self._num_episodes

    def _first(self, slot: Slot) -> np.ndarray:
        """The first observation of the slot's episode; zeros at rest."""
        if not self._plays(slot):
            return np.zeros(self._envs[slot].observation_space.shape or ())
        _, seed = self._tasks[slot[0]]
        return self._envs[slot].reset_with((*seed, self._episode[slot]))
