"""Environments stepped together by one worker, for evaluation and for online training. No JAX in here: worker processes
import this file."""

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from floq.envs.environments import EnvFactory, EpisodeResult, Seed, SeededEnv
from floq.envs.ogbench import with_task
from floq.utils.errors import in_one_line

Slot = tuple[int, int]  # the index of an evaluated policy (or a run), and of a slot among its own
STREAM = 2  # distinguishes these seeds from those of evaluations
MAX_FAILURES = 3  # of an environment without a step between them, after which it is not made again


def index_of(slots: Sequence[Slot]) -> tuple[np.ndarray, ...]:
    """Return the index that selects these slots from the first two axes of an array."""
    return tuple(np.array(slots).T)


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
        self, tasks: Sequence[tuple[str, Seed]], num_episodes: int, episodes: Mapping[Slot, int] = MappingProxyType({})
    ) -> np.ndarray:
        """Reset every slot to its first episode, or to that in `episodes`. `tasks` has the environment and the seed of
        each policy: its episode e is seeded by (*seed, e). A slot without an episode left, or without a policy, is
        inactive. Returns the first observations (slots, size)."""
        self._tasks, self._num_episodes = tuple(tasks), num_episodes
        self._episode = {
            (policy, slot): episodes.get((policy, slot), slot) if policy < len(tasks) else num_episodes
            for policy, slot in self._envs
        }
        for slot, env in self._envs.items():
            if self._is_active(slot):
                self._envs[slot] = with_task(env, tasks[slot[0]][0])
        return np.stack([self._first_observation(slot) for slot in self._envs])

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, list[tuple[Slot, EpisodeResult]]]:
        """Take one step in every active slot. Returns observations (slots, size), where a slot whose episode ended has
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
            return self._envs[slot].obs_spec.zeros()
        _, seed = self._tasks[slot[0]]
        return self._envs[slot].begin_episode((*seed, self._episode[slot]))


class EnvSpec(NamedTuple):
    """Specification of one environment: the index of its run and its own, what makes it, and the run's seed."""

    slot: Slot
    make_env: EnvFactory
    seed: int


class Failure(NamedTuple):
    """An environment's failure, its message, and whether a new environment takes its place."""

    slot: Slot
    what: str
    goes_on: bool


class VectorStep(NamedTuple):
    """Result of one tick, with one entry per environment; `stepped` is false where it was reset, or failed. `finished`
    and `failures` list the episodes that ended in it, and the failures."""

    observations: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray  # 0 at a true termination
    stepped: np.ndarray
    finished: list[tuple[Slot, EpisodeResult]]
    failures: list[Failure]


class ExploringEnvs:
    """Some of the environments of several runs, stepped together by one worker.

    In each tick every environment takes one step, or is reset if its episode is over. Episodes are seeded by the run's
    seed, the environment's number and the tick of the reset, so a resumed run does not repeat any. With `restart`, a
    new environment replaces one that failed; its episode is dropped.
    """

    def __init__(self, sites: Sequence[EnvSpec], restart: bool):
        self._sites, self._restart = sites, restart
        self._envs: dict[Slot, SeededEnv] = {site.slot: site.make_env() for site in sites}
        self._obs_spec = next(iter(self._envs.values())).obs_spec
        self._needs_reset = {site.slot for site in sites}  # slots whose next tick is a reset
        self._num_failures = dict.fromkeys(self._envs, 0)  # since the last step, by slot

    def step(self, tick: int, actions: np.ndarray) -> VectorStep:
        """Advance every environment by one tick; `actions` (envs, act) are in [-1, 1], in the order of the sites."""
        count = len(self._sites)
        observations, stepped = self._obs_spec.zeros(count), np.zeros(count, bool)
        rewards, masks = np.zeros(count, np.float32), np.ones(count, np.float32)
        finished: list[tuple[Slot, EpisodeResult]] = []
        failures: list[Failure] = []
        for i, (site, action) in enumerate(zip(self._sites, actions, strict=True)):
            slot = site.slot
            try:
                if slot in self._needs_reset:
                    if slot not in self._envs:  # it failed
                        self._envs[slot] = site.make_env()
                    observations[i] = self._envs[slot].begin_episode((site.seed, slot[1], tick, STREAM))
                    self._needs_reset.remove(slot)
                    continue
                observations[i], rewards[i], terminated, result, _ = self._envs[slot].advance(action)
            except Exception as error:
                failures.append(self._failure(site, error))
                continue
            if result is not None:
                finished.append((slot, result))
                self._needs_reset.add(slot)
            stepped[i], masks[i], self._num_failures[slot] = True, not terminated, 0
        return VectorStep(observations, rewards, masks, stepped, finished, failures)

    def _failure(self, site: EnvSpec, error: Exception) -> Failure:
        """Close the environment, drop its episode, and describe the failure."""
        self._needs_reset.add(site.slot)
        self._num_failures[site.slot] += 1
        with contextlib.suppress(Exception):
            self._envs.pop(site.slot).close()
        what = f"environment {site.slot[1]} of {site.make_env.name} (seed {site.seed}) failed: {in_one_line(error)}"
        goes_on = self._restart and self._num_failures[site.slot] < MAX_FAILURES
        return Failure(site.slot, what, goes_on)
