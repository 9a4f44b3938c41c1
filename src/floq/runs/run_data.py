"""Data of a run: fetched if missing, loaded, checked and described; of a run from scratch, collected with random
actions."""

import dataclasses
import io
import os
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.agent.agent import Agent
from floq.data.arrays import Trajectories, check_rows, hold_out
from floq.data.collection.collect import collect, with_validation
from floq.data.collection.random_play import PIECE_SECONDS, RandomRollout
from floq.data.dataset import Dataset, Splits
from floq.data.description import ReturnRange, discounted_returns, memory
from floq.data.formats import d4rl, ogbench
from floq.data.formats.files import open_npz
from floq.data.formats.ogbench import download
from floq.data.formats.open import IN_MEMORY, given_splits, open_splits
from floq.data.host_rows import HostRows
from floq.envs import ogbench as suite
from floq.envs.environments import probe
from floq.envs.spaces import check_same_parts
from floq.envs.workers import START_TIMEOUT_S, WorkerError, Workers
from floq.runs.config import Config
from floq.runs.run import Run
from floq.utils import files
from floq.utils.errors import UserError
from floq.utils.files import looks_like_path, user_path
from floq.utils.machine import worker_count
from floq.utils.progress import Display

DEMO_DATASET, DEMO_EPISODES = "pointmaze-medium-navigate-v0", 200  # collected on first use: seconds, not an hour
RANDOM_FILE = "random.npz"
PARTS = ("train", "validation")

# --- Missing datasets ---


def fetch_missing(configs: Sequence[Config], display: Display) -> None:
    """Download or collect the OGBench datasets of these configurations that are not on disk, without reading any."""
    for config in configs:
        if config.from_scratch:
            continue
        named = config.dataset or config.env_name or ""
        if not looks_like_path(named) and suite.is_dataset(named):
            name, directory = suite.dataset_name(named), user_path(config.dataset_dir)
            ogbench.find_files(name, directory, _fetcher(config, display))


def _fetcher(config: Config, display: Display, run: Run | None = None) -> ogbench.Fetch:
    """Return a function that fetches a missing OGBench dataset and shows so. The configuration of an existing `run` is
    untrusted: for it, data are only fetched from the default server to the default folder."""

    def fetch(name: str, directory: Path) -> None:
        if run is not None and (directory != user_path(Config.dataset_dir) or config.dataset_mirror is not None):
            raise UserError(
                f"{directory / name}.npz is missing, and nothing is brought from or to where {run.folder} says: bring "
                f"it there yourself, as with `floq data collect {name} --dataset_dir={directory}`, or say where it "
                f"lies now with --dataset=PATH/{name}.npz"
            )
        if name != DEMO_DATASET or config.dataset_mirror is not None:
            display.note(f"downloading {name}")
            return download(name, directory, config.dataset_mirror, lambda name, total: display.bar("MB", total))
        collect_with_progress(name, directory, DEMO_EPISODES, display)

    return fetch


def collect_with_progress(name: str, directory: Path, episodes: int, display: Display) -> None:
    """Collect a missing dataset, with a note and a progress bar. For parameters and errors see `collect`."""
    display.note(f"collecting {episodes} episodes of {name} with OGBench's scripted expert, once")
    with display.bar("collect", with_validation(episodes)) as update:
        collect(name, directory, episodes=episodes, on_progress=lambda done, _: update(done))


# --- Loading ---


def load_data(config: Config, display: Display, given: Dataset | None = None, run: Run | None = None) -> Splits:
    """Load the data of one run; see `load_fleet_data`."""
    return load_fleet_data([config], display, given, [run] if run else [])[data_key(config)]


def load_own_data(
    runs: Sequence[Run], display: Display, given: Dataset | None = None, dataset: str | None = None
) -> dict[Hashable, Splits]:
    """Load the data that the runs of a fleet were trained on, by `data_key`: `given` from Python, or from `dataset` if
    they do not lie where the records of the runs say. Raises UserError if they are missing or other data."""
    for run in runs if dataset is None else ():
        check_in_memory_data(run, given)
        if given is None:
            _check_there(run)
    runs = [moved(run, dataset) for run in runs]
    tasks = load_fleet_data([run.config for run in runs], display, given, runs)
    for run in runs:
        check_fingerprint(run, tasks[data_key(run.config)])
    return tasks


def data_key(config: Config) -> Hashable:
    """Return the key of a run's data in `load_fleet_data`: its environment, and from scratch also its seed."""
    return (config.env_name, config.seed) if config.from_scratch else config.env_name


def load_fleet_data(
    configs: Sequence[Config], display: Display, given: Dataset | None = None, runs: Sequence[Run] = ()
) -> dict[Hashable, Splits]:
    """Load the data of the runs of a fleet, by `data_key`. Missing OGBench datasets are downloaded, except the
    demonstration's, which is collected. The data of runs from scratch are collected with random actions, once.

    Args:
        configs: of the runs; of the settings that concern data, they differ in the task only.
        display: shows the source of the data and the memory that they take.
        given: use this instead of reading a dataset; a part of it is held out.
        runs: the runs of the configurations, if they exist already; their folders hold the data of runs from scratch.
    """
    config, names = configs[0], list(dict.fromkeys(config.env_name for config in configs))
    if config.from_scratch and given is None:
        made = collect_random_data(configs, runs, display)
        return {data_key(one): _prepared(data, config) for one, data in zip(configs, made, strict=True)}
    fetch = _fetcher(config, display, runs[0] if runs else None)
    envs = {name: config.make_env.named(name) if name else None for name in names}
    if given is not None:
        rows = given.on_host()
        tasks = {name: given_splits(rows, env, config) for name, env in envs.items()}
    elif config.dataset is not None:
        where = (config.dataset, config.dataset_dir)
        tasks = {name: open_splits(*where, env, fetch, config) for name, env in envs.items()}
    else:
        ids = [name for name in names if name is not None]
        loaded = ogbench.load_tasks(ids, user_path(config.dataset_dir), config.label_timing, fetch)
        tasks = dict[str | None, Splits](zip(ids, loaded, strict=True))
    data = tasks[names[0]]
    for name in names[1:]:  # tasks share one copy of observations and actions
        pairs = zip((data.train, data.validation), tasks[name][:2], strict=True)
        train, validation = (shared.with_labels(own.rewards, own.masks) for shared, own in pairs)
        tasks[name] = tasks[name]._replace(train=train, validation=validation)
    if config.mixes_prior_data:
        tasks = {name: _mix_with_prior(task, config, display) for name, task in tasks.items()}
    tasks = {name: _prepared(task, config) for name, task in tasks.items()}
    data = tasks[names[0]]
    display.note(f"data    {data.provenance}")
    for note in data.notes:
        display.note(f"        {note}" if not note.startswith("warning") else note)
    display.note(
        f"        {len(data.train):,} + {len(data.validation):,} transitions, "
        f"{memory(data.train.observations.shape[0], len(data.train), *data.train.dims)}"
    )
    if isinstance(rows := data.train.observations, HostRows):
        display.note(f"        {rows}: a thread gathers those of each batch")
    rewards = np.asarray(data.train.rewards)[np.asarray(data.train.starts)]
    if rewards.min() == rewards.max():
        display.note(f"warning all rewards are {rewards.min():.3g}: there is nothing to learn")
    if config.env_name is None:
        display.note("note    no environment: instead of success you get the TD error of held-out data, and what the")
        display.note("        critic thinks the policy is worth; --env_name=ID evaluates in a Gymnasium environment;")
        display.note("        floq ope RUN_DIR, afterwards, estimates from the data what the policy is worth")
    return {data_key(config): tasks[config.env_name] for config in configs}


def _prepared(data: Splits, config: Config) -> Splits:
    """Return the same data for a run. Raises as `Dataset.for_chunks` and `seen_as` do."""
    both = (part.for_chunks(config.agent.action_chunk) for part in data[:2])
    train, validation = (part.seen_as(config.frame_stack or 1, config.p_aug or 0.0) for part in both)
    return data._replace(train=train, validation=validation)


def _mix_with_prior(new: Splits, config: Config, display: Display) -> Splits:
    """Mix new data with that of the run whose weights are restored. Only new data are held out."""
    run = Run.open(config.restore_path or "")
    check_in_memory_data(run, None)
    _check_there(run, f"floq train --resume {run.folder} ")
    display.note(f"old     {config.offline_share:.0%} of each batch from the data of {run.folder}")
    prior = load_data(dataclasses.replace(run.config, offline_share=None, offline_share_steps=None), display, run=run)
    check_fingerprint(run, prior)
    check_same_parts(new.parts, prior.parts, "the new data", "the old ones")
    train = new.train.append_to(prior.train)
    return new._replace(train=train, provenance=f"{new.provenance}; beside old data: {prior.provenance}")


# --- Checks and records ---


def resolve_data_paths(config: Config) -> Config:
    """Return the configuration with absolute paths of its data, so that the run can be resumed from another folder."""
    paths = {"dataset_dir": str(user_path(config.dataset_dir).absolute())}
    if config.dataset is not None and os.path.exists(path := user_path(config.dataset)):
        paths["dataset"] = str(path.resolve())
    return dataclasses.replace(config, **paths)


def moved(run: Run, dataset: str | None) -> Run:
    """Return the run with its data where they lie now, at `dataset` unless it is None.

    Raises:
        UserError: the run has no data, or its record cannot tell whether these are the same.
    """
    if dataset is None:
        return run
    if run.config.from_scratch:
        raise UserError(
            f"--dataset={dataset}: {run.folder} began with random play, which it holds itself; leave it out"
        )
    if "fingerprint" not in run.records["data"]:
        raise UserError(
            f"--dataset={dataset}: the record of {run.folder} has no fingerprint, which would tell that these are its "
            f"data: bring them back to {run.config.dataset or run.config.dataset_dir}"
        )
    return Run(run.folder, resolve_data_paths(dataclasses.replace(run.config, dataset=dataset)))


def _check_there(run: Run, command: str = "") -> None:
    """Raise UserError if the run's file or folder of data is missing. The remedy is a flag of the `command`."""
    name = run.config.dataset
    if name is not None and looks_like_path(name) and not os.path.exists(user_path(name)):
        raise UserError(
            f"{name} is missing, the data of {run.folder}: bring it back, or say where it lies now with "
            f"{command}--dataset=PATH"
        )


def check_on_device(config: Config, data: Splits) -> None:
    """Raise UserError if a run needs its observations on the device, and they stay on the host."""
    rows = data.train.observations
    if not isinstance(rows, HostRows):
        return
    if config.online_steps:
        raise UserError(
            f"--online_steps={config.online_steps}: {rows}, and online learning needs them on the device, beside new "
            "experience: give a part of the data, or take a device with more memory"
        )
    if config.batch_devices > 1:
        raise UserError(f"--batch_devices={config.batch_devices}: {rows}, and only whole batches come from there")


def with_score_range(config: Config, data: Splits, display: Display) -> Config:
    """Return the configuration with the returns that stand for the scores 0 and 100, where they are known."""
    known, whose = config.score_range, "--score_range"
    if known is None and config.env_name and config.dataset:
        known, whose = data.score_range, "the dataset"
        if known is None:
            known, whose = d4rl.score_range(config.env_name), "D4RL"
    if known is None or config.env_name is None:
        return config
    display.note(f"scores  0 stands for a return of {known[0]:.4g}, 100 for {known[1]:.4g}, according to {whose}")
    return dataclasses.replace(config, score_range=known)


def check_fingerprint(run: Run, data: Splits) -> None:
    """Raise UserError if this is not the data that the run was trained on."""
    before = run.records["data"]
    if before.get("fingerprint", now := data_records(data)["fingerprint"]) != now:
        if run.config.from_scratch:
            raise UserError(
                f"the random play that {run.folder} began with is lost, and was another when made again: "
                "its environment does not follow its seed alone; start a new run"
            )
        raise UserError(
            f"the data in {run.config.dataset or run.config.dataset_dir} ({data.provenance}; fingerprint {now}) is not "
            f"what {run.folder} was trained on ({before.get('provenance', 'unknown')}; {before['fingerprint']}): bring "
            "that back, say where it lies now with --dataset=PATH, or start a new run"
        )


def check_in_memory_data(run: Run, given: Dataset | None) -> None:
    """Raise UserError if the run was given its data from Python, but `given` is None."""
    if given is None and run.records["data"].get("provenance", "").startswith(IN_MEMORY):
        raise UserError(f"{run.folder} was given its data from Python: do so again, as in floq.resume(run_dir, data)")


def note_values(agents: Sequence[Agent], data: Sequence[Splits], display: Display) -> None:
    """Show the return ranges of flow critics, and a warning if the returns in the data do not fit one."""
    notes: dict[str, None] = {}  # without repetitions
    for agent, splits in zip(agents, data, strict=True):
        if "noise_coverage" not in agent.static.flat():
            continue
        discount, scale = float(agent.hypers.discount), float(agent.hypers.reward_scale)
        low, high = (scale * float(reward) for reward in (agent.value_range.r_min, agent.value_range.r_max))
        offset = float(agent.static.flat()["reward_offset"])
        values = ReturnRange.of((low, high), discount, float(agent.hypers.noise_coverage), offset)
        notes[f"values  {values} (from rewards within [{low:.4g}, {high:.4g}])"] = None
        parts = [part.on_host() for part in (splits.train, splits.validation)]
        returns = np.concatenate([discounted_returns(rows, discount)[~rows.ends] for rows in parts])
        if complaint := values.complaint(scale * returns):
            notes[f"warning {complaint}"] = None
    for line in notes:
        display.note(line)


def data_records(data: Splits) -> dict[str, Any]:
    """Return the record of a run's data in `config.json`: provenance, fingerprint, named parts of observations."""
    fingerprint = f"{data.train.fingerprint()} {data.validation.fingerprint()}"
    parts = {"observation_parts": list(data.parts)} if data.parts else {}
    return {"provenance": data.provenance, "fingerprint": fingerprint} | parts


# --- Data of runs from scratch ---


def collect_random_data(configs: Sequence[Config], runs: Sequence[Run], display: Display) -> list[Splits]:
    """Return the random rollouts of each of these runs: read from their folders if there are any, otherwise collected.

    Raises:
        Failed: an environment raised, hangs, or returned a number that is not finite.
        UserError: there is no such environment, or a stored file is damaged.
    """
    stored = [_kept(run) for run in runs] or [None] * len(configs)
    missing = [number for number, data in enumerate(stored) if data is None]
    collected = dict(zip(missing, _collect_random([configs[number] for number in missing], display), strict=True))
    data = [collected[number] if splits is None else splits for number, splits in enumerate(stored)]
    for splits in data:
        display.note(f"data    {splits.provenance}")
    return data


def save_random_data(run: Run, data: Splits) -> None:
    """Save the random rollouts of a run from scratch in its folder, unless they are there."""
    path, content = run.folder / RANDOM_FILE, io.BytesIO()
    if not run.config.from_scratch or path.exists():
        return
    parts = zip(PARTS, (data.train, data.validation), strict=True)
    arrays = {f"{part}_{name}": x for part, rows in parts for name, x in rows.on_host()._asdict().items()}
    np.savez(content, **arrays)
    files.replace(path, content.getvalue())


def _kept(run: Run) -> Splits | None:
    """Read the random rollouts of a run from its folder, None if there are none."""
    path = run.folder / RANDOM_FILE
    if not path.exists():  # the run was killed before they were saved
        return None
    names = [f"{part}_{name}" for part in PARTS for name in Trajectories._fields]
    remedy = "delete it and resume the run, and the random play is made again"
    arrays = open_npz(path, names, remedy)
    if lacking := [name for name in names if name not in arrays]:
        raise UserError(f"{path} lacks {lacking[0]}: {remedy}")
    train, validation = (Trajectories(*(arrays[f"{part}_{name}"] for name in Trajectories._fields)) for part in PARTS)
    for part in (train, validation):
        check_rows(part._asdict(), str(path))
        if part.ends.all() or not part.ends[-1]:
            raise UserError(f"{path} has no whole episodes: {remedy}")
    return Splits.of(train, validation, run.records["data"].get("provenance", ""))


def _collect_random(configs: Sequence[Config], display: Display) -> list[Splits]:
    """Collect random rollouts for every run, in a process for each, as many at once as there are cores."""
    for make_env in dict.fromkeys(config.make_env for config in configs):
        probe(make_env())
    if not configs:
        return []
    data, count = [], worker_count(None, len(configs))
    with display.bar("random", sum(config.random_steps for config in configs)) as update:
        for first in range(0, len(configs), count):
            group, before = configs[first : first + count], sum(c.random_steps for c in configs[:first])
            collected = _collect_group(group, lambda done, before=before: update(before + done))
            for config, rows in zip(group, collected, strict=True):
                train, validation, how = hold_out(rows)
                source = f"{config.random_steps:,} steps of {config.env_name} with random actions, seed {config.seed}"
                data.append(Splits.of(train, validation, f"{source}; {how}"))
    return data


def _collect_group(configs: Sequence[Config], on_progress: Callable[[int], None]) -> list[Trajectories]:
    """Collect random rollouts for these runs at the same time."""
    one_frame = [dataclasses.replace(config.make_env, frame_stack=1) for config in configs]
    arguments = [(env, c.seed, c.random_steps) for env, c in zip(one_frame, configs, strict=True)]
    with Workers(RandomRollout, arguments) as workers:

        def call(method: str, timeout: float) -> list[Any]:
            answers = workers.try_call(method, [()] * len(configs), timeout)
            for config, answer in zip(configs, answers, strict=True):
                if isinstance(answer, WorkerError):
                    raise answer.to_error(f"random play in {config.env_name} (seed {config.seed})") from answer
            return answers

        done, timeout = [], configs[0].env_timeout + PIECE_SECONDS
        while done != [config.random_steps for config in configs]:
            done = call("go_on", timeout if done else max(START_TIMEOUT_S, timeout))
            on_progress(sum(done))
        return call("trajectories", timeout)
