"""The commands `floq report` and `floq watch`: results and progress of runs."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from floq.cli.flags import Flags, command_help, parse
from floq.utils import files
from floq.utils.errors import UserError, nearest
from floq.utils.files import check_writable, user_path
from floq.utils.untrusted import printable

if TYPE_CHECKING:  # it loads SciPy
    from floq.analysis.report.scores import Report

Format = Literal["html", "md", "csv", "png", "pdf"]


@dataclass(frozen=True)
class ReportOptions:
    """Turn runs into a page that needs no network: success with intervals, learning curves, interquartile means, cost,
    health. The folders come first, those of runs or any above them: floq report exp --out report.html. Runs that have
    not ended are shown as such, and nothing in their folders is touched."""

    out: str | None = None
    """The file to write; by default report.html, or as --format says, in the current folder."""
    format: Format | None = None
    """html: a page. md: its tables. csv: a row for each run, and another file with a row for each evaluation.
    png, pdf: figures 3.3 and 6.8 inches wide. By default the suffix of --out, or html."""
    reference: str | None = None
    """The group that others are compared with where there are many; by default the one with the most finished runs."""


@dataclass(frozen=True)
class WatchOptions:
    """Show runs as they train, read from their files: step, success, loss, speed, time left. The folders come first,
    those of runs or any above them: floq watch exp. It ends when all runs have ended, or with Ctrl-C, which stops no
    run."""

    once: bool = False
    """Print the table once, with every run, and exit."""
    seconds: float = 5.0
    """How often the files are read."""


def report_command(argv: list[str]) -> None:
    """Run `floq report`."""
    folders, flags = _folders(argv)
    types = {f.name: f for f in dataclasses.fields(ReportOptions)}
    options = parse(ReportOptions, flags.normalised(types), "floq report RUNS ...", command_help(ReportOptions))
    _require_folders(folders, "floq report exp")
    form, out = _resolve_output(options.out, options.format)
    from floq.analysis.report.groups import group_runs
    from floq.analysis.report.scores import assemble
    from floq.runs.record import find_runs, read_runs

    found = find_runs(folders)
    if inside := [folder for folder in found if out.parent == folder]:
        raise UserError(f"{out} lies in the folder of a run, {inside[0]}: give an --out elsewhere")
    runs, damaged = read_runs(found)
    report = assemble(group_runs(runs), damaged, options.reference)
    if not report.runs:
        first = report.damaged[0]
        raise UserError(f"none of {len(report.damaged)} runs can be read; {first.folder}: {first.reason}")
    for line in write_report(report, form, out):
        print(printable(line))


def write_report(report: "Report", form: Format, out: Path) -> list[str]:
    """Write a report in one of its formats. Return lines about the runs, damaged runs and the files written."""
    counts = ", ".join(f"{count} {state}" for state, count in report.state_counts.items())
    lines = [f"read    {len(report.runs) + len(report.damaged)} runs in {len(report.groups)} groups: {counts}"]
    lines += [f"damaged {damaged.folder}: {damaged.reason}" for damaged in report.damaged]
    if form == "html":
        from floq.analysis.report.page import page

        paths = [_write_text(out, page(report, out.parent))]
    elif form == "md":
        from floq.analysis.report.written import markdown

        paths = [_write_text(out, markdown(report, out.parent))]
    elif form == "csv":
        from floq.analysis.report.written import evaluation_rows, run_rows, write_csv

        paths = [out, out.with_name(f"{out.stem}-evaluations.csv")]
        write_csv(paths[0], run_rows(report))
        write_csv(paths[1], evaluation_rows(report), ("group", "task", "seed", "step"))
    else:
        from floq.analysis.report.figures import draw_figures

        paths, left_out = draw_figures(out.with_suffix(""), form, report)
        lines += [f"left out {figure}" for figure in left_out]
    return [*lines, f"wrote   {' and '.join(map(str, paths))}"]


def watch_command(argv: list[str]) -> None:
    """Run `floq watch`."""
    folders, flags = _folders(argv)
    types = {f.name: f for f in dataclasses.fields(WatchOptions)}
    options = parse(WatchOptions, flags.normalised(types), "floq watch RUNS ...", command_help(WatchOptions))
    _require_folders(folders, "floq watch exp")
    if not options.seconds >= 0.5:
        raise UserError(f"--seconds={options.seconds:g}: give at least 0.5")
    from floq.analysis.report.watch import watch

    watch(folders, once=options.once, seconds=options.seconds)


def _folders(argv: list[str]) -> tuple[list[str], Flags]:
    """Return the folders, which come first, and the flags."""
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[:count], Flags(argv[count:])


def _require_folders(folders: list[str], example: str) -> None:
    if not folders:
        raise UserError(f"which runs? Give their folders, or one above them, before the flags: {example}")


def _resolve_output(out: str | None, form: Format | None) -> tuple[Format, Path]:
    """Return the format and the file to write. Raises UserError if they conflict, or the file cannot be written."""
    known = get_args(Format)
    path = user_path(out).absolute() if out else Path(f"report.{form or 'html'}").absolute()
    suffix = path.suffix.removeprefix(".").lower()
    if form is None and suffix not in known:
        raise UserError(f"--out={out}: end it in {', '.join(f'.{name}' for name in known)}{nearest(suffix, known)}")
    if form is not None and suffix != form:
        if suffix in known:
            raise UserError(f"--out={out} with --format={form}: give one of them, or let them agree")
        path = path.with_name(f"{path.name}.{form}")
    if path.is_dir():
        raise UserError(f"--out={out} is a folder: name a file in it")
    check_writable(path.parent, "give another --out")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: give another --out") from error
    return form or suffix, path  # pyright: ignore[reportReturnType]


def _write_text(path: Path, text: str) -> Path:
    """Write a file, atomically."""
    files.replace(path, text.encode())
    return path
