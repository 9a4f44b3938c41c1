"""The command `floq sweep`."""

import dataclasses
import importlib.util

from floq.cli.flags import fields_of, parse, split_words
from floq.utils.errors import UserError

FILE_FLAGS = ("budget", "out", "grid", "redraw")


def sweep_command(argv: list[str]) -> None:
    """Run `floq sweep`, of experiment files or of flags of `floq train`."""
    if not argv:
        raise UserError(
            "floq sweep needs an experiment file, floq sweep experiments/steps.toml, or flags of floq train, as in "
            "floq sweep --seeds 0 1 2"
        )
    files, flags = split_words(argv)
    if late := [word for word in argv[len(files) :] if word.endswith(".toml")]:
        raise UserError(f"floq sweep needs its files before the flags: floq sweep {late[0]} ...")
    of_files = bool(files or flags.help)
    if own := [name for name in flags.values if name in FILE_FLAGS and not of_files]:
        raise UserError(f"--{own[0]} is about experiment files, and none is given: leave it out")
    from floq.sweep.sweep import RAY_OPTIONS, SweepOptions, sweep, sweep_configs
    from floq.utils.machine import enable_compilation_cache

    seeds = flags.take_seeds() if of_files else []
    ray_flags = [name for name in RAY_OPTIONS if name in flags.values]
    words = (flags if of_files else flags.selected(ray_flags)).normalised(fields_of(SweepOptions))
    options = parse(SweepOptions, words, "floq sweep FILE [FILE ...]")
    if ray_flags and options.address is None:
        raise UserError(f"--{ray_flags[0]} is about a Ray cluster: give --address=auto or --address=local")
    if options.address is not None and importlib.util.find_spec("ray") is None:
        raise UserError("--address needs Ray: pip install 'floq[ray]'")
    if of_files:
        enable_compilation_cache()
        sweep(files, options, seeds)
        return
    from floq.cli.train import check_tasks, resolve_train

    flags.drop(ray_flags)
    request = resolve_train(flags)
    check_tasks(request.configs)
    enable_compilation_cache()
    sweep_configs(request.configs, dataclasses.replace(options, dry_run=request.dry_run), request.notes)
