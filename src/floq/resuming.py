"""Continue runs that were stopped, as if they had not been: one, or a fleet of them."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from floq import checkpoint, run_data
from floq.checkpoint import Checkpoint
from floq.config import Config
from floq.data.replay import Recorded
from floq.data.transitions import Dataset
from floq.errors import UserError
from floq.fleet import Layout
from floq.folders import user_path
from floq.hosts import ALONE, Hosts
from floq.loggers import cut_csv
from floq.machine import use_all_cores
from floq.progress import Display
from floq.results import show_result
from floq.run import Run, installed_versions
from floq.train import carry_through, check_built, episodes_of, fleets, fresh_agent, held, records, share
from floq.weights import ALWAYS, BEFORE_ONLINE, own_checkpoint


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
        changes: `offline_steps` and `online_steps`, new totals; `restart_failed_envs`, `env_timeout`, `logger`; and, if
            the run is not online yet, `utd`, `num_envs`, `warmup_steps`, `buffer_size`, `balanced_sampling`.

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
    use_all_cores(len(folders) * old[0].config.batch_devices)  # now: reading a checkpoint starts JAX
    runs = [Run(run.folder, continued(run, changes)) for run in old]
    configs = [run.config for run in runs]
    for config in configs:
        check_built(config)
    if len(fleets(configs)) > 1:
        raise UserError("these runs differ in more than a fleet's may: resume them one by one")
    layout = Layout.for_runs(len(runs), configs[0].batch_devices)
    saved = _common_checkpoints(old)
    step = saved[0].step if saved[0] else 0
    _check_steps(old[0].config, configs[0], step)
    if all(run.is_finished for run in runs) and step == configs[0].total_steps:
        display.note(f"finished already, at step {step}; give more --offline_steps or --online_steps to train on")
        show_result(runs, display)
        return runs

    for run in old:
        run_data.check_given(run, data)
    recorded = [_replay(run, found) for run, found in zip(old, saved, strict=True)]
    with held(runs), episodes_of(configs) as episodes:
        tasks = run_data.load_tasks(configs, display, data, runs)
        splits = [tasks[run_data.task_of(config)] for config in configs]
        for run, split in zip(old, splits, strict=True):
            run_data.check_same(run, split)
        for package, version in installed_versions().items():
            if (before := old[0].records["versions"].get(package)) != version:
                display.note(f"note    {package} was {before}, now {version}: results may differ in the last bits")
        agents = [
            found.agent if found else fresh_agent(config, split)
            for found, config, split in zip(saved, configs, splits, strict=True)
        ]
        for run, split in zip(runs, splits, strict=True):
            run.write_config(records(split))
            (run.folder / "summary.json").unlink(missing_ok=True)
            for name in ("train.csv", "eval.csv"):
                cut_csv(run.folder / name, step)
        run_data.note_values(agents, splits, display)
        display.note(f"resume  from step {step}")
        if step > configs[0].offline_steps:
            display.note("note    the environments were not saved: each begins a new episode")
        pending, clocks = [s.pending if s else {} for s in saved], saved[0].clocks if saved[0] else {}
        return carry_through(
            runs, agents, tasks, layout, episodes, display, clocks, started, pending, draw, step, recorded
        )


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


def _common_checkpoints(runs: Sequence[Run]) -> list[Checkpoint | None]:
    """The checkpoints of the newest step that all runs have; None for all if a run has none, and starts anew. They
    differ where a fleet was killed while it saved.

    Raises:
        UserError: a run is past the others by more than a save.
    """
    folders = [run.folder / "checkpoints" for run in runs]
    steps = [checkpoint.steps(folder) for folder in folders]
    common = set(steps[0]).intersection(*steps)
    newest = [found[-1] if found else 0 for found in steps]
    save_interval, num_envs = runs[0].config.save_interval, runs[0].config.num_envs
    if len(set(newest)) > 1 and max(newest) - max(common, default=0) >= save_interval + num_envs:
        listed = ", ".join(map(str, newest))
        raise UserError(f"these runs stopped at different steps ({listed}): resume them one by one")
    if not common:
        return [None] * len(runs)
    return [own_checkpoint(run, max(common)) for run in runs]


def _replay(run: Run, saved: Checkpoint | None) -> Recorded | None:
    """What the run has seen online until that checkpoint. Raises UserError if that is lost."""
    if saved is None:
        return None
    replay = checkpoint.load_replay(run.folder / "checkpoints", saved.step)
    if replay is None and saved.step > saved.config.offline_steps:
        raise UserError(
            f"{run.folder / 'checkpoints' / str(saved.step)} has no {checkpoint.REPLAY}, which only the newest "
            f"{checkpoint.REPLAYS_KEPT} checkpoints of a run keep: start a new run from its weights, with "
            f"--restore_path={run.folder} --restore_epoch={saved.step}"
        )
    return replay


def continued(run: Run, changes: Mapping[str, Any]) -> Config:
    """The configuration with which `resume` goes on."""
    for name in changes:
        if name not in (*ALWAYS, *BEFORE_ONLINE):
            raise UserError(f"{name}: a run goes on with its own settings, only {', '.join(ALWAYS)} may change")
    return dataclasses.replace(run.config, **changes)
