"""Pictures of a run: the numbers are computed with the agent here, and drawn by `analysis.figures`."""

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis import probing
from floq.analysis.figures.curves import held_out_curve, learning_curve
from floq.analysis.figures.flow import plot_flow_paths
from floq.analysis.figures.maze import value_map
from floq.analysis.metrics import RETURN, SUCCESS
from floq.analysis.probing import Probes
from floq.data.dataset import Dataset
from floq.envs import environments
from floq.evaluation.rollouts import play_episode
from floq.runs.run import Run, protocol
from floq.utils.progress import Display

VALUE_STATES = 12_000  # states whose value is drawn over a maze
VALUE_BATCH = 500  # states evaluated at a time, to limit memory
GREEDY_SAMPLES = 32  # actions that the greedy policy chooses from


LEARNING_CURVE, VALUE_MAP, FLOW = NAMES = ("learning_curve.png", "value_map.png", "flow.png")
"""The pictures of a finished run, in its folder `plots`."""


def applicable(run: Run, agent: Agent) -> list[str]:
    """Return which of the `NAMES` apply to this run: the learning curve; for mazes, the value over the floor plan with
    the greedy policy's path; for a flow critic, how it integrates a few values. If the agent diverged, only the
    learning curve."""
    whole, has_flow = not probing.diverged(agent), agent.params.critic.flow_steps is not None
    applies = bool(run.evaluations()), whole and has_value_map(run), whole and has_flow
    return [name for name, does in zip(NAMES, applies, strict=True) if does]


def draw_pictures(
    run: Run, agent: Agent, data: Dataset, display: Display, wanted: Collection[str] | None = None
) -> None:
    """Draw the pictures that are `wanted`, by default those that apply to this run. The cause is shown where one cannot
    be drawn."""
    plots = run.folder / "plots"
    draw = {
        LEARNING_CURVE: lambda path: draw_learning_curve(run),
        VALUE_MAP: lambda path: draw_value_map(path, run, agent, data),
        FLOW: lambda path: draw_flow(path, agent, probes_of_run(run, agent, data)),
    }
    with display.tolerate(f"pictures in {plots}"):
        plots.mkdir(exist_ok=True)
        for name in applicable(run, agent) if wanted is None else wanted:
            with display.tolerate(str(plots / name)):
                draw[name](plots / name)


def missing(run: Run, agent: Agent) -> list[str]:
    """Return the names of the pictures that apply to a finished run and are not there."""
    return [name for name in applicable(run, agent) if not (run.folder / "plots" / name).exists()]


def remove(run: Run) -> None:
    """Delete the pictures of an earlier end of this run."""
    for name in NAMES:
        with contextlib.suppress(OSError):
            (run.folder / "plots" / name).unlink()


def probes_of_run(run: Run, agent: Agent, data: Dataset) -> Probes:
    """Draw the transitions that the pictures of a run's critic show; they are the same at every step."""
    return probing.take_probes(agent, data, jax.random.fold_in(Keys.of(run.config.seed).pictures, 1))


def has_value_map(run: Run) -> bool:
    """Return whether the run's task is a maze with one goal."""
    name = run.config.env_name
    return bool(name) and environments.is_singletask(name) and "maze" in name


def draw_learning_curve(run: Run) -> None:
    """Draw `learning_curve.png` from eval.csv, if there is one, and, for the online phase, train.csv."""
    columns = run.evaluations()
    if not columns:
        return
    path, title = run.folder / "plots" / LEARNING_CURVE, f"{run.config.task}, seed {run.config.seed}"
    steps, boundary = columns["step"], run.config.offline_steps if run.config.online_steps else None
    if "evaluation/initial_value" in columns:
        names = ("evaluation/initial_value", "evaluation/data_return", "evaluation/td_error")
        values, data_returns, td_errors = (columns[name] for name in names)
        return held_out_curve(path, steps, values, data_returns, td_errors, title)
    has_success = np.isfinite(columns.get(SUCCESS.column, [])).any()
    metric = SUCCESS if has_success else RETURN
    values, episodes = columns[metric.column], run.config.eval_episodes
    values = np.nan_to_num(values).tolist() if has_success else values
    explored = _explored(run, metric.column.removeprefix("evaluation/"))
    learning_curve(path, metric, steps, values, episodes, title, protocol(run.config), boundary, explored)


def _explored(run: Run, metric: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a metric of exploration is known, and its values."""
    columns = run.training() if run.config.online_steps else {}
    pairs = zip(columns.get("step", []), columns.get(f"exploration/{metric}", []), strict=False)
    known = [(step, value) for step, value in pairs if not np.isnan(value)]
    return [step for step, _ in known], [value for _, value in known]


def draw_value_map(path: Path, run: Run, agent: Agent, data: Dataset) -> str:
    """Draw V(s) = Q(s, greedy action) over the maze, and the greedy policy's path. Returns a sentence on the result."""
    env = environments.make(run.config.task, run.config.success_timing)
    maze: Any = env.unwrapped
    walk_key, value_key = jax.random.split(Keys.of(run.config.seed).pictures)

    greedy = lambda obs, elapsed: _greedy(agent, obs, jax.random.fold_in(walk_key, elapsed))  # noqa: E731
    played = list(play_episode(env, (run.config.seed,), greedy, agent.static.action_chunk))
    walk = np.array([played[0][0], *(step.obs for _, _, step in played)])[:, :2]
    outcome = f"{'at the goal' if played[-1][2].info['success'] else 'not at the goal'} after {len(played)} steps"

    rows = np.linspace(0, len(data.observations) - 1, VALUE_STATES).astype(int)
    states = data.observations[rows]
    values = _state_values(agent, states, value_key)
    value_map(
        path,
        maze.maze_map,
        maze._maze_unit,
        np.array([maze._offset_x, maze._offset_y]),
        np.asarray(states[:, :2], np.float64),  # in 32 bits the outermost points could fall out of the hexagons
        np.asarray(values, np.float64),
        walk,
        np.array(maze.cur_goal_xy),
        "What the critic has learned, and where the greedy policy goes",
        f"orange: the policy's path, {outcome}\ncoloured: states that the data visits; white: floor without data",
    )
    low, high = np.quantile(values, [0.01, 0.99])
    return f"values from {low:.3g} to {high:.3g}; the greedy policy is {outcome}"


def draw_flow(path: Path, agent: Agent, probes: Probes) -> str:
    """Draw trajectories of z for state-actions of low, medium and high value. Returns a sentence on the result."""
    flow_paths = probing.flow_paths(agent, probes)
    steps, starts = flow_paths[0].paths.shape[-1] - 1, flow_paths[0].paths.shape[1]
    plot_flow_paths(
        path, flow_paths, f"From noise to value in K = {steps} steps: {starts} starts for each network of the ensemble"
    )
    landings = ", ".join(f"{flow.paths[..., -1].mean():.1f} ± {flow.paths[..., -1].std():.1f}" for flow in flow_paths)
    start = flow_paths[0].paths[..., 0]
    return f"noise {start.mean():.1f} ± {start.std():.1f} is carried to {landings}"


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
