"""Continue runs that were stopped, as if they had not been: one, or a fleet of them."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from floq.agent.agent import Agent
from floq.analysis.results import show_result
from floq.data.dataset import Dataset
from floq.runs import checkpoint, run_data
from floq.runs.checkpoint import DamagedCheckpoint, quarantine, quarantined_steps, remove_after, repair, steps
from floq.runs.config import Config
from floq.runs.run import Run, installed_versions, resume_checkpoint
from floq.training.loop import Found
from floq.training.train import (
    check_built,
    episodes_of,
    films_of,
    fleets,
    fresh_agent,
    held_out_evaluators,
    lock_runs,
    run_records,
    run_to_completion,
)
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import be_deterministic, device, use_all_cores
from floq.utils.progress import Display
from floq.utils.schema import Mark, marked

# --- Where stopped runs go on from ---


def newest_common(runs: Sequence[Run], note: Callable[[str], object]) -> list[Found]:
    """Return for each run the checkpoint of the newest step that all of them have and that can be read; of step 0 for
    all if one has none yet, and starts anew. They differ where a fleet was killed while it saved. A checkpoint that is
    damaged is renamed, and `note` is called with a line about it. The caller must have locked the folders of the runs.

    Raises:
        UserError: a run is past the others by more than a save, none of its checkpoints can be read, or they do not
            belong to it.
    """
    folders = [run.folder / "checkpoints" for run in runs]
    for folder in folders:
        for aside in repair(folder):
            note(f"damaged {aside} lacks its manifest")
    if not stopped_together(runs):
        listed = ", ".join(map(str, _newest(folders)))
        raise UserError(f"these runs stopped at different steps ({listed}): resume them one by one")
    while True:
        known = [steps(folder) for folder in folders]
        common = set(known[0]).intersection(*known)
        if not common:
            if any(quarantined_steps(folder) for folder in folders):
                empty = next((folder for folder in folders if not steps(folder)), folders[0])
                raise UserError(f"{empty} has no checkpoint left that can be read: start the run again")
            return [Found()] * len(runs)
        found = [_read(run, max(common), note) for run in runs]
        if all(found):
            return [one for one in found if one]


def _read(run: Run, step: int, note: Callable[[str], object]) -> Found | None:
    """Read the run's checkpoint of that step. None if it is damaged; it is quarantined then."""
    folder = run.folder / "checkpoints"
    try:
        saved = resume_checkpoint(run, step)
        replay = checkpoint.load_replay(folder, step)
    except DamagedCheckpoint as error:
        aside = quarantine(folder, step)
        note(f"damaged {str(error).rsplit(':', 1)[0]}; it is {aside.name} now, and the run goes back to an older one")
        return None
    if replay is None and step > saved.config.offline_steps:
        raise UserError(
            f"{folder / str(step)} has no {checkpoint.REPLAY}, which only the newest {checkpoint.REPLAYS_KEPT} "
            f"checkpoints of a run keep: start a new run from its weights, with --restore_path={run.folder} "
            f"--restore_epoch={step}"
        )
    return Found(saved, replay)


def stopped_together(runs: Sequence[Run]) -> bool:
    """Return whether these runs can resume as one fleet: they are at one step, or apart by the save during which they
    were killed."""
    folders = [run.folder / "checkpoints" for run in runs]
    newest, common = _newest(folders), set(steps(folders[0])).intersection(*map(steps, folders))
    save_interval, num_envs = runs[0].config.save_interval, runs[0].config.num_envs
    return len(set(newest)) == 1 or max(newest) - max(common, default=0) < save_interval + num_envs


def _newest(folders: Sequence[Path]) -> list[int]:
    """Return the newest step of each run; a quarantined checkpoint counts."""
    return [max([*steps(folder), *quarantined_steps(folder)], default=0) for folder in folders]


# --- Resume ---


def resume(
    run_dir: Path | str, data: Dataset | None = None, *, dataset: str | None = None, show: bool = True, **changes: Any
) -> Run:
    """Continue a run from its newest checkpoint as if it had not been stopped: on the same machine the parameters at
    the end are those of an uninterrupted run, bit by bit. Log rows after the checkpoint are cut and written again. The
    environments of the online phase are not saved: each begins a new episode.

    Args:
        run_dir: the run's folder.
        data: what the run was given from Python, if it was.
        dataset: where the run's data lie now, if they were moved; its record keeps that place.
        show: print progress.
        changes: `offline_steps` and `online_steps`, new totals; `restart_failed_envs`, `env_timeout`, `logger`,
            `on_divergence`, `keep_checkpoints`, `checkpoint_minutes`; and, if the run is not online yet, `utd`,
            `num_envs`, `warmup_steps`, `buffer_size`, `offline_share`,
            `offline_share_steps`, `balanced_sampling`.

    Raises:
        UserError: there is no such run, its checkpoint or its data does not belong to it, or it is past these steps.
        Interrupted: a signal ended the run.
    """
    return resume_fleet([run_dir], data, dataset=dataset, show=show, **changes)[0]


def resume_fleet(
    run_dirs: Sequence[Path | str],
    data: Dataset | None = None,
    *,
    dataset: str | None = None,
    show: bool = True,
    draw: bool = True,
    **changes: Any,
) -> list[Run]:
    """Continue several runs as one fleet. They must fit one program, and have stopped at the same step. Without
    `draw` there are no pictures.

    Args, raises: see `resume`.
    """
    started, display = time.monotonic(), Display(show)
    folders = list(dict.fromkeys(user_path(folder).resolve() for folder in run_dirs))
    old = [Run.open(folder) for folder in folders]
    if any(run.config.deterministic for run in old):
        be_deterministic()
    use_all_cores(len(folders) * old[0].config.batch_devices)  # now: reading a checkpoint starts JAX
    device()
    runs = [Run(run.folder, continued(run, changes)) for run in old]
    configs = [run.config for run in runs]
    for config in configs:
        check_built(config)
    if len(fleets(configs)) > 1:
        raise UserError("these runs differ in more than a fleet's may: resume them one by one")
    for folder in folders:
        check_writable(folder / "checkpoints", "make the run's folder writable, or resume a copy of it")
    with lock_runs(runs):
        found = newest_common(old, display.note)
        step = found[0].step
        _check_steps(old[0].config, configs[0], step)
        display.note(f"device  {device()}{configs[0].precision_note}")
        if all(run.is_finished for run in runs) and step == configs[0].total_steps:
            display.note(f"finished already, at step {step}; give more --offline_steps or --online_steps to train on")
            agents = [one.saved.agent for one in found if one.saved]
            return _show_finished(runs, agents, data, dataset, display, draw)
        with films_of(configs, display) as films, episodes_of(configs) as episodes:
            tasks = run_data.load_own_data(runs, display, data, dataset)
            runs = [run_data.moved(run, dataset) for run in runs]
            splits = [tasks[run_data.data_key(config)] for config in configs]
            run_data.check_on_device(configs[0], splits[0])
            for package, version in installed_versions().items():
                if (before := old[0].records["versions"].get(package)) != version:
                    display.note(f"note    {package} was {before}, now {version}: results may differ in the last bits")
            begun = zip(found, configs, splits, strict=True)
            agents = [one.saved.agent if one.saved else fresh_agent(config, split) for one, config, split in begun]
            cut_back(runs, [run_records(split) for split in splits], step)
            run_data.note_values(agents, splits, display)
            display.note(f"resume  from step {step}")
            if step > configs[0].offline_steps:
                display.note("note    the environments were not saved: each begins a new episode")
            evaluator = episodes or held_out_evaluators(splits)
            return run_to_completion(runs, agents, splits, evaluator, films, display, started, draw, found)


def _show_finished(
    runs: list[Run], agents: Sequence[Agent], data: Dataset | None, dataset: str | None, display: Display, draw: bool
) -> list[Run]:
    """Show the result of finished runs, and draw the pictures that they lack: they were stopped while they drew, or a
    picture failed."""
    if dataset is not None:
        tasks = run_data.load_own_data(runs, display, data, dataset)
        runs = [run_data.moved(run, dataset) for run in runs]
        for run in runs:
            run.write_config(run_records(tasks[run_data.data_key(run.config)]))
    from floq.analysis import pictures  # with Matplotlib

    with display.tolerate("pictures"):
        missing = [pictures.missing(run, agent) if draw else [] for run, agent in zip(runs, agents, strict=True)]
        if any(missing):
            display.note(f"drawing what is missing: {', '.join(dict.fromkeys(itertools.chain(*missing)))}")
            tasks = run_data.load_own_data(runs, display, data)
            for run, agent, names in zip(runs, agents, missing, strict=True):
                pictures.draw_pictures(run, agent, tasks[run_data.data_key(run.config)].train, display, names)
    with display.tolerate("table of results"):
        show_result(runs, display)
    return runs


def cut_back(runs: Sequence[Run], records: Sequence[dict[str, dict[str, str]]], step: int) -> None:
    """Cut the folders of the runs back to this step. If this is killed midway, the next resume starts from the same
    step."""
    for run, of_run in zip(runs, records, strict=True):
        run.write_config(of_run)
        run.reopen()
    for run in runs:
        remove_after(run.folder / "checkpoints", step)  # before the rows that lead to them
    for run in runs:
        run.cut_back_to(step)
        run.remove_temp_files()


def _check_steps(old: Config, new: Config, step: int) -> None:
    """Raise UserError if a run that is at this step cannot continue with the new settings."""
    online = step > old.offline_steps
    if old.mixes_prior_data != new.mixes_prior_data:
        raise UserError(
            "a run mixes the data of its --restore_path into its batches from its beginning to its end, and without an "
            "online phase: leave --online_steps and --offline_share as they are, or start a new run"
        )
    for name in ("offline_steps", *marked(Config, Mark.RESUMABLE_OFFLINE)) if online else ():
        if (value := getattr(new, name)) != (before := getattr(old, name)):
            without = "without" if before is None else f"with {before:g}"
            raise UserError(f"--{name}={value:g}: the run is online already, {without}; leave it out")
    shortened = new.total_steps < step or (new.total_steps == step and old.total_steps != step)
    if shortened or (not online and new.offline_steps < step):
        name = "online_steps" if online else "offline_steps"
        raise UserError(f"--{name}={getattr(new, name)}: the run is at step {step} already, give more")


def continued(run: Run, changes: Mapping[str, Any]) -> Config:
    """Return the configuration with which `resume` continues."""
    for name in changes:
        if name not in marked(Config, Mark.RESUMABLE, Mark.RESUMABLE_OFFLINE):
            changeable = ", ".join(marked(Config, Mark.RESUMABLE))
            raise UserError(f"{name}: a run goes on with its own settings, only {changeable} may change")
    return dataclasses.replace(run.config, **changes)
