"""The commands `floq data ...`."""

import dataclasses
import signal
from dataclasses import dataclass

from tyro.conf import Positional

from floq.cli.flags import parse_options
from floq.data.options import DataOptions
from floq.utils.errors import Interrupted
from floq.utils.files import check_writable, user_path
from floq.utils.untrusted import consent


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
    options = parse_options(Collect, argv, "floq data collect")

    from floq.data.collection.collect import collect, recipe, with_validation
    from floq.utils.progress import Display

    display, done = Display(), [0]
    total = with_validation(recipe(options.name).episodes if options.episodes is None else options.episodes)
    values = dataclasses.asdict(options)
    name, folder = values.pop("name"), user_path(values.pop("dataset_dir"))
    try:
        with display.bar("collect", total) as update:

            def on_progress(count: int, _: int) -> None:
                done.append(count)
                update(count)

            path = collect(name, folder, on_progress=on_progress, **values)
    except KeyboardInterrupt:
        message = f"stopped with {done[-1]} of {total} episodes; the same command goes on"
        raise Interrupted(message, signal.SIGINT) from None
    display.note(f"wrote {path} and the validation part")


@dataclass(frozen=True)
class Inspect(DataOptions):
    """Describe a dataset, and warn of what would harm training."""

    name: Positional[str]
    """An OGBench dataset or task, the path of a file or folder, or a Minari id."""
    out: str | None = None
    """The picture's file; by default NAME-inspected.png in the current folder."""
    env_name: str | None = None
    """The environment of the data, in which a run will be trained."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's files are."""


def inspect_command(argv: list[str]) -> None:
    """Run `floq data inspect`."""
    options = parse_options(Inspect, argv, "floq data inspect")
    from floq.analysis.figures.dataset import dataset_picture
    from floq.analysis.figures.style import check_suffix
    from floq.data.description import inspect
    from floq.data.formats.open import open_dataset, with_unit_actions
    from floq.envs.environments import EnvFactory
    from floq.utils.progress import Display

    picture = user_path(options.out or f"{user_path(options.name).absolute().stem}-inspected.png")
    check_suffix(picture)
    check_writable(picture.parent, "give another --out")
    consent(options.env_name or "")
    env = EnvFactory(options.env_name)() if options.env_name else None
    opened = with_unit_actions(open_dataset(options.name, options.dataset_dir, options=options), env, options)
    data, has_rewards, notes = opened.data, opened.has_rewards, opened.notes
    found, display, lines = inspect(data, has_rewards), Display(), []
    display.table(opened.source, found.table)
    if opened.parts:
        lines.append(f"observations are, in this order: {', '.join(opened.parts)}")
    if not has_rewards:
        lines.append("no rewards: name a task, as in cube-single-play-singletask-v0, to see them")
    if env is None and not opened.scaled and not options.rescale_actions:
        notes += ("actions are read as [-1, 1]; --env_name=ID compares them with the bounds of an environment's",)
    for line in (*lines, *notes, *(f"look at this: {warning}" for warning in found.warnings)):
        display.note(f"  {line}")
    is_maze = "maze" in options.name
    with display.tolerate(str(picture)):
        dataset_picture(picture, options.name, data, has_rewards, is_maze)
        display.note(f"  picture     {picture}")


@dataclass(frozen=True)
class Convert(DataOptions):
    """Write a dataset in another format: an npz in OGBench's layout, or a Minari dataset."""

    source: Positional[str]
    """What to read: an OGBench dataset or task, the path of a file or folder, or a Minari id."""
    target: Positional[str]
    """What to write: FILE.npz, a Minari id such as lab/robot-v0, or the path ./robot-v0 of a new Minari folder."""
    env_name: str | None = None
    """The environment whose units the actions are in, with --action_units=env."""
    dataset_dir: str = "~/.ogbench/data"
    """Where OGBench's files are."""


def convert_command(argv: list[str]) -> None:
    """Run `floq data convert`."""
    options = parse_options(Convert, argv, "floq data convert")
    from floq.data.formats.convert import check_target, convert
    from floq.data.formats.open import open_dataset, with_unit_actions
    from floq.envs.environments import EnvFactory
    from floq.utils.progress import Display

    check_target(options.target)
    consent(options.env_name or "")
    env = EnvFactory(options.env_name)() if options.env_name else None
    opened = with_unit_actions(open_dataset(options.source, options.dataset_dir, options=options), env, options)
    data = opened.data
    path = convert(data, opened.has_rewards, options.target, opened.source, opened.parts)
    Display().note(f"wrote {path}: {int((~data.ends).sum()):,} transitions in {int(data.ends.sum()):,} trajectories")
