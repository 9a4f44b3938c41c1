"""Continue runs that were stopped, as if they had not been: one, or a fleet of them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from floq import run_data
from floq.config import Config
from floq.data.transitions import Dataset
from floq.disk_faults import told
from floq.errors import UserError
from floq.folders import check_writable, user_path
from floq.hosts import ALONE, Hosts
from floq.layout import Layout
from floq.machine import be_deterministic, use_all_cores
from floq.progress import Display
from floq.recovery import forget_later, newest_common
from floq.results import show_result
from floq.run import Run, installed_versions
from floq.train import carry_through, check_built, episodes_of, fleets, fresh_agent, held, records, share
from floq.weights import ALWAYS, BEFORE_ONLINE


def resume(
    run_dir: Path | str,
    data: Dataset | None = None,
    *,
    show: bool = True,
    **changes: Any,
) -> Run:
    """Continue a run from its newest checkpoint as if it had not been stopped: on the same machine the parameters at
    the end are those of an uninterrupted run, bit by bit. Log rows after the checkpoint are cut and written again. The
    environments of the online phase are not saved: each begins a new episode.

    Args:
        run_dir: the run's folder.
        data: what the run was given from Python, if it was.
        show: print progress.
        changes: `offline_steps` and `online_steps`, new totals; `restart_failed_envs`, `env_timeout`, `logger`,
            `on_divergence`, `keep_checkpoints`, `checkpoint_minutes`; and, if the run is not online yet, `utd`,
            `num_envs`, `warmup_steps`, `buffer_size`, `balanced_sampling`.

    Raises:
        UserError: there is no such run, its checkpoint or its data does not belong to it, or it is past these steps.
        Interrupted: a signal ended the run.
    """
    return resume_fleet([run_dir], data, show=show, **changes)[0]


def resume_fleet(
    run_dirs: Sequence[Path | str],
    data: Dataset | None = None,
    *,
    show: bool = True,
    draw: bool = True,
    hosts: Hosts = ALONE,
    **changes: Any,
) -> list[Run]:
    """Continue several runs as one fleet. They must fit one program, and have stopped at the same step. With several
    `hosts`, this holds for the share of each. Without `draw` there are no pictures.

    Args, raises: see `resume`.
    """
    started, display = time.monotonic(), Display(show)
    folders = share(list(dict.fromkeys(user_path(folder).resolve() for folder in run_dirs)), hosts, display)
    if not folders:
        return []
    old = [Run.open(folder) for folder in folders]
    if any(run.config.deterministic for run in old):
        be_deterministic()
    use_all_cores(len(folders) * old[0].config.batch_devices)  # now: reading a checkpoint starts JAX
    runs = [Run(run.folder, continued(run, changes)) for run in old]
    configs = [run.config for run in runs]
    for config in configs:
        check_built(config)
    if len(fleets(configs)) > 1:
        raise UserError("these runs differ in more than a fleet's may: resume them one by one")
    for folder in folders:
        check_writable(folder / "checkpoints", "make the run's folder writable, or resume a copy of it")
    with held(runs), told(runs):
        return _go_on(old, runs, data, display, started, draw)


def _go_on(
    old: Sequence[Run],
    runs: list[Run],
    data: Dataset | None,
    display: Display,
    started: float,
    draw: bool,
) -> list[Run]:
    """Continue runs whose folders this process holds. `old` are the same with the settings that they stopped with."""
    configs, found = [run.config for run in runs], newest_common(old, display.note)
    step = found[0].step
    _check_steps(old[0].config, configs[0], step)
    if all(run.is_finished for run in runs) and step == configs[0].total_steps:
        display.note(f"finished already, at step {step}; give more --offline_steps or --online_steps to train on")
        show_result(runs, display)
        return runs

    for run in old:
        run_data.check_given(run, data)
    with episodes_of(configs) as episodes:
        tasks = run_data.load_tasks(configs, display, data, runs)
        splits = [tasks[run_data.task_of(config)] for config in configs]
        for run, split in zip(old, splits, strict=True):
            run_data.check_same(run, split)
        for package, version in installed_versions().items():
            if (before := old[0].records["versions"].get(package)) != version:
                display.note(f"note    {package} was {before}, now {version}: results may differ in the last bits")
        agents = [
            one.saved.agent if one.saved else fresh_agent(config, split)
            for one, config, split in zip(found, configs, splits, strict=True)
        ]
        _cut_back(runs, [records(split) for split in splits], step)
        run_data.note_values(agents, splits, display)
        display.note(f"resume  from step {step}")
        if step > configs[0].offline_steps:
            display.note("note    the environments were not saved: each begins a new episode")
        pending = [one.saved.pending if one.saved else {} for one in found]
        clocks, replays = found[0].saved.clocks if found[0].saved else {}, [one.replay for one in found]
        layout = Layout.for_runs(len(runs), configs[0].batch_devices)
        return carry_through(
            runs, agents, tasks, layout, episodes, display, clocks, started, pending, draw, step, replays
        )


def _cut_back(runs: Sequence[Run], records: Sequence[dict[str, dict[str, str]]], step: int) -> None:
    """Make the folders those of runs that are at this step. A kill in the midst of it does no harm: whoever comes next
    goes on from the same step."""
    for run, of_run in zip(runs, records, strict=True):
        run.write_config(of_run)
        run.reopen()
    forget_later(runs, step)  # before the rows that lead to them
    for run in runs:
        run.forget_after(step)
        run.sweep()


def _check_steps(old: Config, new: Config, step: int) -> None:
    """Raises UserError if a run that is at this step cannot go on with the new settings."""
    online = step > old.offline_steps
    for name in ("offline_steps", *BEFORE_ONLINE) if online else ():
        if (value := getattr(new, name)) != (before := getattr(old, name)):
            raise UserError(f"--{name}={value:g}: the run is online already, with {before:g}; leave it out")
    shortened = new.total_steps < step or (new.total_steps == step and old.total_steps != step)
    if shortened or (not online and new.offline_steps < step):
        name = "online_steps" if online else "offline_steps"
        raise UserError(f"--{name}={getattr(new, name)}: the run is at step {step} already, give more")


def continued(run: Run, changes: Mapping[str, Any]) -> Config:
    """The configuration with which `resume` goes on."""
    for name in changes:
        if name not in (*ALWAYS, *BEFORE_ONLINE):
            raise UserError(f"{name}: a run goes on with its own settings, only {', '.join(ALWAYS)} may change")
    return dataclasses.replace(run.config, **changes)
