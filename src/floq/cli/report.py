"""The commands `floq report` and `floq watch`: results and progress of runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tyro.conf import Positional

from floq.cli.flags import parse_options
from floq.utils.errors import UserError, in_one_line, nearest
from floq.utils.files import check_writable, replace, user_path
from floq.utils.untrusted import printable

Format = Literal["html", "md", "csv", "png", "pdf"]
NO_FOLDERS = "which runs? Give their folders, or one above them, before the flags"


@dataclass(frozen=True)
class Report:
    """Turn runs into a page that needs no network: success with intervals, learning curves, averages over tasks, cost,
    health. The folders come first, those of runs or any above them: floq report exp --out report.html. Runs that have
    not ended are shown as such, and nothing in their folders is touched."""

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, or above them."""
    out: str | None = None
    """The file to write; by default report.html, or as --format says, in the current folder."""
    format: Format | None = None
    """html: a page. md: its tables. csv: a row for each run, and another file with a row for each evaluation.
    png, pdf: figures 3.3 and 6.8 inches wide. By default the suffix of --out, or html."""
    reference: str | None = None
    """The group that others are compared with where there are many; by default the one with the most finished runs."""


@dataclass(frozen=True)
class Watch:
    """Show runs as they train, read from their files: step, success, loss, speed, time left. The folders come first,
    those of runs or any above them: floq watch exp. It ends when all runs have ended, or with Ctrl-C, which stops no
    run."""

    runs: Positional[tuple[str, ...]] = ()
    """Folders of runs, or above them."""
    once: bool = False
    """Print the table once, with every run, and exit."""
    seconds: float = 5.0
    """How often the files are read."""


def report_command(argv: list[str]) -> None:
    """Run `floq report`."""
    options = parse_options(Report, argv, "floq report")
    if not options.runs:
        raise UserError(f"{NO_FOLDERS}: floq report exp")
    form, out = _resolve_output(options.out, options.format)
    from floq.analysis.report.csv_files import evaluation_rows, run_rows, write_csv
    from floq.analysis.report.figures import WIDTHS, draw_figure
    from floq.analysis.report.groups import group_runs
    from floq.analysis.report.page import markdown, page
    from floq.analysis.report.scores import assemble
    from floq.runs.record import find_runs, read_runs

    found = find_runs(options.runs)
    if inside := [folder for folder in found if out.parent == folder]:
        raise UserError(f"{out} lies in the folder of a run, {inside[0]}: give an --out elsewhere")
    runs, damaged = read_runs(found)
    report, paths, left_out = assemble(group_runs(runs), damaged, options.reference), [out], []
    if not report.runs:
        raise UserError(f"none of {len(damaged)} runs can be read; {damaged[0].folder}: {damaged[0].reason}")
    if form in ("html", "md"):
        replace(out, (page if form == "html" else markdown)(report, out.parent).encode())
    elif form == "csv":
        paths.append(out.with_name(f"{out.stem}-evaluations.csv"))
        write_csv(out, run_rows(report))
        write_csv(paths[1], evaluation_rows(report), ("group", "task", "seed", "step"))
    else:
        paths = []
        for end in WIDTHS:
            path = out.with_name(f"{out.stem}-{end}.{form}")
            try:
                left_out += draw_figure(path, report, end)
                paths.append(path)
            except Exception as error:  # Matplotlib may raise anything
                left_out.append(f"{path}: {in_one_line(error)}")
    counts = ", ".join(f"{count} {state}" for state, count in report.state_counts.items())
    lines = [f"read    {len(found)} runs in {len(report.groups)} groups: {counts}"]
    lines += [f"damaged {one.folder}: {one.reason}" for one in damaged]
    lines += [f"left out {figure}" for figure in dict.fromkeys(left_out)]
    for line in [*lines, f"wrote   {' and '.join(map(str, paths)) or 'nothing'}"]:
        print(printable(line))


def watch_command(argv: list[str]) -> None:
    """Run `floq watch`."""
    options = parse_options(Watch, argv, "floq watch")
    if not options.runs:
        raise UserError(f"{NO_FOLDERS}: floq watch exp")
    if not options.seconds >= 0.5:
        raise UserError(f"--seconds={options.seconds:g}: give at least 0.5")
    from floq.analysis.report.watch import watch

    watch(options.runs, once=options.once, seconds=options.seconds)


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
