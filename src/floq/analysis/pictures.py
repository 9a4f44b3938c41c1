"""Pictures of a run: the numbers are computed with the agent here, and drawn by `analysis.figures`."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis import critic_outputs
from floq.analysis.critic_outputs import Probes
from floq.analysis.figures import diagnosis, integration, value_distributions
from floq.analysis.figures.curves import draw_learning_curve
from floq.analysis.figures.episodes import Played, value_along
from floq.analysis.figures.flow import plot_flow_paths
from floq.analysis.figures.maze import value_map
from floq.data.dataset import Dataset
from floq.envs import ogbench
from floq.evaluation.rollouts import play_episode
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.utils.progress import Display

VALUE_STATES = 12_000  # states whose value is drawn over a maze
VALUE_BATCH = 500  # states evaluated at a time, to limit memory
GREEDY_SAMPLES = 32  # actions that the greedy policy chooses from
MAX_CHECKPOINTS = 5  # in a picture

# --- Pictures ---


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

    @property
    def boundary(self) -> int | None:
        """Step at which the run goes online; None if it does not."""
        return self.run.config.offline_steps if self.run.config.online_steps else None


def draw(names: Iterable[str], subject: Subject, folder: Path, display: Display) -> dict[str, str]:
    """Draw those of these `PICTURES` that apply to the subject. Returns a sentence on what each shows; where one cannot
    be drawn, the cause is printed."""
    found = {}
    for name in names:
        with display.tolerate(str(folder / name)):
            found[name] = PICTURES[name][1](subject, folder / name)
    return {name: f"{PICTURES[name][0]}: {finding}" for name, finding in found.items() if finding is not None}


LEARNING_CURVE, VALUE_MAP, FLOW = NAMES = ("learning_curve.png", "value_map.png", "flow.png")
"""The pictures of a finished run, in its folder `plots`."""


def draw_pictures(run: Run, agent: Agent, data: Dataset, display: Display, wanted: Sequence[str] = NAMES) -> None:
    """Draw those of the wanted pictures that apply to this run; where one cannot be drawn, the cause is printed."""
    plots, names = run.folder / "plots", [name for name in wanted if name in applicable(run, agent)]
    with display.tolerate(f"pictures in {plots}"):
        plots.mkdir(exist_ok=True)
        if LEARNING_CURVE in names:
            names.remove(LEARNING_CURVE)
            with display.tolerate(str(plots / LEARNING_CURVE)):
                draw_learning_curve(run)
        draw(names, Subject(run, agent, run.config.total_steps, data), plots, display)


def applicable(run: Run, agent: Agent) -> list[str]:
    """Return which of the `NAMES` apply to this run: the learning curve; for mazes, the value over the floor plan with
    the greedy policy's path; for a flow critic, how it integrates a few values. If the agent diverged, only the
    learning curve."""
    whole, has_flow = not critic_outputs.diverged(agent), agent.params.critic.flow_steps is not None
    applies = bool(run.evaluations()), whole and has_value_map(run), whole and has_flow
    return [name for name, does in zip(NAMES, applies, strict=True) if does]


def missing(run: Run, agent: Agent) -> list[str]:
    """Return the names of the pictures that apply to a finished run and are not there."""
    return [name for name in applicable(run, agent) if not (run.folder / "plots" / name).exists()]


def remove(run: Run) -> None:
    """Delete the pictures of an earlier end of this run."""
    for name in NAMES:
        with contextlib.suppress(OSError):
            (run.folder / "plots" / name).unlink()


def has_value_map(run: Run) -> bool:
    """Return whether the run's task is a maze with one goal."""
    name = run.config.env_name or ""
    return ogbench.is_singletask(name) and "maze" in name


# --- Of the critic ---


def _draw_flow(subject: Subject, path: Path) -> str | None:
    """Draw trajectories of z for state-actions of low, medium and high value."""
    if subject.agent.params.critic.flow_steps is None:
        return None
    flow_paths = critic_outputs.flow_paths(subject.agent, subject.probes)
    steps, starts = flow_paths[0].paths.shape[-1] - 1, flow_paths[0].paths.shape[1]
    plot_flow_paths(
        path, flow_paths, f"From noise to value in K = {steps} steps: {starts} starts for each network of the ensemble"
    )
    landings = ", ".join(f"{flow.paths[..., -1].mean():.1f} ± {flow.paths[..., -1].std():.1f}" for flow in flow_paths)
    start = flow_paths[0].paths[..., 0]
    return f"noise {start.mean():.1f} ± {start.std():.1f} is carried to {landings}"


def _draw_steps(subject: Subject, path: Path) -> str | None:
    trained = subject.agent.params.critic.flow_steps
    if trained is None:
        return None
    counts = critic_outputs.step_counts(trained)
    values = critic_outputs.values_by_steps(subject.agent, subject.probes, counts)
    return integration.settling(path, counts, values, trained)


def _draw_noise(subject: Subject, path: Path) -> str | None:
    """Draw what is left of the noise at some checkpoints of the run, evenly spread, the last of them this one."""
    agent = subject.agent
    if agent.params.critic.flow_steps is None or not np.ptp(agent.scale.noise(jnp.array([0.0, 1.0]))):
        return None
    folder = subject.run.folder / "checkpoints"
    before = evenly_spaced([step for step in checkpoint.steps(folder) if step < subject.step], MAX_CHECKPOINTS - 1)
    agents = {step: checkpoint.load(folder, step).agent for step in before} | {subject.step: agent}
    landed = {step: critic_outputs.landings(agent, subject.probes) for step, agent in agents.items()}
    ends = {step: values for step, (_, values) in landed.items()}
    return integration.noise_left(path, landed[subject.step][0], ends, subject.probes.examples)


def evenly_spaced(items: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the items, evenly spread, with the first and the last."""
    at = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int)
    return [items[i] for i in at]


def _draw_members(subject: Subject, path: Path) -> str | None:
    if subject.agent.params.critic.flow_steps is not None:
        return None
    values = critic_outputs.members(subject.agent, subject.probes)
    title = f"The networks of the {subject.agent.static.critic_name} critic at {len(values)} state-actions"
    return value_distributions.member_values(path, values, subject.probes.targets, title)


def _draw_histograms(subject: Subject, path: Path) -> str | None:
    found = critic_outputs.histograms(subject.agent, subject.probes)
    return value_distributions.histograms(path, found) if found else None


def _draw_quantiles(subject: Subject, path: Path) -> str | None:
    found = critic_outputs.quantiles(subject.agent, subject.probes)
    return value_distributions.quantile_functions(path, found) if found else None


def _draw_diagnosis(subject: Subject, path: Path) -> str | None:
    """Draw the logged metrics of the critic."""
    title = f"How the {subject.run.config.agent.critic_name} critic developed, on held-out transitions"
    return diagnosis.diagnosis(path, subject.run.training(), subject.boundary, title)


# --- Of episodes ---


def _draw_episodes(subject: Subject, path: Path) -> str | None:
    """Draw the critic's values along the episodes."""
    title = f"What the critic expects along the way\n{subject.run.config.task}, step {subject.step:,}"
    return value_along(path, subject.played, title) if subject.played else None


def _draw_value_map(subject: Subject, path: Path) -> str | None:
    """Draw V(s) = Q(s, greedy action) over the maze, and the greedy policy's path, of a task with one goal."""
    run, agent, data = subject.run, subject.agent, subject.data
    if not has_value_map(run):
        return None
    env = run.config.make_env()
    walk_key, value_key = jax.random.split(Keys.of(run.config.seed).pictures)

    greedy = lambda obs, elapsed: _greedy(agent, obs, jax.random.fold_in(walk_key, elapsed))  # noqa: E731
    played = list(play_episode(env, (run.config.seed,), greedy, agent.static.action_chunk))
    walk = np.array([played[0][0], *(step.obs for _, _, step in played)])[:, :2]
    outcome = f"{'at the goal' if played[-1][2].info['success'] else 'not at the goal'} after {len(played)} steps"

    rows = np.linspace(0, len(data.observations) - 1, VALUE_STATES).astype(int)
    states = data.observations[rows]
    values = _state_values(agent, states, value_key)
    value_map(path, env.unwrapped, np.asarray(states[:, :2], np.float64), np.asarray(values, np.float64), walk, outcome)
    low, high = np.quantile(values, [0.01, 0.99])
    return f"values from {low:.3g} to {high:.3g}; the greedy policy is {outcome}"


@jax.jit
def _greedy(agent: Agent, obs, key):
    """Return the best of several actions of the policy, by the actor's own critic."""
    act_keys, value_keys = jax.random.split(key, (2, GREEDY_SAMPLES))
    acts = jax.vmap(agent.act, (None, 0))(obs, act_keys)
    return acts[jnp.argmax(jax.vmap(agent.actor_value, (None, 0, 0))(obs, acts, value_keys))]


@jax.jit
def _state_values(agent: Agent, states, key):
    def value(obs, key):
        act_key, value_key = jax.random.split(key)
        return agent.value(obs, _greedy(agent, obs, act_key), value_key)

    keys = jax.random.split(key, states.shape[0])
    return jax.lax.map(lambda pair: value(*pair), (states, keys), batch_size=VALUE_BATCH)


PICTURES: dict[str, tuple[str, Callable[[Subject, Path], str | None]]] = {
    "flow.png": ("how noise becomes a value", _draw_flow),
    "steps.png": ("how Q settles with K", _draw_steps),
    "noise.png": ("what is left of the noise", _draw_noise),
    "members.png": ("where the networks disagree", _draw_members),
    "histogram.png": ("the histogram over returns", _draw_histograms),
    "quantiles.png": ("the quantiles of the return", _draw_quantiles),
    "diagnosis.png": ("the critic over its training", _draw_diagnosis),
    "value_map.png": ("the value over the maze", _draw_value_map),
    "episodes.png": ("value along episodes", _draw_episodes),
}
"""The subject of each file, and the function that draws it and returns a sentence on the result, or None where it does
not apply to a run."""
