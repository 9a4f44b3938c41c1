"""Pictures of a run: the numbers are computed with the agent here, and drawn by `analysis.figures`."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis import critic_outputs
from floq.analysis.critic_outputs import Probes
from floq.analysis.figures.critic import (
    draw_flow_paths,
    draw_histograms,
    draw_members,
    draw_noise_left,
    draw_quantiles,
    draw_settling,
)
from floq.analysis.figures.episodes import Played, draw_value_map, draw_values
from floq.analysis.figures.training import draw_diagnosis, draw_learning_curve
from floq.data.dataset import Dataset
from floq.envs import ogbench
from floq.evaluation.rollouts import play_episode
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.utils.progress import Display

VALUE_STATES = 12_000  # states whose value is drawn over a maze
VALUE_BATCH = 500  # states evaluated at a time, to limit memory
GREEDY_SAMPLES = 32  # candidates of the greedy policy
MAX_CHECKPOINTS = 5  # in a picture


@dataclass(frozen=True)
class Subject:
    """What pictures show: an agent of a run at a step of its training, transitions to evaluate it at, and episodes that
    it played, if any."""

    run: Run
    agent: Agent
    step: int
    data: Dataset
    played: Sequence[Played] = ()

    @cached_property
    def probes(self) -> Probes:
        """Transitions that the pictures of the critic show; they are the same at every step."""
        key = jax.random.fold_in(Keys.of(self.run.config.seed).pictures, 1)
        return critic_outputs.take_probes(self.agent, self.data, key)


class Picture(NamedTuple):
    """Kind of picture: what it shows; the function that draws it into a file and returns a sentence on the result, or
    None if there is nothing to draw; and whether it applies to a run and its agent."""

    about: str
    draw: Callable[[Subject, Path], str | None]
    applies: Callable[[Run, Agent], bool] = lambda run, agent: True


def draw(names: Iterable[str], subject: Subject, folder: Path, display: Display) -> dict[str, str]:
    """Draw those of these `PICTURES` that apply to the subject. Returns a sentence on what each shows; where one cannot
    be drawn, the cause is printed."""
    found = {}
    for name in names:
        picture = PICTURES[name]
        with display.tolerate(str(folder / name)):
            if picture.applies(subject.run, subject.agent):
                found[name] = picture.draw(subject, folder / name)
    return {name: f"{PICTURES[name].about}: {finding}" for name, finding in found.items() if finding is not None}


def draw_pictures(run: Run, agent: Agent, data: Dataset, display: Display, wanted: Sequence[str] | None = None) -> None:
    """Draw the pictures of a finished run, or the wanted ones of them; where one cannot be drawn, the cause is
    printed."""
    plots = run.folder / "plots"
    with display.tolerate(f"pictures in {plots}"):
        plots.mkdir(exist_ok=True)
        names = _applicable(run, agent) if wanted is None else wanted
        draw(names, Subject(run, agent, run.config.total_steps, data), plots, display)


def missing(run: Run, agent: Agent) -> list[str]:
    """Return the names of the pictures that apply to a finished run and are not there."""
    return [name for name in _applicable(run, agent) if not (run.folder / "plots" / name).exists()]


def _applicable(run: Run, agent: Agent) -> list[str]:
    """Return which of the `OF_A_FINISHED_RUN` apply to this run; if it diverged, at most the learning curve."""
    names = OF_A_FINISHED_RUN[:1] if critic_outputs.diverged(agent) else OF_A_FINISHED_RUN
    return [name for name in names if PICTURES[name].applies(run, agent)]


def remove(run: Run) -> None:
    """Delete the pictures of an earlier end of this run."""
    for name in OF_A_FINISHED_RUN:
        with contextlib.suppress(OSError):
            (run.folder / "plots" / name).unlink()


def _has_flow(run: Run, agent: Agent) -> bool:
    return agent.params.critic.flow_steps is not None


def _has_value_map(run: Run, agent: Agent) -> bool:
    """Return whether the run's task is a maze with one goal, in which observations begin with the position."""
    name = run.config.env_name or ""
    return ogbench.is_singletask(name) and "maze" in name and agent.obs_spec.is_vector


# --- Of the critic ---


def _draw_flow(subject: Subject, path: Path) -> str:
    """Draw how the flow of the critic integrates the values of three state-actions, low, medium and high."""
    flow_paths = critic_outputs.flow_paths(subject.agent, subject.probes)
    steps, starts = flow_paths[0].paths.shape[-1] - 1, flow_paths[0].paths.shape[1]
    title = f"From noise to value in K = {steps} steps: {starts} starts for each network of the ensemble"
    return draw_flow_paths(path, flow_paths, title)


def _draw_steps(subject: Subject, path: Path) -> str:
    trained = subject.agent.params.critic.flow_steps or 0
    counts = critic_outputs.step_counts(trained)
    return draw_settling(path, counts, critic_outputs.values_by_steps(subject.agent, subject.probes, counts), trained)


def _draw_noise(subject: Subject, path: Path) -> str | None:
    """Draw what is left of the noise at some checkpoints of the run, evenly spread, the last of them this one."""
    agent = subject.agent
    if not np.ptp(agent.scale.noise(jnp.array([0.0, 1.0]))):
        return None
    folder = subject.run.folder / "checkpoints"
    before = evenly_spaced([step for step in checkpoint.steps(folder) if step < subject.step], MAX_CHECKPOINTS - 1)
    agents = {step: checkpoint.load(folder, step).agent for step in before} | {subject.step: agent}
    landed = {step: critic_outputs.landings(agent, subject.probes) for step, agent in agents.items()}
    ends = {step: values for step, (_, values) in landed.items()}
    return draw_noise_left(path, landed[subject.step][0], ends, subject.probes.examples)


def evenly_spaced(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the items, evenly spread, with the first and the last."""
    at = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[i] for i in at]


def _draw_members(subject: Subject, path: Path) -> str:
    values = critic_outputs.members(subject.agent, subject.probes)
    title = f"The networks of the {subject.agent.static.critic_name} critic at {len(values)} state-actions"
    return draw_members(path, values, subject.probes.targets, title)


def _draw_diagnosis(subject: Subject, path: Path) -> str | None:
    config = subject.run.config
    title = f"How the {config.agent.critic_name} critic developed, on held-out transitions"
    return draw_diagnosis(path, subject.run.training(), config.offline_steps if config.online_steps else None, title)


# --- Of episodes ---


def _draw_value_map(subject: Subject, path: Path) -> str:
    """Draw V(s) = Q(s, greedy action) over the maze, and the greedy policy's path."""
    run, agent, data = subject.run, subject.agent, subject.data
    env = run.config.make_env()
    walk_key, value_key = jax.random.split(Keys.of(run.config.seed).pictures)

    greedy = lambda obs, elapsed: _greedy(agent, obs, jax.random.fold_in(walk_key, elapsed))  # noqa: E731
    played = list(play_episode(env, (run.config.seed,), greedy, agent.static.action_chunk))
    newest = agent.obs_spec.newest
    walk = newest(np.array([played[0][0], *(step.obs for _, _, step in played)]))[:, :2]
    outcome = f"{'at the goal' if played[-1][2].info['success'] else 'not at the goal'} after {len(played)} steps"

    rows = np.linspace(0, len(data.observations) - 1, VALUE_STATES).astype(int)
    states = data.observations_at(rows)
    values = _state_values(agent, states, value_key)
    positions, heights = np.asarray(newest(states)[:, :2], np.float64), np.asarray(values, np.float64)
    draw_value_map(path, env.unwrapped, positions, heights, walk, outcome)
    env.close()
    low, high = np.quantile(values, [0.01, 0.99])
    return f"values from {low:.3g} to {high:.3g}; the greedy policy is {outcome}"


@jax.jit
def _greedy(agent: Agent, obs, key):
    policy = agent.best_of(GREEDY_SAMPLES) if agent.samples_actions else agent.policy
    return policy.act(obs, key)


@jax.jit
def _state_values(agent: Agent, states, key):
    def value(obs, key):
        act_key, value_key = jax.random.split(key)
        return agent.value(obs, _greedy(agent, obs, act_key), value_key)

    keys = jax.random.split(key, states.shape[0])
    return jax.lax.map(lambda pair: value(*pair), (states, keys), batch_size=VALUE_BATCH)


LEARNING_CURVE = "learning_curve.png"
OF_A_FINISHED_RUN = (LEARNING_CURVE, "value_map.png", "flow.png")
"""The pictures of a finished run, in its folder `plots`."""
PICTURES = {
    LEARNING_CURVE: Picture(
        "evaluations over training",
        lambda subject, path: draw_learning_curve(subject.run, path),
        lambda run, agent: bool(run.evaluations()),
    ),
    "flow.png": Picture("how noise becomes a value", _draw_flow, _has_flow),
    "steps.png": Picture("how Q settles with K", _draw_steps, _has_flow),
    "noise.png": Picture("what is left of the noise", _draw_noise, _has_flow),
    "members.png": Picture("where the networks disagree", _draw_members, lambda *both: not _has_flow(*both)),
    "histogram.png": Picture(
        "the histogram over returns",
        lambda subject, path: draw_histograms(path, critic_outputs.histograms(subject.agent, subject.probes)),
    ),
    "quantiles.png": Picture(
        "the quantiles of the return",
        lambda subject, path: draw_quantiles(path, critic_outputs.quantiles(subject.agent, subject.probes)),
    ),
    "diagnosis.png": Picture("the critic over its training", _draw_diagnosis),
    "value_map.png": Picture("the value over the maze", _draw_value_map, _has_value_map),
    "episodes.png": Picture(
        "value along episodes",
        lambda subject, path: draw_values(path, subject.played, f"{subject.run.config.task}, step {subject.step:,}"),
    ),
}
"""The pictures by the names of their files. `floq inspect` draws all but the learning curve."""
