"""Train fresh runs, one or a fleet; `resume.py` continues stopped ones."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

from floq.agent.agent import Agent
from floq.analysis.results import show_result
from floq.analysis.video import Films, open_recorder
from floq.data.dataset import Dataset, Splits
from floq.envs.ogbench import dataset_name
from floq.evaluation.held_out import HeldOut, HeldOutEvaluator
from floq.evaluation.rollouts import BackgroundEvaluator, Evaluator
from floq.networks import kernels
from floq.runs import run_data
from floq.runs.config import Config
from floq.runs.loggers import check_loggers
from floq.runs.run import Run, installed_versions, make_agent, restore, restored_checkpoint, to_error
from floq.training.fleet import Fleet, FleetData, Layout
from floq.training.loop import Found, Loop, RunLogger
from floq.utils.errors import Failed, Interrupted, UserError
from floq.utils.files import check_writable
from floq.utils.machine import be_deterministic, clear_jit_cache, device, use_all_cores
from floq.utils.progress import Display
from floq.utils.signals import Stopped, catch_signals, signal_of


def train(config: Config, data: Dataset | None = None, *, show: bool = True, notes: Sequence[str] = ()) -> Run:
    """Train an agent as `config` says and leave a run folder behind.

    Collects the demonstration dataset on its first use. SIGINT, SIGTERM and SIGHUP write a checkpoint before the run
    ends.

    Args:
        config: from `floq.configure`.
        data: train on this instead of reading a dataset; a part of it is held out for validation. With it there is no
            warm-up if `offline_steps` is 0 and no weights are restored.
        show: print progress.
        notes: lines to print once everything is found to be in order.

    Returns:
        The finished run; `run.summary` holds the result, `run.load_agent()` the agent.

    Raises:
        UserError: the environment or its data is missing, or a folder cannot be written.
        Failed: an environment failed, or the run diverged; what was learned is in a checkpoint.
        Interrupted: a signal ended the run.
    """
    return train_fleet([config], data, show=show, notes=notes)[0]


def train_fleet(
    configs: Sequence[Config],
    data: Dataset | None = None,
    *,
    show: bool = True,
    draw: bool = True,
    notes: Sequence[str] = (),
) -> list[Run]:
    """Train several agents, those of one program together: they may differ in seed, in the task over one dataset, and
    in traced settings (alpha, discount, lr, tau, noise_coverage, reward_scale). Others follow one another. Each leaves
    the folder that it would have left alone.

    Args, raises: see `train`. Without `draw` there are no pictures. Where one program fails, the others are trained
    before that is raised.

    Returns:
        The finished runs, in the order of `configs`.
    """
    display = Display(show)
    if len(set(configs)) < len(configs):
        raise UserError("two of these runs have the same settings and the same seed: leave one out")
    for config in configs:
        check_built(config)
        check_writable(Run.parent(config), "choose another --save_dir")
    if any(config.deterministic for config in configs):
        be_deterministic()
    configs = list(configs)
    groups = fleets(configs)
    use_all_cores(max((len(group) * configs[group[0]].batch_devices for group in groups), default=1))
    device()  # complains early; resolving paths may read a checkpoint, which starts JAX
    configs = [resolve_paths(config) for config in configs]
    if len(groups) > 1:
        display.note(f"note    {len(groups)} fleets, one after another: these settings do not fit one program")
    finished, failures, left = {}, [], len(configs)
    for group in groups:
        left -= len(group)
        try:
            runs = _train_group([configs[i] for i in group], data, display, notes, draw)
            finished |= zip(group, runs, strict=True)
        except Interrupted as stop:
            others = [f"{left} runs of other programs were not begun"] if left else []
            raise Interrupted("; ".join([str(stop), *others, *failures]), stop.signum) from stop
        except Failed as failure:
            failures.append(str(failure))
            if left:
                display.note(f"failed  {failure}; the other programs go on")
        if len(groups) > 1:
            clear_jit_cache()
    if failures:
        raise Failed("; ".join(failures))
    return [finished[i] for i in range(len(configs))]


def fleets(configs: Sequence[Config]) -> list[list[int]]:
    """Group the indices of configurations that one program can train together."""
    groups: dict[Config, list[int]] = {}
    for number, config in enumerate(configs):
        task = config.env_name and dataset_name(config.env_name)
        program = dataclasses.replace(config, seed=0, env_name=task, agent=config.agent.compiled())
        groups.setdefault(program, []).append(number)
    return list(groups.values())


def check_built(config: Config) -> None:
    """Raise UserError for settings that do not go together, or that this machine cannot run."""
    agent = config.agent
    if not agent.learns_policy:
        raise UserError("agent.actor=fixed learns no policy: floq ope evaluates one, and has a --resume of its own")
    if config.online_steps:
        if (devices := config.batch_devices) > 1:
            raise UserError(f"--batch_devices={devices} divides batches offline only: give 1 with --online_steps")
        if config.env_name is None:
            raise UserError(
                f"--online_steps={config.online_steps}: new experience needs an environment, give --env_name"
            )
    check_loggers(config)
    if (films := config.video_episodes) and not (config.env_name and config.eval_interval):
        raise UserError(f"--video_episodes={films}: this run evaluates in no episodes that can be filmed; leave it out")
    if films > config.eval_episodes:
        raise UserError(
            f"--video_episodes={films}: an evaluation has --eval_episodes={config.eval_episodes}, give at most that"
        )
    if agent.flat().get("integration") == "fused":
        if config.precision != "bf16":
            raise UserError("--agent.integration=fused computes in bfloat16: give --precision=bf16, or use plain")
        kernels.check_machine()


def _train_group(
    configs: Sequence[Config], data: Dataset | None, display: Display, notes: Sequence[str], draw: bool
) -> list[Run]:
    started = time.monotonic()
    Layout.for_runs(len(configs), configs[0].batch_devices)  # complains early if there are too few devices
    with films_of(configs, display) as films, episodes_of(configs) as episodes:
        tasks = run_data.load_fleet_data(configs, display, data)
        display.note(f"device  {device()}{configs[0].precision_note}")
        splits = [tasks[run_data.data_key(config)] for config in configs]
        run_data.check_on_device(configs[0], splits[0])
        agents = [fresh_agent(config, split) for config, split in zip(configs, splits, strict=True)]
        run_data.note_values(agents, splits, display)
        for note in notes:
            display.note(f"note    {note}")
        configs = [run_data.with_score_range(*pair, display) for pair in zip(configs, splits, strict=True)]
        runs = [Run.create(config, run_records(split)) for config, split in zip(configs, splits, strict=True)]
        with lock_runs(runs):
            for run, split in zip(runs, splits, strict=True) if data is None else ():
                run_data.save_random_data(run, split)
            evaluator, found = episodes or held_out_evaluators(splits), [Found()] * len(runs)
            return run_to_completion(runs, agents, splits, evaluator, films, display, started, draw, found)


def resolve_paths(config: Config) -> Config:
    """Return the configuration with absolute paths and the step of the restored checkpoint, as a resumed run needs
    it."""
    config = run_data.resolve_data_paths(config)
    source = restored_checkpoint(config)
    if source is None:
        return config
    path = str(Run.open(config.restore_path or "", makes_env=False).folder.resolve())
    return dataclasses.replace(config, restore_path=path, restore_epoch=source.step)


def fresh_agent(config: Config, data: Splits) -> Agent:
    """Return the agent that a run starts from: new, or with the weights that `restore_path` names."""
    agent, source = make_agent(config, data.train), restored_checkpoint(config)
    return agent if source is None else restore(agent, config, source)


def run_records(data: Splits) -> dict[str, dict[str, str]]:
    """Return the records of `config.json`: versions of packages and a description of the data."""
    return {"versions": installed_versions(), "data": run_data.data_records(data)}


@contextlib.contextmanager
def lock_runs(runs: Sequence[Run]) -> Iterator[None]:
    """Lock the folders of the runs for this process, and turn errors of writing to them into one line."""
    with contextlib.ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.lock())
        stack.enter_context(to_error(runs))
        yield


@contextlib.contextmanager
def episodes_of(configs: Sequence[Config]) -> Iterator[BackgroundEvaluator | None]:
    """Start the evaluator, whose environments start while the data is read; None without evaluations in episodes."""
    c, names = configs[0], [config.env_name or "" for config in configs]
    if c.env_name is None or not c.eval_interval:
        yield None
        return
    how: Any = {"action_chunk": c.agent.action_chunk, "rollouts": len(configs), "timeout": c.env_timeout}
    how["num_recorded"] = c.video_episodes
    with (
        Evaluator(c.make_env, c.eval_episodes, **how) as evaluator,
        BackgroundEvaluator(evaluator, [config.seed for config in configs], names) as background,
    ):
        yield background


@contextlib.contextmanager
def films_of(configs: Sequence[Config], display: Display) -> Iterator[Films | None]:
    """Start the worker that films evaluations; None without films. Raises UserError if nothing can be rendered."""
    if not (c := configs[0]).video_episodes:
        yield None
        return
    with open_recorder(c.make_env, (c.seed, 0, 0), "--video_episodes") as workers:
        yield Films(workers, c.video_frame_skip, display)


def held_out_evaluators(splits: Sequence[Splits]) -> list[HeldOut]:
    """Return what evaluates each run without an environment."""
    return [HeldOutEvaluator(split.validation) for split in splits]


def run_to_completion(
    runs: list[Run],
    agents: Sequence[Agent],
    splits: Sequence[Splits],
    evaluator: BackgroundEvaluator | Sequence[HeldOut],
    films: Films | None,
    display: Display,
    started: float,
    draw: bool,
    found: Sequence[Found],
) -> list[Run]:
    """Train to the last step, write the summaries that mark the runs as finished, and then draw. `splits` and
    `evaluator` have an entry for each run; runs of one task share theirs."""
    loggers, c = [RunLogger(run, found[0].step) for run in runs], runs[0].config
    tasks = list({id(split): split for split in splits}.values())
    numbers = {id(task): number for number, task in enumerate(tasks)}
    fleet = Fleet(
        agents,
        [numbers[id(split)] for split in splits],
        FleetData.of([task.train for task in tasks], c.offline_share if c.mixes_prior_data else None),
        FleetData.of([task.validation for task in tasks]),
        [logger.keys.batches for logger in loggers],
        [logger.keys.validation for logger in loggers],
        Layout.for_runs(len(runs), c.batch_devices),
    )
    with contextlib.ExitStack() as logs, catch_signals() as received:
        loop = Loop(loggers, fleet, evaluator, display, started, found, received, films)
        for logger in loggers:
            display.note(f"run     {logger.run.folder}")
            logs.callback(logger.close)
        loop.run()
    from floq.analysis import pictures  # with Matplotlib, for which no training should wait at its start

    ended = [number for number in range(len(runs)) if number not in loop.diverged]
    try:
        for number in ended:
            pictures.remove(runs[number])
            runs[number].write_json("summary.json", loop.summary(number))
        if received:  # after the last step
            raise Stopped(received[0])
        if draw and ended:
            display.note("drawing the pictures")
            for number in ended:
                pictures.draw_pictures(runs[number], fleet.agent(number), splits[number].train, display)
    except KeyboardInterrupt as stop:
        left = f"stopped by {signal_of(stop).name} when all was trained; the rest comes with floq train --resume"
        folders = " ".join(str(runs[number].folder) for number in ended)
        raise Interrupted(f"{left} {folders}", signal_of(stop)) from stop
    if ended and runs[0].config.agent.learns_policy:
        with display.tolerate("table of results"):
            show_result([runs[number] for number in ended], display)
    if loop.diverged:
        raise Failed("; ".join(loop.diverged.values()))
    return runs
