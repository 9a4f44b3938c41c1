"""The training loop: many gradient steps per device call, between them logs, evaluations and checkpoints."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jax

from floq import checkpoint, pictures
from floq.agent import Agent, Info, ObsStats, zeros_like_info
from floq.analysis.statistics import wilson_interval
from floq.config import Config
from floq.data import ogbench as ogbench_data
from floq.data.collect import collect
from floq.data.transitions import Batch, Dataset
from floq.errors import Interrupted
from floq.evaluate import Evaluation, Evaluator
from floq.keys import Keys
from floq.loggers import CsvLogger
from floq.progress import Display
from floq.run import Run, protocol

DEMO_DATASET, DEMO_EPISODES = "pointmaze-medium-navigate-v0", 200  # collected on first use: seconds, not an hour
CHUNK_SECONDS = 0.5  # a device call takes about this long, so that a signal is answered soon


@partial(jax.jit, donate_argnums=0)
def train_steps(agent: Agent, dataset: Dataset, batch_key: jax.Array, num_steps: jax.Array) -> tuple[Agent, Info]:
    """`num_steps` updates on batches of the dataset, in one device call. Returns the agent and the last step's info.

    The batch of update number i is drawn with fold_in(batch_key, i), so the result does not depend on how the steps
    are divided into calls. `agent` is donated. The number of steps is traced: one program serves every length.
    """

    def step(_, carry):
        agent, _ = carry
        return agent.update(sample_batch(agent, dataset, batch_key))

    info = zeros_like_info(agent, jax.eval_shape(lambda: sample_batch(agent, dataset, batch_key)))
    return jax.lax.fori_loop(0, num_steps, step, (agent, info))


def sample_batch(agent: Agent, dataset: Dataset, key: jax.Array) -> Batch:
    """The batch of the agent's next update: it depends on the agent's step and settings, and on the stream `key`."""
    static = agent.static
    step_key = jax.random.fold_in(key, agent.step)
    return dataset.sample(step_key, static.batch_size, static.n_step, agent.hypers.discount)


@jax.jit
def validate(agent: Agent, dataset: Dataset, key: jax.Array) -> Info:
    """What `update` would log on one batch of held-out data."""
    batch_key, loss_key = jax.random.split(jax.random.fold_in(key, agent.step))
    return agent.evaluate_loss(sample_batch(agent, dataset, batch_key), loss_key)


def make_agent(config: Config, train_data: Dataset) -> Agent:
    """The agent that a run with this configuration and this data starts from."""
    stats = ObsStats(*train_data.obs_stats()) if config.normalize_observations else None
    sizes = train_data.observations.shape[1], train_data.actions.shape[1]
    reward_range = train_data.reward_range()
    init = jax.jit(lambda key: Agent.init(key, *sizes, config.agent, reward_range=reward_range, obs_stats=stats))
    return init(Keys.of(config.seed).agent)


def train(config: Config, *, show: bool = True) -> Run:
    """Train an agent as `config` says and leave a run folder behind.

    Collects the demonstration dataset on its first use. SIGINT and SIGTERM write a checkpoint before the run ends.

    Args:
        config: from `floq.configure`.
        show: print progress.

    Returns:
        The finished run; `run.summary` holds the result, `run.load_agent()` the agent.

    Raises:
        UserError: the environment or its data is missing, or a folder cannot be written.
        Interrupted: a signal ended the run.
    """
    started = time.monotonic()
    display = Display(show)
    with (
        Evaluator(config.env_name, config.success_timing, config.eval_episodes) as evaluator,
        contextlib.ExitStack() as stack,
    ):
        data = load_data(config, display)
        display.note(f"data    {data.provenance} ({len(data.train):,} transitions)")
        agent = make_agent(config, data.train)
        run = Run.create(config)
        display.note(f"run     {run.folder}")
        received = stack.enter_context(_catch_signals())
        loop = _Loop(run, agent, data, evaluator, display, received, started)
        loop.go()
    loop.summarise()
    display.note("drawing the pictures")
    pictures.draw(run, loop.agent, data.train)
    loop.show_result()
    return run


def load_data(config: Config, display: Display) -> ogbench_data.Splits:
    """The data of the configured task; a missing one is downloaded, except the demonstration's, which is collected."""

    def fetch(name: str, directory: Path) -> None:
        if name != DEMO_DATASET:
            display.note(f"downloading {name}")
            return ogbench_data.download(name, directory)
        display.note(f"collecting {DEMO_EPISODES} episodes of {name} with OGBench's scripted expert, once")
        with display.bar("collect", DEMO_EPISODES + DEMO_EPISODES // 10) as update:
            collect(name, directory, episodes=DEMO_EPISODES, on_progress=lambda done, _: update(done))

    directory = Path(config.dataset_dir).expanduser()
    return ogbench_data.load(config.env_name, directory, config.label_timing, fetch)


class _Loop:
    """One run from its first step to its last."""

    def __init__(
        self,
        run: Run,
        agent: Agent,
        data: ogbench_data.Splits,
        evaluator: Evaluator,
        display: Display,
        received: list[int],
        started: float,
    ):
        self.run, self.agent, self.data = run, agent, data
        self._config = run.config
        self._keys = Keys.of(run.config.seed)
        self._evaluator, self._display, self._received, self._started = evaluator, display, received, started
        self._train_log, self._eval_log = CsvLogger(run.folder / "train.csv"), CsvLogger(run.folder / "eval.csv")
        self._last_evaluation: Evaluation | None = None
        self._update_seconds, self._timed_steps = 0.0, 0
        self._first_update_at = math.nan
        self._steps_per_call = 1

    def go(self) -> None:
        """Train to the end, unless a signal comes."""
        c, step = self._config, 0
        logged_at, logged_step = time.monotonic(), 0
        with self._display.bar("train", c.offline_steps) as update_bar:
            while step < c.offline_steps:
                info = self._advance(self._next_stop(step) - step)
                step = int(self.agent.step)
                if self._due(step, c.log_interval):
                    now = time.monotonic()
                    times = {
                        "time/epoch_time": (now - logged_at) / (step - logged_step),
                        "time/total_time": now - self._started,
                    }
                    logged_at, logged_step = now, step
                    held_out = validate(self.agent, self.data.validation, self._keys.validation)
                    self._train_log.log(step, _floats("training", info) | _floats("validation", held_out) | times)
                if step == 1 or self._due(step, c.eval_interval):
                    self._evaluate(step)
                stop = self._received[0] if self._received else None
                if self._due(step, c.save_interval) or stop is not None:
                    self._save()
                update_bar(step, line=self._due(step, c.eval_interval), **self._state(info))
                if stop is not None:
                    where = self.run.folder / "checkpoints"
                    raise Interrupted(f"stopped by {signal.Signals(stop).name}; the checkpoint is in {where}", stop)

    def summarise(self) -> None:
        """Write `summary.json`."""
        assert self._last_evaluation is not None
        seconds = time.monotonic() - self._started
        scores = self._last_evaluation.summary()
        summary = {
            "success": scores["evaluation/success"],
            "eval_episodes": self._config.eval_episodes,
            "success_timing": self._config.success_timing,
            "updates_per_second": self._updates_per_second,
            "seconds": seconds,
            "seconds_to_first_update": self._first_update_at - self._started,
            "steps": int(self.agent.step),
            "episode.return": scores["evaluation/episode.return"],
            "episode.length": scores["evaluation/episode.length"],
        }
        self.run.write_json("summary.json", summary)

    def show_result(self) -> None:
        """Print a short table of how it went."""
        summary = self.run.summary
        count = self._config.eval_episodes
        low, high = wilson_interval(round(summary["success"] * count), count)
        self._display.table(
            self._config.env_name,
            {
                "success": f"{summary['success']:.2f}   95% interval [{low:.2f}, {high:.2f}]",
                "protocol": protocol(self._config),
                "episode": f"mean length {summary['episode.length']:.0f}, mean return {summary['episode.return']:.0f}",
                "speed": f"{summary['updates_per_second']:.0f} updates/s, {summary['seconds']:.0f} s in all",
            },
        )
        self._display.note(f"  pictures    {self.run.folder / 'plots'}")
        self._display.note(f"  run         {self.run.folder}")

    def _next_stop(self, step: int) -> int:
        """The next step at which something is due, or as far as one device call should go."""
        c = self._config
        if step == 0:
            return 1  # the first evaluation comes after the first step
        due = [interval * (step // interval + 1) for interval in (c.log_interval, c.eval_interval, c.save_interval)]
        return min(*due, c.offline_steps, step + self._steps_per_call)

    def _due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._config.offline_steps

    def _advance(self, num_steps: int) -> Info:
        before = time.monotonic()
        self.agent, info = train_steps(self.agent, self.data.train, self._keys.batches, num_steps)
        jax.block_until_ready(info)
        seconds = time.monotonic() - before
        if math.isnan(self._first_update_at):
            self._first_update_at = time.monotonic()  # this call compiled: its time says nothing about speed
        else:
            self._update_seconds += seconds
            self._timed_steps += num_steps
            self._steps_per_call = max(1, round(CHUNK_SECONDS * self._updates_per_second))
        return info

    @property
    def _updates_per_second(self) -> float:
        return self._timed_steps / self._update_seconds if self._timed_steps else math.nan

    def _evaluate(self, step: int) -> None:
        with self._display.bar("evaluate", self._config.eval_episodes) as update:
            evaluation = self._evaluator(
                self.agent,
                self._config.seed,
                step,
                on_progress=lambda done, _: update(done),
                should_stop=lambda: bool(self._received),
            )
        if evaluation is not None:
            self._last_evaluation = evaluation
            self._eval_log.log(step, evaluation.summary() | {"time/total_time": time.monotonic() - self._started})

    def _save(self) -> None:
        sizes = self.data.train.observations.shape[1], self.data.train.actions.shape[1]
        checkpoint.save(self.run.folder / "checkpoints", self.agent, sizes, self._config)

    def _state(self, info: Info) -> dict[str, str]:
        """What the progress line shows."""
        state = {}
        if self._last_evaluation is not None:
            state["success"] = f"{self._last_evaluation.summary()['evaluation/success']:.2f}"
        if not math.isnan(self._updates_per_second):
            state["updates/s"] = f"{self._updates_per_second:.0f}"
        losses = {"Q": "critic/q", "critic": "critic/critic_loss", "actor": "actor/actor_loss"}
        return state | {name: f"{float(info[metric]):.3g}" for name, metric in losses.items()}


def _floats(prefix: str, info: Info) -> dict[str, float]:
    return {f"{prefix}/{name}": float(value) for name, value in info.items()}


@contextlib.contextmanager
def _catch_signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM are appended when they come, instead of ending the process at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received  # only the main thread may handle signals
        return
    before = {s: signal.signal(s, lambda signum, _: received.append(signum)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
