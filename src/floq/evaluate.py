"""Parallel, seeded evaluation: many environments, one batched call of the policy.

An episode's randomness is keyed by (seed, training step, episode number), the policy's noise by the step within the
episode on top, and a row of the batch belongs to a slot and not to a worker. So a result depends neither on timing nor
on the number of workers.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from floq import run_data
from floq.agent import Agent
from floq.data.transitions import Dataset
from floq.envs import EnvSlots, EpisodeResult
from floq.held_out import HeldOut, HeldOutEvaluator
from floq.keys import Keys
from floq.progress import Display
from floq.results import described
from floq.run import Run
from floq.workers import Workers, worker_count

MAX_SLOTS = 10  # environments that play at once; fixed, so that the batch has one shape on every machine


class Evaluation(NamedTuple):
    """The episodes of one evaluation, in the order of their numbers."""

    step: int
    episodes: tuple[EpisodeResult, ...]

    def summary(self) -> dict[str, float]:
        """The published metrics: means over episodes. Success is NaN if no episode had such a flag, and an episode
        without one counts as a failure if others have it."""
        success, *others = np.array(self.episodes, dtype=np.float64).T
        flagged = np.nan if np.isnan(success).all() else np.nan_to_num(success).mean()
        names = ("evaluation/success", "evaluation/episode.return", "evaluation/episode.length")
        return dict(zip(names, (float(flagged), *(float(x.mean()) for x in others)), strict=True))


class Evaluator:
    """Worker processes with environments of one task, kept for as many evaluations as wanted. A context manager."""

    def __init__(self, env_name: str, success_timing: str | None, num_episodes: int, workers: int | None = None):
        self._num_episodes = num_episodes
        self._num_slots = min(MAX_SLOTS, num_episodes)
        count = worker_count(workers, self._num_slots)
        self._shares = [range(i, self._num_slots, count) for i in range(count)]
        self._workers = Workers(
            EnvSlots, [(env_name, success_timing, tuple(share), self._num_slots) for share in self._shares]
        )

    def __enter__(self) -> "Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._workers.close()

    def __call__(
        self,
        agent: Agent,
        seed: int,
        step: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Evaluation | None:
        """Play the episodes that (seed, step) names with the agent's policy. None if `should_stop` said so midway."""
        results: dict[int, EpisodeResult] = {}
        episode = np.arange(self._num_slots)
        elapsed = np.zeros(self._num_slots, np.int64)
        key = jax.random.fold_in(Keys.of(seed).evaluation, step)

        starts = self._workers.call("start", [((seed, step), self._num_episodes)] * len(self._shares))
        obs = self._in_slots(starts)
        while len(results) < self._num_episodes:
            if should_stop():
                return None
            actions = np.asarray(_act(agent, key, obs, episode, elapsed))
            answers = self._workers.call("step", [(actions[list(share)],) for share in self._shares])
            obs = self._in_slots([observations for observations, _ in answers])
            elapsed += 1
            for slot, result in (pair for _, finished in answers for pair in finished):
                results[int(episode[slot])] = result
                episode[slot] += self._num_slots
                elapsed[slot] = 0
                on_progress(len(results), self._num_episodes)
        return Evaluation(step, tuple(results[i] for i in range(self._num_episodes)))

    def _in_slots(self, shares: Sequence[np.ndarray]) -> np.ndarray:
        obs = np.empty((self._num_slots, *shares[0].shape[1:]), np.float32)
        for share, rows in zip(self._shares, shares, strict=True):
            obs[list(share)] = rows
        return obs


@jax.jit
def _act(agent: Agent, key, obs, episode, elapsed):
    def act(obs, episode, elapsed):
        return agent.act(obs, jax.random.fold_in(jax.random.fold_in(key, episode), elapsed))

    return jax.vmap(act)(obs, jnp.asarray(episode), jnp.asarray(elapsed))


def evaluate_run(
    run_dir: str,
    step: int | None = None,
    eval_episodes: int = 50,
    seed: int | None = None,
    success_timing: str | None = None,
    workers: int | None = None,
    data: Dataset | None = None,
    show: bool = True,
) -> Evaluation | HeldOut:
    """Evaluate a checkpoint of a run again, and print the result.

    With the run's own seed and number of episodes it repeats the evaluation that training made at that step.

    Without an environment it looks at the held-out data again, which must be what it was; `data` is that data if the
    run was given it from Python.

    Raises:
        UserError: there is no such run or checkpoint, the data is another, or an option is out of range.
    """
    run = Run.open(run_dir)
    seed = run.config.seed if seed is None else seed
    changes = {"eval_episodes": eval_episodes, "success_timing": success_timing or run.config.success_timing}
    config = dataclasses.replace(run.config, seed=seed, **changes)
    agent, display = run.load_agent(step), Display(show)
    if config.env_name is None:
        run_data.check_given(run, data)
        splits = run_data.load_data(config, display, data)
        run_data.check_same(run, splits)
        evaluation = HeldOutEvaluator(splits.validation)(agent, seed, int(agent.step))
    else:
        with (
            Evaluator(config.env_name, config.success_timing, eval_episodes, workers) as evaluator,
            display.bar("evaluate", eval_episodes) as update,
        ):
            evaluation = evaluator(agent, seed, int(agent.step), on_progress=lambda done, _: update(done))
    assert evaluation is not None
    rows = described(config, evaluation.summary())
    display.table(f"{config.task}, checkpoint of step {evaluation.step}, seed {seed}", rows)
    return evaluation
