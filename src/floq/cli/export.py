"""The command `floq export`."""

from floq.cli.flags import parse_options


def export_command(argv: list[str]) -> None:
    """Run `floq export`."""
    from floq.export.export_run import ExportOptions, export_run
    from floq.utils.machine import enable_compilation_cache

    options = parse_options(ExportOptions, argv, "floq export")
    enable_compilation_cache()
    export_run(options)
