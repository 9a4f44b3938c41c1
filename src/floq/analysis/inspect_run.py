"""`floq inspect`: pictures of what a run's critic has learned and how, and of episodes that its policy plays."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.analysis import pictures, probing
from floq.analysis.figures import diagnosis, film, integration, value_distributions
from floq.analysis.figures.episodes import Played, value_along
from floq.analysis.video import film_episodes, video_recorder
from floq.data.arrays import Trajectories
from floq.data.dataset import Dataset
from floq.data.replay import ReplaySnapshot
from floq.envs import environments
from floq.envs.workers import Workers
from floq.evaluation.rollouts import play_episode
from floq.runs import checkpoint, run_data
from floq.runs.checkpoint import Checkpoint
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import device
from floq.utils.progress import Display

# --- Episodes ---

NO_CALLBACK: Callable[[int], None] = lambda done: None  # noqa: E731


def play(
    run: Run, agent: Agent, step: int, count: int, on_progress: Callable[[int], None] = NO_CALLBACK
) -> list[Played]:
    """Play the first `count` episodes of the evaluation with the run's seed at `step`. `on_progress` is called with the
    number of finished episodes."""
    env = environments.make(run.config.env_name or "", run.config.success_timing)
    key = jax.random.fold_in(Keys.of(run.config.seed).evaluation, step)
    played = []
    for number in range(count):
        played.append(_play(run, agent, env, seed_of(run, step, number), jax.random.fold_in(key, number)))
        on_progress(number + 1)
    env.close()
    return played


def seed_of(run: Run, step: int, number: int) -> environments.Seed:
    """Return the seed of episode `number` of the evaluation at `step`."""
    return run.config.seed, step, number


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
    return Played(
        seed[-1],
        np.array(decided),
        np.array(actions),
        np.array(values),
        rewards,
        discounted_rewards_to_go(rewards * scale, discount, tail),
        next((at + 1 for at, flag in enumerate(flags) if flag), None),
        any(flag is not None for flag in flags),
        not last.terminated,
    )


def discounted_rewards_to_go(rewards: np.ndarray, discount: float, tail: float) -> np.ndarray:
    """Compute the discounted return from each step on; `tail` is the return after the last reward."""
    sums, after = np.empty(len(rewards)), tail
    for at in reversed(range(len(rewards))):
        sums[at] = after = rewards[at] + discount * after
    return sums


@jax.jit
def _decide(agent: Agent, policy, obs, key, value_key, elapsed):
    """Return the policy's action at a step of an episode, with the key of its evaluation, and the action's Q."""
    action = policy.act(obs, jax.random.fold_in(key, elapsed))
    return action, agent.value(obs, action, jax.random.fold_in(value_key, elapsed))


# --- Pictures ---

EPISODES = range(1, 13)  # a picture of more is not legible
MAX_CHECKPOINTS = 5  # in a picture

CAPTIONS = {
    "flow.png": "how noise becomes a value",
    "steps.png": "how Q settles with K",
    "noise.png": "what is left of the noise",
    "members.png": "where the networks disagree",
    "histogram.png": "the histogram over returns",
    "quantiles.png": "the quantiles of the return",
    "diagnosis.png": "the critic over its training",
    "value_map.png": "the value over the maze",
    "episodes.png": "value along episodes",
    "film.mp4": "the policy beside its value",
}
"""Subject of each file."""


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
    run, display = Run.open(run_dir), Display(show)
    if episodes not in EPISODES:
        raise UserError(f"--episodes={episodes}: must be between {EPISODES.start} and {EPISODES.stop - 1}")
    folder = run.folder / "plots" if out is None else user_path(out)
    check_writable(folder, "give another --out")
    here, saved = device(), checkpoint.load(run.folder / "checkpoints", step)
    probing.check_finite(saved.agent, run_dir, saved.step)
    display.note(f"device  {here}")
    with _camera(run, saved, video) as camera:
        transitions = _experience(run, saved, data, dataset, display)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): give another --out") from error
        inspection = RunInspection(run, saved, transitions, folder, display)
        inspection.critic()
        inspection.training()
        if run.config.env_name is not None:
            inspection.environment(episodes, camera)
        else:
            display.note("no environment: no episodes, and no film")
    display.table(
        f"{run.config.task}, checkpoint of step {saved.step}", {p.name: x for p, x in inspection.made.items()}
    )
    display.note(f"  pictures    {folder}")
    return inspection.made


class RunInspection:
    """Pictures of one checkpoint, drawn one after another; `made` maps each file to what it shows."""

    def __init__(self, run: Run, saved: Checkpoint, data: Dataset, folder: Path, display: Display):
        self._run, self._saved, self._data = run, saved, data
        self._folder, self._display = folder, display
        self._probes = pictures.probes_of_run(run, saved.agent, data)
        self.made: dict[Path, str] = {}

    def critic(self) -> None:
        """Draw the critic's values of some transitions of the data."""
        agent, probes = self._saved.agent, self._probes
        trained = agent.params.critic.flow_steps
        if trained is not None:
            self._add("flow.png", lambda path: pictures.draw_flow(path, agent, probes))
            self._add("steps.png", lambda path: self._settling(path, trained))
            if probing.noise_width(agent):
                self._add("noise.png", self._noise)
            else:
                self._display.note("the noise interval has no width (--agent.noise_coverage=0): no noise to draw")
        else:
            self._display.note(f"a {agent.static.critic_name} critic has no flow: no K, no source noise to draw")
            self._add("members.png", self._members)
        if found := probing.histograms(agent, probes):
            self._add("histogram.png", lambda path: value_distributions.histograms(path, found))
        if found := probing.quantiles(agent, probes):
            self._add("quantiles.png", lambda path: value_distributions.quantile_functions(path, found))

    def _settling(self, path: Path, trained: int) -> str:
        counts = probing.step_counts(trained)
        values = probing.values_by_steps(self._saved.agent, self._probes, counts)
        return integration.settling(path, counts, values, trained)

    def _members(self, path: Path) -> str:
        agent, values = self._saved.agent, probing.members(self._saved.agent, self._probes)
        title = f"The networks of the {agent.static.critic_name} critic at {len(values)} state-actions"
        return value_distributions.member_values(path, values, self._probes.targets, title)

    def _noise(self, path: Path) -> str:
        probes = self._probes
        landed = {at: probing.landings(agent, probes) for at, agent in self._over_training()}
        z_0 = next(iter(landed.values()))[0]
        ends = {at: landing for at, (_, landing) in landed.items()}
        return integration.noise_left(path, z_0, ends, probes.examples)

    def _over_training(self) -> Iterator[tuple[int, Agent]]:
        """Yield at most `MAX_CHECKPOINTS` checkpoints of the run, evenly spread, the last of them this one."""
        folder, last = self._run.folder / "checkpoints", self._saved.step
        before = [at for at in checkpoint.steps(folder) if at < last]
        for at in probing.evenly_spaced(before, MAX_CHECKPOINTS - 1):
            yield at, checkpoint.load(folder, at).agent
        yield last, self._saved.agent

    def training(self) -> None:
        """Draw the logged metrics of the critic."""
        self._add("diagnosis.png", self._diagnosis)

    def _diagnosis(self, path: Path) -> str | None:
        config = self._run.config
        title = f"How the {config.agent.critic_name} critic developed, on held-out transitions"
        boundary = config.offline_steps if config.online_steps else None
        found = diagnosis.diagnosis(path, self._run.training(), boundary, title)
        if found is None:
            self._display.note("train.csv has no metrics of the critic yet: no picture of its training")
        return found

    def environment(self, episodes: int, camera: Workers | None) -> None:
        """Draw the critic's values in the states that the policy visits."""
        run, saved, display = self._run, self._saved, self._display
        if pictures.has_value_map(run):
            self._add("value_map.png", lambda path: pictures.draw_value_map(path, run, saved.agent, self._data))
        played: list[Played] = []
        with display.tolerate("episodes"), display.bar("episodes", episodes) as update:
            played = play(run, saved.agent, saved.step, episodes, update)
        if not played:
            return
        title = f"What the critic expects along the way\n{run.config.task}, step {saved.step:,}"
        self._add("episodes.png", lambda path: value_along(path, played, title))
        if camera is not None:
            self._add("film.mp4", lambda path: self._film(path, played, camera))

    def _film(self, path: Path, played: Sequence[Played], camera: Workers) -> str:
        run, step = self._run, self._saved.step
        seeded = [(episode, seed_of(run, step, episode.number)) for episode in played]
        with self._display.bar("film", sum(len(episode.actions) for episode in played)) as update:
            return film_episodes(path, camera, seeded, run.config.task, run.config.video_frame_skip, update)

    def _add(self, name: str, draw: Callable[[Path], str | None]) -> None:
        """Draw a picture, or show why it cannot be drawn."""
        path = self._folder / name
        with self._display.tolerate(str(path)):
            if (finding := draw(path)) is not None:
                self.made[path] = f"{CAPTIONS[name]}: {finding}"


@contextlib.contextmanager
def _camera(run: Run, saved: Checkpoint, video: bool) -> Iterator[Workers | None]:
    """Open the worker process that records videos if `video`, else yield None. It comes first since it often fails."""
    if not video:
        yield None
        return
    if run.config.env_name is None:
        raise UserError("--video: this run has no environment to film; leave it out")
    film.check_writer()
    with video_recorder(run.config.env_name, run.config.success_timing, seed_of(run, saved.step, 0)) as workers:
        yield workers


def _experience(run: Run, saved: Checkpoint, given: Dataset | None, dataset: str | None, display: Display) -> Dataset:
    """Return the transitions to draw: of a run from scratch the replay in its checkpoint, if there is one; otherwise
    its training data."""
    replay = checkpoint.load_replay(run.folder / "checkpoints", saved.step) if run.config.from_scratch else None
    if given is None and replay is not None and (~replay.ends).any():
        display.note(f"data    what the run has seen itself, {int((~replay.ends).sum()):,} transitions")
        return _dataset(replay).for_chunks(run.config.agent.action_chunk)
    return run_data.load_own_data([run], display, given, dataset)[run_data.data_key(run.config)].train


def _dataset(replay: ReplaySnapshot) -> Dataset:
    """Concatenate the transitions of all environments, one environment after another."""
    rows = Trajectories(*(array.swapaxes(0, 1).reshape(-1, *array.shape[2:]) for array in replay))
    rows.ends[len(replay.ends) - 1 :: len(replay.ends)] = True
    return Dataset.from_rows(*rows)
