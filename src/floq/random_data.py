"""The data of runs from scratch: random play, made once in worker processes and kept in the run's folder.

It would be made anew from its seed, but not every environment follows its seed alone.
"""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from floq import durable
from floq.config import Config
from floq.data.arrays import Trajectories, hold_out
from floq.data.files import open_npz
from floq.data.random_play import PIECE_SECONDS, RandomPlay
from floq.data.transitions import Splits
from floq.data.validate import check_rows
from floq.errors import UserError
from floq.progress import Display
from floq.run import Run
from floq.workers import START_SECONDS, WorkerError, Workers, worker_count

FILE = "random.npz"
PARTS = ("train", "validation")


def random_data(configs: Sequence[Config], runs: Sequence[Run], display: Display) -> list[Splits]:
    """The random play of each of these runs: what their folders keep, if they have any yet, otherwise new.

    Raises:
        Failed: an environment raised, hangs, or showed a number that is not finite.
        UserError: there is no such environment, or what is kept is damaged.
    """
    kept = [_kept(run) for run in runs] or [None] * len(configs)
    missing = [number for number, data in enumerate(kept) if data is None]
    found = dict(zip(missing, _play([configs[number] for number in missing], display), strict=True))
    data = [found[number] if one is None else one for number, one in enumerate(kept)]
    for one in data:
        display.note(f"data    {one.provenance}")
    return data


def keep(run: Run, data: Splits) -> None:
    """Write the random play of a run into its folder, unless it is there."""
    path, content = run.folder / FILE, io.BytesIO()
    if path.exists():
        return
    parts = zip(PARTS, (data.train, data.validation), strict=True)
    arrays = {f"{part}_{name}": x for part, rows in parts for name, x in rows.on_host()._asdict().items()}
    np.savez(content, **arrays)
    durable.replace(path, content.getvalue())


def _kept(run: Run) -> Splits | None:
    path = run.folder / FILE
    if not path.exists():  # an older run, or one that was killed at its very beginning
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


def _play(configs: Sequence[Config], display: Display) -> list[Splits]:
    """Play at random for every run, in a process for each, as many at once as there are cores."""
    if not configs:
        return []
    found, count = [], worker_count(None, len(configs))
    with display.bar("random", sum(config.random_steps for config in configs)) as update:
        for first in range(0, len(configs), count):
            group, before = configs[first : first + count], sum(c.random_steps for c in configs[:first])
            found += _play_together(group, lambda done, before=before: update(before + done))
    data = []
    for config, rows in zip(configs, found, strict=True):
        train, validation, how = hold_out(rows)
        what = f"{config.random_steps:,} steps of {config.env_name} with random actions, seed {config.seed}; {how}"
        data.append(Splits.of(train, validation, what))
    return data


def _play_together(configs: Sequence[Config], on_progress: Callable[[int], None]) -> list[Trajectories]:
    """Play at random for these runs at the same time."""
    arguments = [(c.env_name or "", c.success_timing, c.seed, c.random_steps) for c in configs]
    with Workers(RandomPlay, arguments) as workers:

        def ask(method: str, timeout: float) -> list[Any]:
            answers = workers.try_call(method, [()] * len(configs), timeout)
            for config, answer in zip(configs, answers, strict=True):
                if isinstance(answer, WorkerError):
                    raise answer.told(f"random play in {config.env_name} (seed {config.seed})") from answer
            return answers

        timeout = configs[0].env_timeout + PIECE_SECONDS
        done = ask("go_on", max(START_SECONDS, timeout))
        while done != [config.random_steps for config in configs]:
            on_progress(sum(done))
            done = ask("go_on", timeout)
        on_progress(sum(done))
        return ask("trajectories", timeout)
