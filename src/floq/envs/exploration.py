"""Environments of online training, in which new experience is collected. No JAX in here: worker processes import this
file.

In each tick every environment takes one step, or is reset if its episode is over. Episodes are seeded by the run's
seed, the environment's number and the tick of the reset, so a resumed run does not repeat any.
"""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from floq.envs.environments import EnvFactory, EpisodeResult, SeededEnv, Slot
from floq.utils.errors import in_one_line

STREAM = 2  # distinguishes these seeds from those of evaluations
MAX_FAILURES = 3  # of an environment without a step between them, after which it is not made again


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
    """Some of the environments of several runs, stepped together by one worker. All of them begin with a reset.

    Args:
        sites: the environments.
        restart: replace an environment that failed by a new one; its episode is dropped.
    """

    def __init__(self, sites: Sequence[EnvSpec], restart: bool):
        self._sites, self._restart = sites, restart
        self._envs: dict[Slot, SeededEnv] = {site.slot: site.make_env() for site in sites}
        self._obs_shape = next(iter(self._envs.values())).observation_space.shape or ()
        self._needs_reset = {site.slot for site in sites}  # slots whose next tick is a reset
        self._num_failures = dict.fromkeys(self._envs, 0)  # since the last step, by slot

    def step(self, tick: int, actions: np.ndarray) -> VectorStep:
        """Advance every environment by one tick; `actions` (envs, act) are in [-1, 1], in the order of the sites."""
        observations = np.zeros((len(self._sites), *self._obs_shape), np.float32)
        rewards, masks = np.zeros(len(self._sites), np.float32), np.ones(len(self._sites), np.float32)
        stepped = np.zeros(len(self._sites), bool)
        finished: list[tuple[Slot, EpisodeResult]] = []
        failures: list[Failure] = []
        for i, (site, action) in enumerate(zip(self._sites, actions, strict=True)):
            slot = site.slot
            try:
                if slot in self._needs_reset:
                    observations[i] = self._reset(site, tick)
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

    def _reset(self, site: EnvSpec, tick: int) -> np.ndarray:
        if site.slot not in self._envs:  # it failed
            self._envs[site.slot] = site.make_env()
        return self._envs[site.slot].begin_episode((site.seed, site.slot[1], tick, STREAM))

    def _failure(self, site: EnvSpec, error: Exception) -> Failure:
        """Close the environment, drop its episode, and describe the failure."""
        self._needs_reset.add(site.slot)
        self._num_failures[site.slot] += 1
        with contextlib.suppress(Exception):
            self._envs.pop(site.slot).close()
        what = f"environment {site.slot[1]} of {site.make_env.name} (seed {site.seed}) failed: {in_one_line(error)}"
        goes_on = self._restart and self._num_failures[site.slot] < MAX_FAILURES
        return Failure(site.slot, what, goes_on)
