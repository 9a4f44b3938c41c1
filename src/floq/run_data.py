"""The data of a run: brought from where its configuration points, and described in a few lines."""

import dataclasses
import os
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq import envs
from floq.agent import Agent
from floq.config import Config
from floq.data import ogbench
from floq.data.arrays import memory
from floq.data.collect import collect
from floq.data.download import download
from floq.data.open import GIVEN, given_splits, open_splits
from floq.data.recipes import with_validation
from floq.data.returns import ReturnRange, discounted_returns
from floq.data.transitions import Dataset, Splits
from floq.errors import UserError
from floq.folders import looks_like_path, user_path
from floq.progress import Display
from floq.random_data import keep, random_data
from floq.run import Run

DEMO_DATASET, DEMO_EPISODES = "pointmaze-medium-navigate-v0", 200  # collected on first use: seconds, not an hour


def fetch_missing(configs: Sequence[Config], display: Display, runs: Sequence[Run] = ()) -> None:
    """Bring the OGBench datasets of these configurations that are not on disk, without reading any. Args: see
    `load_tasks`."""
    for config in configs:
        if config.from_scratch:
            continue
        named = config.dataset or config.env_name or ""
        if not looks_like_path(named) and envs.is_ogbench(named):
            ogbench.find(
                envs.dataset_name(named),
                user_path(config.dataset_dir),
                _fetcher(config, display, runs[0] if runs else None),
            )


def _fetcher(config: Config, display: Display, run: Run | None = None) -> ogbench.Fetch:
    """What brings a missing OGBench dataset, with a word about it. Of a `run` that is read from its folder, anybody may
    have written where the data come from and where they go: it is brought to the usual place alone, from the usual one.
    """

    def fetch(name: str, directory: Path) -> None:
        if run is not None and (directory != user_path(Config.dataset_dir) or config.dataset_mirror is not None):
            raise UserError(
                f"{directory / name}.npz is missing, and nothing is brought from or to where {run.folder} says: bring "
                f"it there yourself, as with `floq data collect {name} --dataset_dir={directory}`"
            )
        if name != DEMO_DATASET or config.dataset_mirror is not None:
            display.note(f"downloading {name}")
            return download(name, directory, config.dataset_mirror, lambda name, total: display.bar("MB", total))
        collect_shown(name, directory, DEMO_EPISODES, display)

    return fetch


def collect_shown(name: str, directory: Path, episodes: int, display: Display) -> None:
    """Collect a dataset that is missing, with a word about it and a bar. Args, raises: see `floq.data.collect`."""
    display.note(f"collecting {episodes} episodes of {name} with OGBench's scripted expert, once")
    with display.bar("collect", with_validation(episodes)) as update:
        collect(name, directory, episodes=episodes, on_progress=lambda done, _: update(done))


def load_data(config: Config, display: Display, given: Dataset | None = None, run: Run | None = None) -> Splits:
    """The data of one run; see `load_tasks`."""
    return load_tasks([config], display, given, [run] if run else [])[task_of(config)]


def task_of(config: Config) -> Hashable:
    """By what the data of a run is found in what `load_tasks` returns: its environment, and from scratch its seed."""
    return (config.env_name, config.seed) if config.from_scratch else config.env_name


def load_tasks(
    configs: Sequence[Config], display: Display, given: Dataset | None = None, runs: Sequence[Run] = ()
) -> dict[Hashable, Splits]:
    """The data of the runs of a fleet, by `task_of` them. What is missing of OGBench's is downloaded, except the
    demonstration's, which is collected. From scratch it is made with random actions, once.

    Args:
        configs: of the runs; they differ in nothing that concerns the data but the task.
        display: shows where the data comes from and what it takes.
        given: use this instead of reading anything; a part of it is held out.
        runs: those of the configurations, where they have been begun; their folders keep what was made from scratch.
    """
    config, names = configs[0], list(dict.fromkeys(config.env_name for config in configs))
    if config.from_scratch and given is None:
        made = random_data(configs, runs, display)
        return {task_of(config): data for config, data in zip(configs, made, strict=True)}
    fetch = _fetcher(config, display, runs[0] if runs else None)
    if given is not None:
        rows = given.on_host()
        tasks = {name: given_splits(rows, name) for name in names}
    elif config.dataset is not None:
        timing = config.label_timing
        tasks = {n: open_splits(config.dataset, config.dataset_dir, n, timing, fetch) for n in names}
    else:
        ids = [name for name in names if name is not None]
        loaded = ogbench.load_tasks(ids, user_path(config.dataset_dir), config.label_timing, fetch)
        tasks = dict[str | None, Splits](zip(ids, loaded, strict=True))
    data = tasks[names[0]]
    for name in names[1:]:  # one copy of what they share, however they were read
        shared = zip((data.train, data.validation), tasks[name][:2], strict=True)
        train, validation = (one.with_labels(other.rewards, other.masks) for one, other in shared)
        tasks[name] = Splits(train, validation, tasks[name].provenance)
    if config.old_data_share:
        tasks = {name: _beside_old(task, config, display) for name, task in tasks.items()}
    tasks = {name: task.for_chunks(config.agent.action_chunk) for name, task in tasks.items()}
    data = tasks[names[0]]
    sizes = data.train.observations.shape[1], data.train.actions.shape[1]
    display.note(f"data    {data.provenance}")
    display.note(
        f"        {len(data.train):,} + {len(data.validation):,} transitions, "
        f"{memory(data.train.observations.shape[0], len(data.train), *sizes)}"
    )
    if config.env_name is None:
        display.note("note    no environment: instead of success you get the TD error of held-out data, and what the")
        display.note("        critic thinks the policy is worth; --env_name=ID evaluates in a Gymnasium environment")
    return {task_of(config): tasks[config.env_name] for config in configs}


def _beside_old(new: Splits, config: Config, display: Display) -> Splits:
    """New data beside that of the run whose weights are restored. What is held out is new."""
    run = Run.open(config.restore_path or "")
    check_given(run, None)
    display.note(f"old     {config.old_data_share:.0%} of each batch from the data of {run.folder}")
    old = load_data(dataclasses.replace(run.config, old_data_share=0.0), display, run=run)
    check_same(run, old)
    train = new.train.beside(old.train, config.old_data_share)
    return Splits(train, new.validation, f"{new.provenance}; beside old data: {old.provenance}")


def keep_made(run: Run, data: Splits) -> None:
    """Keep in the folder of a run from scratch the data that it begins with."""
    if run.config.from_scratch:
        keep(run, data)


def settled(config: Config) -> Config:
    """The configuration with the paths of its data written out, so that the run can be resumed from another folder."""
    paths = {"dataset_dir": str(user_path(config.dataset_dir).absolute())}
    if config.dataset is not None and os.path.exists(path := user_path(config.dataset)):
        paths["dataset"] = str(path.resolve())
    return dataclasses.replace(config, **paths)


def check_same(run: Run, data: Splits) -> None:
    """Raises UserError if this is not the data that the run was trained on."""
    before = run.records["data"]
    if before.get("fingerprint", now := records(data)["fingerprint"]) != now:
        if run.config.from_scratch:
            raise UserError(
                f"the random play that {run.folder} began with is lost, and was another when made again: "
                "its environment does not follow its seed alone; start a new run"
            )
        raise UserError(
            f"the data in {run.config.dataset or run.config.dataset_dir} is not what {run.folder} was trained on "
            f"({before.get('provenance', 'unknown')}): bring that back, or start a new run"
        )


def check_given(run: Run, given: Dataset | None) -> None:
    """Raises UserError if the run was given its data from Python, and is not now."""
    if given is None and run.records["data"].get("provenance", "").startswith(GIVEN):
        raise UserError(f"{run.folder} was given its data from Python: do so again, as in floq.resume(run_dir, data)")


def note_values(agents: Sequence[Agent], data: Sequence[Splits], display: Display) -> None:
    """Show the ranges in which flow critics look for values, and say so if the returns in the data do not fit one."""
    for line in dict.fromkeys(line for pair in zip(agents, data, strict=True) for line in _values(*pair)):
        display.note(line)


def _values(agent: Agent, data: Splits) -> Iterator[str]:
    if "noise_coverage" not in agent.static.flat():
        return
    h, scale = agent.hypers, float(agent.hypers.reward_scale)
    rewards = tuple(scale * float(r) for r in (agent.value_range.r_min, agent.value_range.r_max))
    offset = float(agent.static.flat()["reward_offset"])
    values = ReturnRange.of((rewards[0], rewards[1]), float(h.discount), float(h.noise_coverage), offset)
    yield f"values  {values} (from rewards within [{rewards[0]:.4g}, {rewards[1]:.4g}])"
    parts = [part.on_host() for part in (data.train, data.validation)]
    returns = np.concatenate([discounted_returns(rows, float(h.discount))[~rows.ends] for rows in parts])
    if complaint := values.complaint(scale * returns):
        yield f"warning {complaint}"


def records(data: Splits) -> dict[str, Any]:
    """What `config.json` keeps about the data of a run."""
    fingerprint = f"{data.train.fingerprint()} {data.validation.fingerprint()}"
    return {"provenance": data.provenance, "fingerprint": fingerprint}
