"""Fitted Q evaluation of policies: the data that a fleet learns their values from, a run for each policy and seed, and
the result. `off_policy.py` says which policies, and with which settings."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.agent.config import AgentConfig
from floq.agent.state import ValueRange
from floq.analysis.off_policy import OffPolicyEvaluation, PolicyValue, far_actions, show_evaluation, warnings_of
from floq.analysis.report.csv_files import write_csv
from floq.data.dataset import Dataset, PolicyActions, Splits
from floq.envs.environments import EnvFactory
from floq.evaluation.fixed_policy import (
    Episodes,
    FixedPolicy,
    FixedPolicyEvaluator,
    States,
    first_observations,
    measured_returns,
)
from floq.runs import run_data
from floq.runs.config import Config
from floq.runs.run import Run, make_agent, write_json
from floq.training.loop import Found
from floq.training.train import run_to_completion
from floq.utils.errors import Interrupted, UserError
from floq.utils.machine import device
from floq.utils.progress import Display
from floq.utils.schema import FrozenDict, NonNegative, Seed, Settings
from floq.utils.signals import signal_of

RESULT = "ope.json"
COMPARED_STATES = 4000  # in which a policy's actions are compared with the data's
ENV_STARTS = 100  # starts in the environment where `truth` does not say how many
FORGOTTEN = 1e-3  # the discount below which the rest of an episode does not count
DEFAULT, ENOUGH = 8, 5  # time constants of an evaluation, and below which to warn
ONE_BY_ONE = "evaluate them one by one"


@dataclass(frozen=True)
class Request(Settings):
    """What is evaluated: the names of policies, with the run and the step of each that has one; and how, see `ope`."""

    policies: tuple[str, ...]
    runs: tuple[str | None, ...]
    steps: tuple[int | None, ...]
    seeds: tuple[Seed, ...]
    starts: Literal["data", "env"]
    truth: NonNegative
    own_data: bool
    """Whether the data are those of the first run."""


def updates_of(agent: AgentConfig, time_constants: int) -> int:
    """Return how many updates are so many time constants, of 1 / (tau (1 - discount)) each: after n of them e^-n of the
    distance is left between where the values began and where they go."""
    return math.ceil(time_constants / (max(agent.tau, 1e-6) * (1 - agent.discount)) - 1e-6)


class Evaluation(NamedTuple):
    """An evaluation whose data and actions are there. `actions` are the policies' on the training and the validation
    data, `env_starts` the states and actions in which episodes of the environment begin, if values are meant there."""

    request: Request
    policies: Sequence[FixedPolicy]
    config: Config
    splits: Splits
    episodes: Episodes
    actions: tuple[jax.Array, jax.Array]
    env_starts: Sequence[States]

    @classmethod
    def prepare(
        cls,
        request: Request,
        policies: Sequence[FixedPolicy],
        config: Config,
        origin: Run | None,
        data: Dataset | None,
        display: Display,
    ) -> "Evaluation":
        """Load the data, which are those of the run `origin` if the request says so, and draw the actions."""
        display.note(f"device  {device()}{config.precision_note}")
        stats = [policy.agent.obs_stats for policy in policies if policy.agent is not None]
        differs = lambda other: not jax.tree.all(jax.tree.map(np.array_equal, other, stats[0]))  # noqa: E731
        if any(map(differs, stats[1:])):
            raise UserError(f"these policies normalise observations by different statistics: {ONE_BY_ONE}")
        if origin is not None and request.own_data:
            splits = run_data.load_own_data([origin], display)[run_data.data_key(origin.config)]
        else:
            splits = run_data.load_data(config, display, data)
        splits = splits._replace(train=dataclasses.replace(splits.train, num_old_rows=0))
        samples, width = config.agent.actor.policy_samples, config.agent.action_chunk * splits.train.dims[1]
        spec = splits.train.dims[0]
        draw = lambda states: jnp.stack([one.draw(states, samples, width, spec) for one in policies])  # noqa: E731
        train, validation = (draw(part) for part in splits[:2])
        actions = train, validation
        env_starts = []
        if request.starts == "env":
            states = jnp.asarray(first_observations(unlimited(config, 1), request.truth or ENV_STARTS))
            env_starts = [States(states, drawn) for drawn in draw(states)]
        episodes = Episodes.of(splits.train, config.agent.discount)
        return cls(request, policies, config, splits, episodes, actions, env_starts)

    def complete(
        self, runs: list[Run], found: Sequence[Found], folder: Path, display: Display, started: float
    ) -> OffPolicyEvaluation:
        """Train the runs to their end, write the result into the folder and show it. The runs are locked."""
        try:
            if not all(run.is_finished for run in runs):
                numbers, seeds = range(len(self.policies)), self.request.seeds
                parts = [self._of_run(number, seed) for number in numbers for seed in seeds]
                splits, evaluators = map(list, zip(*parts, strict=True))
                both = zip(found, runs, strict=True)
                agents = [one.saved.agent if one.saved else self._agent(run.config) for one, run in both]
                run_to_completion(runs, agents, splits, evaluators, None, display, started, False, found)
            result = self._result(runs, display)
        except (Interrupted, KeyboardInterrupt) as stop:
            signum = stop.signum if isinstance(stop, Interrupted) else signal_of(stop)
            raise Interrupted(f"stopped; go on with floq ope --resume {folder}", signum) from stop
        write_json(folder / RESULT, {"request": dataclasses.asdict(self.request)} | result.to_json())
        write_csv(folder / "ope.csv", result.rows(), ("policy",))
        show_evaluation(result, display)
        display.note(f"  result      {folder / RESULT}, ope.csv")
        return result

    def _agent(self, config: Config) -> Agent:
        """Return the fresh agent of a run, which normalises observations as the policies do."""
        agent, known = make_agent(config, self.splits.train), [one.agent for one in self.policies if one.agent]
        return dataclasses.replace(agent, obs_stats=known[0].obs_stats) if known else agent

    def _of_run(self, number: int, seed: int) -> tuple[Splits, FixedPolicyEvaluator]:
        """Return what the run of a policy and a seed learns from and is evaluated by."""
        train, validation = (
            dataclasses.replace(part, policy_actions=PolicyActions(actions, jnp.int32(number)))
            for part, actions in zip(self.splits[:2], self.actions, strict=True)
        )
        episodes = self.episodes.resample(seed)
        train = dataclasses.replace(train, starts=jnp.asarray(episodes.transitions(train)))
        first, last = (self._states(number, rows) for rows in (episodes.first, episodes.last))
        starts = self.env_starts[number] if self.env_starts else first
        evaluator = FixedPolicyEvaluator(validation, starts, episodes, last)
        return self.splits._replace(train=train, validation=validation), evaluator

    def _states(self, number: int, rows: np.ndarray) -> States:
        return States(self.splits.train.observations_at(rows), self.actions[0][number, rows])

    def _result(self, runs: Sequence[Run], display: Display) -> OffPolicyEvaluation:
        """Return the result of finished runs, and measure what the policies earn if that is asked for."""
        settings, count, seeds = self.config.agent, self.request.truth, len(self.request.seeds)
        low, high = (float(r) / (1 - settings.discount) for r in ValueRange.of(*self.splits.train.reward_range()))
        truths: list[tuple[float, ...] | None] = [None] * len(self.policies)
        if count:
            steps = math.ceil(math.log(FORGOTTEN) / math.log(settings.discount)) if settings.discount else 1
            make_env = unlimited(self.config, steps)
            with display.bar("measure", len(self.policies) * count) as update:
                truths = [*measured_returns(self.policies, make_env, count, settings.action_chunk, update)]
        values = [
            self._value(number, runs[number * seeds : (number + 1) * seeds], (low, high), truth)
            for number, truth in enumerate(truths)
        ]
        return OffPolicyEvaluation(settings.discount, self.request.starts, (low, high), tuple(values))

    def _value(
        self, number: int, runs: Sequence[Run], return_range: tuple[float, float], truth: tuple[float, ...] | None
    ) -> PolicyValue:
        """Return the result of a policy, whose runs these are, in units of the data's rewards."""
        settings = self.config.agent
        columns = [run.evaluations() for run in runs]
        value, data_return, td_error = (
            [found[f"evaluation/{name}"][-1] / settings.reward_scale for found in columns]
            for name in ("initial_value", "data_return", "td_error")
        )
        losses = np.array([run.training()["training/critic/critic_loss"] for run in runs])
        far, updates = self._far_actions(number), (self.config.offline_steps, updates_of(settings, ENOUGH))
        return PolicyValue(
            self.policies[number].name,
            seeds=tuple(value),
            data_return=float(np.mean(data_return)),
            training_critic=self._training_critic(number),
            td_error=float(np.mean(td_error)),
            far_actions=far,
            warnings=warnings_of(float(np.mean(value)), far, losses, return_range, *updates),
            truth=truth,
        )

    def _training_critic(self, number: int) -> float | None:
        """Return the value of a policy by the critic that it was trained with, None if that knew another discount."""
        agent, settings = self.policies[number].agent, self.config.agent
        if agent is None or not math.isclose(float(agent.hypers.discount), settings.discount, rel_tol=1e-6):
            return None
        starts = self.env_starts[number] if self.env_starts else self._states(number, self.episodes.first)
        return float(starts.values(agent, jax.random.key(0)).mean()) / settings.reward_scale

    def _far_actions(self, number: int) -> float:
        """Return the share of a policy's actions that are far from the data's."""
        data = self.splits.train
        rows = np.asarray(data.starts)[np.linspace(0, len(data) - 1, min(len(data), COMPARED_STATES)).astype(int)]
        batch = jax.vmap(lambda row: data.transition(row, 1, 1.0))(jnp.asarray(rows))
        states, actions = (np.asarray(batch[name]) for name in ("observations", "actions"))
        spec = data.dims[0]
        return far_actions(
            states if spec.is_vector else spec.coarse(states), actions, np.asarray(self.actions[0][number, rows, 0])
        )


def unlimited(config: Config, steps: int) -> EnvFactory:
    """Return what makes the environment as off-policy evaluation sees it: without its own time limit, cut after so many
    steps, with discounted returns, and with success as the data's labels have it."""
    kwargs = FrozenDict(config.env_kwargs | {"max_episode_steps": steps})
    made = dataclasses.replace(config.make_env, success_timing=config.label_timing, kwargs=kwargs)
    return dataclasses.replace(made, discount=config.agent.discount)
