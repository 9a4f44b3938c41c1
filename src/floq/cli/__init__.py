"""The command line. Parses, calls one function, turns a `UserError` into one line and exit code 2."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from floq.cli.data import collect_command, convert_command, inspect_command
from floq.cli.export import export_command
from floq.cli.flags import Flags, described, parse
from floq.cli.inspect import inspect_run_command
from floq.cli.report import report_command, watch_command
from floq.cli.sweep import sweep_command
from floq.cli.train import parse_train, resolve_train
from floq.utils.errors import Failed, Interrupted, UserError, nearest
from floq.utils.signals import number_of, raise_signals
from floq.utils.untrusted import printable

USAGE = """\
floq: reinforcement learning with a Q-function that is integrated, not looked up

  floq train               train an agent; with no arguments, the demonstration
  floq eval RUN_DIR        evaluate a checkpoint again
  floq inspect RUN_DIR     pictures of what a run's critic has learned, and of how; with --video a film
  floq export RUN_DIR      its policy as a folder that acts with NumPy alone; also for ONNX and StableHLO
  floq bench               what K and a fleet cost on this machine
  floq sweep FILE          train what an experiment file compares, and draw what came of it; with --address on Ray
  floq watch RUNS          how runs are getting on, live
  floq report RUNS         what runs came to: a page with tables and curves, or files for a paper
  floq data collect NAME   make an OGBench dataset with an expert
  floq data inspect NAME   what is in a dataset: a table, a picture, and what would hurt training
  floq data convert A B    write a dataset as an OGBench npz or for Minari

Each command explains its options with --help.
"""


def run(argv: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 the input is wrong, 128 + n after signal n, 1 otherwise."""
    commands: dict[tuple[str, ...], Callable[[list[str]], None]] = {
        ("train",): _train,
        ("eval",): _eval,
        ("inspect",): inspect_run_command,
        ("export",): export_command,
        ("bench",): _bench,
        ("sweep",): sweep_command,
        ("watch",): watch_command,
        ("report",): report_command,
        ("data", "collect"): collect_command,
        ("data", "inspect"): inspect_command,
        ("data", "convert"): convert_command,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        with raise_signals():
            _command_of(argv, commands)()
        return 0
    except UserError as error:
        return _told(error, 2)
    except Failed as error:
        return _told(error, 1)
    except KeyboardInterrupt as stop:
        return _told(f"stopped by {number_of(stop).name}", 128 + number_of(stop))
    except Interrupted as error:
        return _told(error, 128 + error.signum)


def _command_of(argv: list[str], commands: dict[tuple[str, ...], Callable[[list[str]], None]]) -> Callable[[], None]:
    """What the words ask for. Raises UserError if there is no such command."""
    for words, command in commands.items():
        if tuple(argv[: len(words)]) == words:
            return lambda: command(argv[len(words) :])
    typed = " ".join(argv[: 2 if argv[0] == "data" else 1])
    known = [" ".join(words) for words in commands]
    raise UserError(f"unknown command {typed!r}; commands are {', '.join(known)}{nearest(typed, known)}")


def _told(what: Exception | str, code: int) -> int:
    """Say how a command ended, in one line whatever names of files and settings are in it, and return its exit code."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"floq: {printable(str(what))}".replace("\n", " "), file=sys.stderr)
    return code


# --- floq train ---


@dataclass(frozen=True)
class Resume:
    """Continue a run from its newest checkpoint, exactly. Its settings stay as they are; step counts may change, and
    how it learns online as long as it does not. With several folders, runs that stopped at the same step go on as one
    fleet."""

    offline_steps: int | None = None
    """New total of gradient steps on the dataset; by default the run's own."""
    online_steps: int | None = None
    """New total of environment steps after that."""
    restart_failed_envs: bool | None = None
    """Go on with a fresh environment where one fails."""
    env_timeout: float | None = None
    """Seconds that a step of the environments may take, of all that a process steps at once."""
    utd: float | None = None
    """Gradient steps for each environment step."""
    num_envs: int | None = None
    """Environments that are stepped at once."""
    warmup_steps: int | None = None
    """Environment steps before gradient steps begin."""
    buffer_size: int | None = None
    """Transitions that online batches are drawn from."""
    balanced_sampling: Literal[0, 1] | None = None
    """1 takes half of each batch from the dataset and half from new experience."""
    logger: tuple[Literal["tensorboard", "wandb"], ...] | None = None
    """Where rows go besides the CSV files; by default where they went before."""
    on_divergence: Literal["stop", "rewind"] | None = None
    """Where a target, loss or gradient is not finite: stop the run, or go back to earlier weights."""
    keep_checkpoints: int | None = None
    """The newest checkpoints that are kept."""
    checkpoint_minutes: float | None = None
    """Write a checkpoint after so many minutes without one, too."""
    distributed: str | None = None
    """Divide the runs over several hosts, as in training."""
    dry_run: bool = False
    """Print the resolved configuration."""


def _train(argv: list[str]) -> None:
    if any(re.match(r"--resume(=|$)", word) for word in argv):
        return _resume(argv)
    request = parse_train(argv)
    if not request.dry_run:
        from floq.envs.environments import check_task

        for config in request.configs:
            if (
                config.dataset is None and not config.from_scratch
            ):  # before JAX is loaded, since a wrong name is the commonest mistake
                check_task(config.env_name)
    if request.dry_run:
        for note in request.notes:
            print(f"floq: {note}", file=sys.stderr)
        return _print_configs(request.configs)
    from floq.training.train import train_fleet

    hosts = _start_jax(request.distributed, request.configs)
    train_fleet(request.configs, notes=request.notes, hosts=hosts)


def _resume(argv: list[str]) -> None:
    flags = Flags(argv)
    folders = flags.take_list("resume")
    types = {f.name: f for f in dataclasses.fields(Resume)}
    for name in flags.names():
        if name not in types:
            raise UserError(
                f"--{name} with --resume: a run goes on with its own settings, only --offline_steps, --online_steps "
                "and how it learns online may change"
            )
    if not flags.help and not folders:
        raise UserError("--resume needs a run's folder, or several")
    options = parse(Resume, flags.normalised(types), "floq train --resume RUN_DIR", described(Resume))
    from floq.runs.run import Run
    from floq.training.resume import continued, resume_fleet

    changes = {name: x for name, x in vars(options).items() if x is not None and name not in ("distributed", "dry_run")}
    if options.dry_run:
        return _print_configs([continued(Run.open(folder), changes) for folder in folders])
    hosts = _start_jax(options.distributed, runs=[Run.open(folder) for folder in folders])
    resume_fleet(folders, hosts=hosts, **changes)


def _start_jax(distributed: str | None = None, configs: Sequence[Any] = (), runs: Sequence[Any] = ()) -> Any:
    """Have compiled programs kept between processes, and meet the other hosts if there are any; the first of them
    brings the data of the configurations, or of the runs that go on."""
    from floq.runs.run_data import fetch_missing
    from floq.training.hosts import ALONE, meet
    from floq.utils.machine import enable_compilation_cache
    from floq.utils.progress import Display

    enable_compilation_cache()
    if distributed is None:
        return ALONE
    display = Display()
    configs = [*configs, *(run.config for run in runs)]
    return meet(distributed, lambda: fetch_missing(configs, display, runs), display.note)


def _print_configs(configs: list[Any]) -> None:
    """One JSON object: the configuration; of several, a list where they differ."""
    import json

    shown = configs[0].to_json()
    others = [config.to_json() for config in configs]
    for values, theirs in ((shown["agent"], [other["agent"] for other in others]), (shown, others)):
        for name in dict.fromkeys(name for other in theirs for name in other if name != "agent"):
            if len({json.dumps(other.get(name)) for other in theirs}) > 1:
                values[name] = [other.get(name) for other in theirs]
    if isinstance(shown["seed"], list):
        shown = {"seeds" if name == "seed" else name: value for name, value in shown.items()}
    print(json.dumps(shown, indent=2))


# --- floq eval ---


@dataclass(frozen=True)
class Eval:
    """Evaluate a checkpoint of a run. The same command gives the same number, whatever the number of workers."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    eval_episodes: int = 50
    """Episodes."""
    seed: int | None = None
    """Episodes are drawn with this seed; by default the run's, which repeats the evaluation of its training."""
    success_timing: Literal["post", "pre"] | None = None
    """post or pre; by default as in training."""
    workers: int | None = None
    """Processes; by default one per core."""
    acting_flow_steps: int | None = None
    """Integration steps (K) with which an actor ranks actions by the flow itself; by default as in training."""


def _eval(argv: list[str]) -> None:
    options = parse(Eval, argv, "floq eval", described(Eval))
    from floq.analysis.evaluate_run import evaluate_run

    _start_jax()
    evaluate_run(**dataclasses.asdict(options))


# --- floq bench ---


@dataclass(frozen=True)
class Bench:
    """Measure what K and the size of a fleet cost on this machine, against the monolithic critic, on random data of a
    task's sizes. The flags of floq train say what is measured: --env_name, --precision, --preset, --agent.block_width
    and the others that floq train --help explains."""

    ks: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of integration steps."""
    fleets: tuple[int, ...] = (1, 4, 8, 16)
    """Numbers of runs."""
    seconds: float = 2.0
    """Each of the three tries of a row takes about this long."""
    evaluate: bool = True
    """Measure evaluation as well."""
    out: str | None = None
    """Write the rows to this CSV file."""


def _bench(argv: list[str]) -> None:
    flags, types = Flags(argv), {f.name: f for f in dataclasses.fields(Bench)}
    own = flags.split(types)
    options = parse(Bench, own.normalised(types), "floq bench", described(Bench))
    if "agent.critic_flow_steps" in flags.names():
        raise UserError("--agent.critic_flow_steps: floq bench goes through several K, name them with --ks")
    request = resolve_train(flags)
    if request.distributed:
        raise UserError("--distributed: floq bench measures one machine; leave it out")
    if len(request.configs) > 1:
        raise UserError("floq bench takes one value for each flag of floq train; --fleets says how many runs")
    if request.dry_run:
        return _print_configs(request.configs)
    from floq.training.bench import bench

    bench(request.configs[0], **dataclasses.asdict(options))
