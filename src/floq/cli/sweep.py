"""The command `floq sweep`."""

import dataclasses
import importlib.util
from collections.abc import Sequence

from floq.cli.flags import Flags, command_help, parse
from floq.sweep.options import Placement, SweepOptions
from floq.utils.errors import UserError

FILE_FLAGS = ("budget", "out", "redraw")


def sweep_command(argv: list[str]) -> None:
    """Run `floq sweep`."""
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    files, flags = argv[:count], Flags(argv[count:])
    if late := [word for word in argv[count:] if word.endswith(".toml")]:
        raise UserError(f"floq sweep needs its files before the flags: floq sweep {late[0]} ...")
    if files or flags.help:
        return _sweep_files(files, flags)
    if not argv:
        raise UserError(
            "floq sweep needs an experiment file, floq sweep experiments/steps.toml, or flags of floq train, as in "
            "floq sweep --seeds 0 1 2"
        )
    _sweep_flags(flags)


def _sweep_files(files: Sequence[str], flags: Flags) -> None:
    seeds = flags.take_seeds()
    options = _options(flags)
    from floq.sweep.sweep import sweep
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    sweep(files, options, seeds)


def _sweep_flags(flags: Flags) -> None:
    """Train the runs that flags of `floq train` describe."""
    from floq.cli.train import resolve_train

    if own := [name for name in flags.names() if name in FILE_FLAGS]:
        raise UserError(f"--{own[0]} is about experiment files, and none is given: leave it out")
    options = _options(flags.split([f.name for f in dataclasses.fields(Placement)]))
    request = resolve_train(flags)
    from floq.envs.environments import check_task

    for config in request.configs:
        if config.dataset is None and not config.from_scratch:
            check_task(config.env_name)
    from floq.sweep.sweep import sweep_configs
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    sweep_configs(request.configs, dataclasses.replace(options, dry_run=request.dry_run), request.notes)


def _options(flags: Flags) -> SweepOptions:
    types = {f.name: f for f in dataclasses.fields(SweepOptions)}
    options = parse(SweepOptions, flags.normalised(types), "floq sweep FILE [FILE ...]", command_help(SweepOptions))
    ray_flags = [f.name for f in dataclasses.fields(Placement) if f.name in flags.names()]
    if ray_flags and options.address is None:
        raise UserError(f"--{ray_flags[0]} is about a Ray cluster: give --address=auto or --address=local")
    if options.address is not None and importlib.util.find_spec("ray") is None:
        raise UserError("--address needs Ray: pip install 'floq[ray]'")
    return options
