"""The command `floq sweep`."""

import dataclasses
import importlib.util
from collections.abc import Sequence

from floq.cli.flags import Flags, fields_of, parse
from floq.sweep.options import Placement, SweepOptions
from floq.utils.errors import UserError

FILE_FLAGS = ("budget", "out", "redraw")


def sweep_command(argv: list[str]) -> None:
    """Run `floq sweep`."""
    if not argv:
        raise UserError(
            "floq sweep needs an experiment file, floq sweep experiments/steps.toml, or flags of floq train, as in "
            "floq sweep --seeds 0 1 2"
        )
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    if late := [word for word in argv[count:] if word.endswith(".toml")]:
        raise UserError(f"floq sweep needs its files before the flags: floq sweep {late[0]} ...")
    flags = Flags(argv[count:])
    if count or flags.help:
        _sweep_files(argv[:count], flags)
    else:
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
    from floq.cli.train import check_tasks, resolve_train

    if own := [name for name in flags.values if name in FILE_FLAGS]:
        raise UserError(f"--{own[0]} is about experiment files, and none is given: leave it out")
    options = _options(flags.selected(fields_of(Placement)))
    flags.drop(fields_of(Placement))
    request = resolve_train(flags)
    check_tasks(request.configs)
    from floq.sweep.sweep import sweep_configs
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    sweep_configs(request.configs, dataclasses.replace(options, dry_run=request.dry_run), request.notes)


def _options(flags: Flags) -> SweepOptions:
    options = parse(SweepOptions, flags.normalised(fields_of(SweepOptions)), "floq sweep FILE [FILE ...]")
    ray_flags = [name for name in fields_of(Placement) if name in flags.values]
    if ray_flags and options.address is None:
        raise UserError(f"--{ray_flags[0]} is about a Ray cluster: give --address=auto or --address=local")
    if options.address is not None and importlib.util.find_spec("ray") is None:
        raise UserError("--address needs Ray: pip install 'floq[ray]'")
    return options
