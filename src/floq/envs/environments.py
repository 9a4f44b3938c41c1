"""Creation, seeding and grouping of environments. No JAX in here: worker processes import this file.

`reset(seed=...)` alone does not reproduce OGBench's environments: mazes draw start noise and teleports from NumPy's
global generator, manipulation tasks sample a fresh and unseedable action space inside reset. `SeededEnv` gives each its
own global state and its own action space, so an episode depends on its seed only.
"""

import contextlib
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat

import cloudpickle
import gymnasium
import numpy as np

from floq.envs import ogbench, spaces
from floq.envs.spaces import action_box, ordered, part_names, unit_to_box
from floq.utils.errors import UserError, in_one_line, nearest
from floq.utils.machine import explain_renderer
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import NO_ARGUMENTS, FrozenDict

TIME_LIMIT = 10_000
PROBE_SEED = (0, 4)
RESET_API = "reset(seed=..., options=...) -> (observation, info)"
STEP_API = "step(action) -> (observation, reward, terminated, truncated, info)"
Seed = Sequence[int]


SUITES: dict[str, Any] = {"ogbench": ogbench}
"""Suites of environments, modules with four functions: whether a suite `takes` an id, `make`, `names` to propose for an
unknown one, and `is_heavy`. Any other id is Gymnasium's."""


def suite_of(env_name: str) -> Any:
    """Return the suite of an id; None if it is Gymnasium's."""
    return next((suite for suite in SUITES.values() if suite.takes(env_name)), None)


class EpisodeResult(NamedTuple):
    """Outcome of an episode. `success` is the environment's own flag at the last step, or NaN where there is none."""

    success: float
    episode_return: float
    length: int

    @classmethod
    def mean(cls, episodes: Sequence["EpisodeResult"]) -> dict[str, float]:
        """Average over episodes, under the published names. Success is NaN if no episode has the flag; an episode
        without it counts as a failure if others have it."""
        success, *others = np.array(episodes, dtype=np.float64).T
        flagged = np.nan if np.isnan(success).all() else np.nan_to_num(success).mean()
        means = (flagged, *(x.mean() for x in others))
        return dict(zip(("success", "episode.return", "episode.length"), map(float, means), strict=True))


class EpisodeStep(NamedTuple):
    """One step of an episode; `result` is None before the last. Observations are rows of `ObsSpec`."""

    obs: np.ndarray
    reward: float
    terminated: bool
    result: EpisodeResult | None
    info: dict[str, Any]


@dataclass(frozen=True)
class EnvFactory:
    """Makes environments of a task (see `make`), in this process or in a worker to which it is sent: with it goes what
    this process has registered under that id, with cloudpickle where it is a class of the user's script."""

    name: str
    success_timing: str | None = None
    kwargs: FrozenDict = NO_ARGUMENTS
    discount: float = 1.0  # of the rewards in the return of an episode
    frame_stack: int = 1  # frames in an observation

    def __call__(self, **more: Any) -> "SeededEnv":
        """Make an environment. Raises as `make`."""
        env = make(self.name, self.success_timing, **(self.kwargs | more))
        env.factory = dataclasses.replace(self, kwargs=FrozenDict(self.kwargs | more))
        env.discount, env.obs_spec = self.discount, env.obs_spec.stacked(self.frame_stack)
        return env

    @property
    def is_heavy(self) -> bool:
        """Whether an environment takes much time and memory; a worker can hold dozens of the others."""
        suite = suite_of(self.name)
        return suite is not None and suite.is_heavy(self.name)

    def named(self, env_name: str) -> "EnvFactory":
        """Return the factory of another task of the same environment."""
        return dataclasses.replace(self, name=env_name)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        named = self.name.rpartition(":")[2]
        versions = {known: spec for known, spec in gymnasium.registry.items() if ogbench.is_version(known, named)}
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

    In OGBench's single tasks, reward and success come from the state after the step (`success_timing` "post", the
    published protocol) or before it ("pre", OGBench since 1.2.0). `kwargs` go to the environment's constructor.

    Actions are rescaled to [-1, 1]; observations that are a dictionary or a tuple are laid end to end in the order of
    their names, or are parts by name if one is an image, and choices become one-hot (`floq.envs.spaces`). An
    environment without a time limit gets `TIME_LIMIT`.

    Raises:
        UserError: the id is unknown, its constructor raises, its actions are not a bounded box, or a part of its
            observations is not numeric.
    """
    timing = {"success_timing": success_timing} if success_timing and ogbench.is_singletask(env_name) else {}
    factory = EnvFactory(env_name, success_timing, FrozenDict(kwargs))
    with explain_renderer(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")  # OGBench's spaces
        warnings.filterwarnings("ignore", message=".*is out of date")  # Gymnasium, of old versions of an environment
        try:
            suite = suite_of(env_name)
            if suite is None:
                ogbench.import_ogbench()  # it registers ids that are Gymnasium's
            made = suite.make if suite else functools.partial(gymnasium.make, disable_env_checker=True)
            env: Any = made(env_name, **timing, **kwargs)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"{env_name}: {' '.join(str(error).split())}") from error
        except gymnasium.error.Error as error:
            known = [*itertools.chain(*(suite.names() for suite in SUITES.values())), *gymnasium.registry]
            raise UserError(f"unknown environment {env_name!r}{nearest(env_name, known)}") from error
        except Exception as error:  # it is foreign code
            remedy = "; its arguments are given as --env_kwargs.NAME=VALUE" if isinstance(error, TypeError) else ""
            raise UserError(f"{env_name} could not be made: {in_one_line(error)}{remedy}") from error
        box = action_box(env.action_space, env_name)
        if env.spec is None or env.spec.max_episode_steps is None:
            env = gymnasium.wrappers.TimeLimit(env, TIME_LIMIT)
        parts = part_names(obs_space := ordered(env.observation_space), env_name)
        if not (spec := spaces.obs_spec(obs_space, env_name)).is_vector:
            return SeededEnv(env, factory, parts, box, spec)
        if not isinstance(obs_space, gymnasium.spaces.Box):
            flat = gymnasium.spaces.flatten_space(obs_space)
            env = gymnasium.wrappers.TransformObservation(
                env, functools.partial(gymnasium.spaces.flatten, obs_space), flat
            )
        if len(env.observation_space.shape or ()) != 1:
            raise UserError(
                f"{env_name}: floq needs a vector of observations, images of uint8 and shape (H, W, C), or a "
                f"dictionary of these; this one has {env.observation_space}"
            )
        return SeededEnv(env, factory, parts, box)


class SeededEnv(gymnasium.Wrapper):
    """An environment whose random draws are all determined by the seed of its last reset, and which is sent nothing but
    actions of its space.

    It wraps `env`, which shows what `obs_spec` says, by default a vector, with these named `parts`, and takes actions
    of `box`, by default its own space; they are scaled from [-1, 1]. `factory` makes the same environment.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        factory: EnvFactory,
        parts: tuple[str, ...] = (),
        box: gymnasium.spaces.Box | None = None,
        obs_spec: ObsSpec | None = None,
    ):
        super().__init__(env)
        self.obs_spec = obs_spec or ObsSpec.of((env.observation_space.shape or (1,))[0])
        self._obs_space = ordered(env.observation_space)
        self._frames: list[np.ndarray] = []
        self.parts, self.factory, self.box = parts, factory, box or action_box(env.action_space, factory.name)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, self.box.shape, np.float32)
        self.known_tasks: dict[str, int | None] = {}  # by name, tasks that were set before
        self._global_state: np.random.BitGenerator = np.random.MT19937(0)
        self.discount = 1.0
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
        """Start the episode of `seed`, to be continued with `advance`, and return its first observation."""
        self._return, self._length = 0.0, 0
        frame = spaces.observation(self.reset_with(seed), self._obs_space, self.obs_spec.stacked(1))
        self._frames = [frame] * self.obs_spec.frames
        return np.concatenate(self._frames)

    def advance(self, action: np.ndarray) -> EpisodeStep:
        """Take one step of the episode; `action` is clipped to [-1, 1]. Raises ValueError if a number that goes in or
        comes out is not finite, or of another shape or kind than it should be."""
        obs, reward, terminated, truncated, info = self.step(action)
        frame, reward = spaces.observation(obs, self._obs_space, self.obs_spec.stacked(1)), spaces.reward(reward)
        terminated, truncated = spaces.flag("terminated", terminated), spaces.flag("truncated", truncated)
        self._return += self.discount**self._length * reward
        self._length += 1
        ended = terminated or truncated
        result = EpisodeResult(spaces.success(info), self._return, self._length) if ended else None
        self._frames = [*self._frames[1:], frame]
        return EpisodeStep(np.concatenate(self._frames), reward, terminated, result, info)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        with self.own_global_state():
            return spaces.check_returned("reset", self.env.reset(seed=seed, options=options), 2)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        sent = unit_to_box(np.asarray(action), self.box)
        with self.own_global_state():
            return spaces.check_returned("step", self.env.step(sent), 5)

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


def probe(env: SeededEnv) -> tuple[ObsSpec, int]:
    """Reset an environment twice and take one step. Returns what an observation is, and the action dimension. Raises
    UserError if a call raises, as with the API of old versions of Gym, or returns something else than it should."""
    action, api = np.random.default_rng(0).uniform(-1, 1, env.action_space.shape).astype(np.float32), RESET_API
    try:
        env.begin_episode(PROBE_SEED)
        env.begin_episode(PROBE_SEED)
        api = STEP_API
        spaces.success(env.advance(action).info)
    except Exception as error:  # it is foreign code
        raise UserError(f"{env.task}: {in_one_line(error)}; floq needs Gymnasium's {api}") from error
    return env.obs_spec, action.size


@functools.lru_cache(maxsize=256)
def task_dims(make_env: EnvFactory) -> tuple[ObsSpec, int]:
    """Make an environment and return what `probe` does."""
    env = make_env()
    try:
        return probe(env)
    finally:
        env.close()
