"""`floq inspect`: pictures of what a run's critic has learned and how, and of episodes that its policy plays."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from scipy.signal import lfilter

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis import critic_outputs
from floq.analysis.figures.episodes import Played, draw_panel
from floq.analysis.pictures import LEARNING_CURVE, PICTURES, Subject, draw
from floq.analysis.video import Take, open_recorder
from floq.data.arrays import Trajectories
from floq.data.dataset import Dataset
from floq.data.replay import ReplaySnapshot
from floq.envs import environments
from floq.evaluation.rollouts import play_episode
from floq.runs import checkpoint, run_data
from floq.runs.checkpoint import Checkpoint
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import device
from floq.utils.obs_spec import ObsSpec
from floq.utils.progress import Display

EPISODES = range(1, 13)  # a picture of more is not legible


def inspect_run(
    run_dir: str,
    step: int | None = None,
    out: str | None = None,
    episodes: int = 3,
    video: bool = False,
    data: Dataset | None = None,
    dataset: str | None = None,
    show: bool = True,
) -> dict[Path, str]:
    """Draw the pictures that apply to a run, and print what each shows.

    Args:
        run_dir: the run's folder.
        step: which checkpoint; by default the newest.
        out: folder of the pictures; by default the run's `plots`.
        episodes: number of episodes to play, the first ones of the evaluation at that step.
        video: film these episodes as well.
        data: the dataset that the run was given from Python, if any.
        dataset: where the run's data lie now, if they were moved.
        show: print progress and the table.

    Returns:
        The files, each with a sentence on what it shows.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged or diverged, the data is missing or differs, an
            option is out of range, `out` cannot be written to, or the environment cannot be rendered.
    """
    run, display, names = Run.open(run_dir), Display(show), [name for name in PICTURES if name != LEARNING_CURVE]
    if episodes not in EPISODES:
        raise UserError(f"--episodes={episodes}: must be between {EPISODES.start} and {EPISODES.stop - 1}")
    folder = run.folder / "plots" if out is None else user_path(out)
    check_writable(folder, "give another --out")
    here, saved = device(), checkpoint.load(run.folder / "checkpoints", step)
    critic_outputs.check_finite(saved.agent, run_dir, saved.step)
    if video and run.config.env_name is None:
        raise UserError("--video: this run has no environment to film; leave it out")
    run.training()  # a damaged log is refused before anything is drawn
    display.note(f"device  {here}")
    with contextlib.ExitStack() as stack:
        recorder = None
        if video:  # first, since it often fails
            first = run.config.seed, saved.step, 0
            recorder = stack.enter_context(open_recorder(run.config.make_env, first, "--video"))
        transitions = _experience(run, saved, data, dataset, display)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): give another --out") from error
        played = []
        if run.config.env_name is not None:
            with display.tolerate("episodes"), display.bar("episodes", episodes) as update:
                played = play(run, saved.agent, saved.step, episodes, update)
        found = draw(names, Subject(run, saved.agent, saved.step, transitions, played), folder, display)
        if recorder is not None and played:
            path = folder / "film.mp4"
            with display.tolerate(str(path)):
                display.note("filming")
                takes = [Take(one.seed, one.actions, draw_panel(one, f"{one.number}: {one.outcome}")) for one in played]
                recorder.call_one(0, "film", (path, run.config.task, takes, run.config.video_frame_skip))
                outcomes = "; ".join(f"episode {episode.number}: {episode.outcome}" for episode in played)
                found[path.name] = f"the policy beside its value: {outcomes}"
    display.table(f"{run.config.task}, checkpoint of step {saved.step}", found)
    if others := [name for name in names if name not in found]:
        display.note(f"  not for this run: {', '.join(others)}")
    display.note(f"  pictures    {folder}")
    return {folder / name: finding for name, finding in found.items()}


def _experience(run: Run, saved: Checkpoint, given: Dataset | None, dataset: str | None, display: Display) -> Dataset:
    """Return the transitions to draw: of a run from scratch the replay in its checkpoint, if there is one; otherwise
    its training data."""
    replay = checkpoint.load_replay(run.folder / "checkpoints", saved.step) if run.config.from_scratch else None
    if given is None and replay is not None and (~replay.ends).any():
        display.note(f"data    what the run has seen itself, {int((~replay.ends).sum()):,} transitions")
        spec = saved.agent.obs_spec
        return _dataset(replay, spec).for_chunks(run.config.agent.action_chunk).seen_as(spec.frames, 0.0)
    return run_data.load_own_data([run], display, given, dataset)[run_data.data_key(run.config)].train


def _dataset(replay: ReplaySnapshot, obs_spec: ObsSpec) -> Dataset:
    """Concatenate the transitions of all environments, one environment after another."""
    rows = Trajectories(*(array.swapaxes(0, 1).reshape(-1, *array.shape[2:]) for array in replay))
    rows.ends[len(replay.ends) - 1 :: len(replay.ends)] = True
    return Dataset.from_rows(*rows._replace(observations=obs_spec.to_records(rows.observations)))


# --- Episodes ---


def play(
    run: Run, agent: Agent, step: int, count: int, on_progress: Callable[[int], None] = lambda done: None
) -> list[Played]:
    """Play the first `count` episodes of the evaluation with the run's seed at `step`; `on_progress` gets their number
    so far."""
    env, seed = run.config.make_env(), run.config.seed
    key = jax.random.fold_in(Keys.of(seed).evaluation, step)
    played = []
    for number in range(count):
        played.append(_play(run, agent, env, (seed, step, number), jax.random.fold_in(key, number)))
        on_progress(number + 1)
    env.close()
    return played


def _play(run: Run, agent: Agent, env: environments.SeededEnv, seed: environments.Seed, key) -> Played:
    policy, value_key = agent.policy, jax.random.fold_in(Keys.of(run.config.seed).pictures, 3)
    decided, values = [], []

    def decide(obs: np.ndarray, elapsed: int):
        action, value = _decide(agent, policy, obs, key, value_key, elapsed)
        decided.append(elapsed)
        values.append(float(value))
        return action

    _, actions, steps = zip(*play_episode(env, seed, decide, agent.static.action_chunk), strict=True)
    last, rewards = steps[-1], np.array([step.reward for step in steps])
    flags = [step.info.get("success", step.info.get("is_success")) for step in steps]
    tail = 0.0
    if not last.terminated:
        tail = float(_decide(agent, policy, last.obs, key, value_key, len(steps))[1])
    discount, scale = float(agent.hypers.discount), float(agent.hypers.reward_scale)
    rewards_to_go = discounted_rewards_to_go(rewards * scale, discount, tail)
    succeeded = next((at + 1 for at, flag in enumerate(flags) if flag), None)
    numbers = np.array(decided), np.array(actions), np.array(values), rewards, rewards_to_go
    return Played(seed, *numbers, succeeded, any(flag is not None for flag in flags), not last.terminated)


def discounted_rewards_to_go(rewards: np.ndarray, discount: float, tail: float) -> np.ndarray:
    """Compute the discounted return from each step on; `tail` is the return after the last reward."""
    return np.asarray(lfilter([1.0], [1.0, -discount], [tail, *rewards[::-1]]))[:0:-1]


@jax.jit
def _decide(agent: Agent, policy, obs, key, value_key, elapsed):
    """Return the policy's action at a step of an episode, with the key of its evaluation, and the action's Q."""
    action = policy.act(obs, jax.random.fold_in(key, elapsed))
    return action, agent.value(obs, action, jax.random.fold_in(value_key, elapsed))
