"""The commands `floq data ...`."""

import signal
import time
from dataclasses import dataclass

from tyro.conf import Positional

from floq.cli.flags import command_help, parse
from floq.utils.errors import Interrupted
from floq.utils.files import check_writable, user_path


@dataclass(frozen=True)
class Collect:
    """Make an OGBench dataset with the benchmark's expert, or floq's ant: NAME.npz, NAME-val.npz, and NAME.json."""

    name: Positional[str]
    """A dataset, such as pointmaze-medium-navigate-v0."""
    episodes: int | None = None
    """Training episodes; by default as many as published. A tenth on top is for validation."""
    seed: int = 0
    """With the number of episodes, determines the result."""
    workers: int | None = None
    """Processes; by default one per core."""
    dataset_dir: str = "~/.ogbench/data"
    """Where the files go."""


def collect_command(argv: list[str]) -> None:
    """Run `floq data collect`."""
    options = parse(Collect, argv, "floq data collect", command_help(Collect))

    from floq.data.collection.collect import collect
    from floq.data.collection.recipes import recipe, with_validation
    from floq.utils.progress import Display

    display = Display()
    settings = recipe(options.name)
    episodes = settings.episodes if options.episodes is None else options.episodes
    total, started = with_validation(episodes), time.monotonic()
    counts = [0]  # numbers of finished episodes: initially 0, then those of an earlier attempt, then after each
    try:
        with display.bar("collect", total) as update:

            def on_progress(done: int, _: int) -> None:
                counts.append(done)
                update(done)

            path = collect(
                options.name,
                user_path(options.dataset_dir),
                episodes=options.episodes,
                seed=options.seed,
                workers=options.workers,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped with {counts[-1]} of {total} episodes; the same command goes on", signal.SIGINT
        ) from None
    rows = (total - counts[1]) * settings.rows
    rate = rows / (time.monotonic() - started)
    display.note(f"wrote {path} and the validation part: {rows:,} new rows, {rate:,.0f} per second")


@dataclass(frozen=True)
class Inspect:
    """Describe a dataset, and warn of what would harm training."""

    name: Positional[str]
    """An OGBench dataset or task, the path of a file or folder, or a Minari id."""
    out: str | None = None
    """The picture's file; by default NAME-inspected.png in the current folder."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's files are."""


def inspect_command(argv: list[str]) -> None:
    """Run `floq data inspect`."""
    options = parse(Inspect, argv, "floq data inspect", command_help(Inspect))
    import numpy as np

    from floq.analysis.figures.dataset import dataset_picture
    from floq.analysis.figures.style import check_suffix
    from floq.data.description import inspect, reward_over_time
    from floq.data.formats.open import open_dataset
    from floq.utils.progress import Display

    picture = user_path(options.out or f"{user_path(options.name).absolute().stem}-inspected.png")
    check_suffix(picture)
    check_writable(picture.parent, "give another --out")
    data, has_rewards, source, _, parts = open_dataset(options.name, options.dataset_dir)
    found = inspect(data, has_rewards)
    display = Display()
    display.table(source, found.table)
    if parts:
        display.note(f"  observations are, in this order: {', '.join(parts)}")
    if not has_rewards:
        display.note("  no rewards: name a task, as in cube-single-play-singletask-v0, to see them")
    for warning in found.warnings:
        display.note(f"  look at this: {warning}")
    sample = np.linspace(0, len(data.ends) - 1, min(len(data.ends), 50_000)).astype(int)
    with display.tolerate(str(picture)):
        dataset_picture(
            picture,
            options.name,
            found.episodes.lengths,
            found.episodes.returns if has_rewards else None,
            reward_over_time(data) if has_rewards else None,
            data.actions[sample],
            data.observations[sample, :2] if "maze" in options.name and data.observations.shape[1] > 1 else None,
        )
        display.note(f"  picture     {picture}")


@dataclass(frozen=True)
class Convert:
    """Write a dataset in another format: an npz in OGBench's layout, or a Minari dataset."""

    source: Positional[str]
    """What to read: an OGBench dataset or task, the path of a file or folder, or a Minari id."""
    target: Positional[str]
    """What to write: FILE.npz, a Minari id such as lab/robot-v0, or the path ./robot-v0 of a new Minari folder."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's files are."""


def convert_command(argv: list[str]) -> None:
    """Run `floq data convert`."""
    options = parse(Convert, argv, "floq data convert", command_help(Convert))
    from floq.data.formats.convert import check_target, convert
    from floq.data.formats.open import open_dataset
    from floq.utils.progress import Display

    check_target(options.target)
    data, has_rewards, source, _, parts = open_dataset(options.source, options.dataset_dir)
    path = convert(data, has_rewards, options.target, source, parts)
    Display().note(f"wrote {path}: {int((~data.ends).sum()):,} transitions in {int(data.ends.sum()):,} trajectories")
