"""Set a run up, fresh or from where it stopped, and bring it to its end."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from floq import checkpoint, pictures, run_data
from floq.agent import Agent, ObsStats, ValueRange
from floq.checkpoint import Checkpoint
from floq.config import Config
from floq.data.transitions import Dataset, Splits
from floq.errors import UserError
from floq.evaluate import Evaluator
from floq.folders import check_writable
from floq.held_out import HeldOutEvaluator
from floq.keys import Keys
from floq.loggers import cut_csv
from floq.loop import Loop, catch_signals
from floq.progress import Display
from floq.results import show_result
from floq.run import Run, installed_versions

STEP_COUNTS = ("offline_steps", "online_steps")  # what may change when a run is continued


def train(config: Config, data: Dataset | None = None, *, show: bool = True, notes: Sequence[str] = ()) -> Run:
    """Train an agent as `config` says and leave a run folder behind.

    Collects the demonstration dataset on its first use. SIGINT and SIGTERM write a checkpoint before the run ends.

    Args:
        config: from `floq.configure`.
        data: train on this instead of reading a dataset; every twentieth episode is held out for validation.
        show: print progress.
        notes: lines to print once everything is found to be in order.

    Returns:
        The finished run; `run.summary` holds the result, `run.load_agent()` the agent.

    Raises:
        UserError: the environment or its data is missing, or a folder cannot be written.
        Interrupted: a signal ended the run.
    """
    started = time.monotonic()
    check_built(config)
    config = run_data.settled(config)
    check_writable(Run.parent(config), "choose another --save_dir")
    display = Display(show)
    source = _source_of_weights(config)
    if source is not None:  # as it is now, so that it is the same when the run is resumed
        path = str(Run.open(config.restore_path or "").folder.resolve())
        config = dataclasses.replace(config, restore_path=path, restore_epoch=int(source.agent.step))
    with _episodes(config) as episodes:
        splits = run_data.load_data(config, display, data)
        agent = make_agent(config, splits.train)
        if source is not None:
            agent = restore(agent, config, source)
        run_data.note_values(agent, splits, display)
        for note in notes:
            display.note(f"note    {note}")
        run = Run.create(config, _records(splits))
        with run.lock():
            return _carry_through(run, agent, splits, episodes, display, {}, started)


def resume(
    run_dir: Path | str,
    data: Dataset | None = None,
    *,
    offline_steps: int | None = None,
    online_steps: int | None = None,
    show: bool = True,
) -> Run:
    """Continue a run from its newest checkpoint as if it had not been stopped: on the same machine the parameters at
    the end are those of an uninterrupted run, bit by bit. Log rows after the checkpoint are cut and written again.

    Args:
        run_dir: the run's folder.
        data: what the run was given from Python, if it was.
        offline_steps, online_steps: new totals; by default the run's own.
        show: print progress.

    Raises:
        UserError: there is no such run, its checkpoint or its data does not belong to it, or it is past these steps.
        Interrupted: a signal ended the run.
    """
    started = time.monotonic()
    display = Display(show)
    config = continued(run_dir, offline_steps, online_steps)
    check_built(config)
    old = Run.open(run_dir)
    run = Run(old.folder, config)
    saved = _last_checkpoint(old)
    step = int(saved.agent.step) if saved else 0
    if config.offline_steps < step or (config.offline_steps == step and old.config.offline_steps != step):
        raise UserError(f"--offline_steps={config.offline_steps}: the run is at step {step} already, give more")
    if run.is_finished and step == config.offline_steps:
        display.note(f"finished already, at step {step}; give more --offline_steps to train on")
        show_result(run, display)
        return run

    run_data.check_given(old, data)
    with run.lock(), _episodes(config) as episodes:
        splits = run_data.load_data(config, display, data)
        run_data.check_same(old, splits)
        for package, version in installed_versions().items():
            if (before := old.records["versions"].get(package)) != version:
                display.note(f"note    {package} was {before}, now {version}: results may differ in the last bits")
        agent = saved.agent if saved else make_agent(config, splits.train)
        if saved is None and (source := _source_of_weights(config)) is not None:
            agent = restore(agent, config, source)
        run_data.note_values(agent, splits, display)
        run.write_config(_records(splits))
        (run.folder / "summary.json").unlink(missing_ok=True)
        for name in ("train.csv", "eval.csv"):
            cut_csv(run.folder / name, step)
        display.note(f"resume  from step {step}")
        clocks = saved.clocks if saved else {}
        return _carry_through(run, agent, splits, episodes, display, clocks, started)


def continued(run_dir: Path | str, offline_steps: int | None, online_steps: int | None) -> Config:
    """The configuration with which `resume` goes on."""
    given = {"offline_steps": offline_steps, "online_steps": online_steps}
    changes: dict[str, Any] = {name: steps for name, steps in given.items() if steps is not None}
    return dataclasses.replace(Run.open(run_dir).config, **changes)


def make_agent(config: Config, train_data: Dataset) -> Agent:
    """The agent that a run with this configuration and this data starts from."""
    stats = ObsStats(*train_data.obs_stats()) if config.normalize_observations else None
    sizes = train_data.observations.shape[1], train_data.actions.shape[1]
    reward_range = train_data.reward_range()
    init = jax.jit(lambda key: Agent.init(key, *sizes, config.agent, reward_range=reward_range, obs_stats=stats))
    return init(Keys.of(config.seed).agent)


def restore(agent: Agent, config: Config, source: Checkpoint) -> Agent:
    """`agent` with the networks, target networks and optimiser state of another run's checkpoint; its step, random
    streams and hyperparameters stay its own. The reward range covers both runs, and observations are normalised as
    the networks are used to.

    Raises:
        UserError: the networks have other shapes, or observations are normalised in one of the two runs only.
    """
    old = source.agent
    own, theirs = ([leaf.shape for leaf in jax.tree.leaves(a.params)] for a in (agent, old))
    if own != theirs:
        sizes = agent.obs_stats.mean.shape[0], old.obs_stats.mean.shape[0]
        if sizes[0] != sizes[1]:
            what = f"observations have {sizes[0]} numbers here and {sizes[1]} there"
        else:
            differ = differences(config.agent.networks(), source.config.agent.networks())
            what = "; ".join(differ) or "actions have another size"
        raise UserError(f"--restore_path={config.restore_path}: its networks do not fit ({what})")
    if config.normalize_observations != source.config.normalize_observations:
        there = source.config.normalize_observations
        raise UserError(f"--restore_path={config.restore_path}: it needs --normalize_observations={there}")
    take = lambda new, of: jax.tree.unflatten(jax.tree.structure(new), jax.tree.leaves(of))  # noqa: E731
    here, there = agent.value_range, old.value_range
    return dataclasses.replace(
        agent,
        params=take(agent.params, old.params),
        target=take(agent.target, old.target),
        opt_state=take(agent.opt_state, old.opt_state),
        value_range=ValueRange(jnp.minimum(here.r_min, there.r_min), jnp.maximum(here.r_max, there.r_max)),
        obs_stats=old.obs_stats,
    )


def differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Where two sets of settings differ, in words."""
    names = dict.fromkeys((*here, *there))
    return [f"{n} is {here.get(n)} here and {there.get(n)} there" for n in names if here.get(n) != there.get(n)]


def check_built(config: Config) -> None:
    """Raises UserError for settings that parse, as the published commands have them, but are not built yet."""
    pixels = {"p_aug": config.p_aug, "frame_stack": config.frame_stack, "agent.encoder": config.agent.encoder}
    for name, value in pixels.items():
        if value is not None:
            raise UserError(f"--{name}={value}: pixel tasks are not built yet; leave it out")
    online = {"online_steps": config.online_steps, "balanced_sampling": config.balanced_sampling}
    for name, value in online.items():
        if value:
            raise UserError(f"--{name}={value}: online fine-tuning is not built yet; --{name}=0 trains offline")
    if config.video_episodes:
        raise UserError(f"--video_episodes={config.video_episodes}: films are not built yet; leave it out")


def _records(data: Splits) -> dict[str, dict[str, str]]:
    """What `config.json` keeps about where a run came from."""
    return {"versions": installed_versions(), "data": run_data.records(data)}


def _source_of_weights(config: Config) -> Checkpoint | None:
    if config.restore_path is None:
        if config.restore_epoch is not None:
            raise UserError("--restore_epoch chooses a checkpoint of --restore_path: give that too")
        return None
    return checkpoint.load(Run.open(config.restore_path).folder / "checkpoints", config.restore_epoch)


def _last_checkpoint(run: Run) -> Checkpoint | None:
    """The newest checkpoint, or None if the run was ended before its first."""
    folder = run.folder / "checkpoints"
    if not checkpoint.steps(folder):
        return None
    saved = checkpoint.load(folder)
    here, there = (config.to_json() for config in (run.config, saved.config))
    same = dict.fromkeys(STEP_COUNTS)
    if differ := differences(here | here.pop("agent") | same, there | there.pop("agent") | same):
        raise UserError(f"the checkpoint in {folder} belongs to another configuration: {'; '.join(differ)}")
    return saved


@contextlib.contextmanager
def _episodes(config: Config) -> Iterator[Evaluator | None]:
    """What plays the run's evaluation episodes: its environments start up while the data is read. None without one."""
    if config.env_name is None:
        yield None
        return
    with Evaluator(config.env_name, config.success_timing, config.eval_episodes) as evaluator:
        yield evaluator


def _carry_through(
    run: Run,
    agent: Agent,
    data: Splits,
    episodes: Evaluator | None,
    display: Display,
    clocks: dict[str, float],
    started: float,
) -> Run:
    """Train to the end, draw, and only then write the summary that marks the run as finished."""
    loop = Loop(run, agent, data, episodes or HeldOutEvaluator(data.validation), display, clocks, started)
    display.note(f"run     {run.folder}")
    with catch_signals() as received:
        loop.go(received)
    summary = loop.summary()
    display.note("drawing the pictures")
    pictures.draw(run, loop.agent, data.train)
    run.write_json("summary.json", summary)
    show_result(run, display)
    return run
