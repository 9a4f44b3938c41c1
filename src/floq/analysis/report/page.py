"""Report as one self-contained HTML page, which needs no network and no other file, and as Markdown. The templates
beside this file say what they look like."""

import functools
import re
import time
from pathlib import Path
from typing import Any

import jinja2

from floq.analysis.report import figures, tables
from floq.analysis.report.scores import Report
from floq.analysis.report.tables import Section, join_names, link
from floq.utils.machine import version


def page(report: Report, folder: Path) -> str:
    """Render the page; links to run folders are relative to `folder`, where it will be written."""
    looks, sections = figures.group_looks(report), tables.sections(report)
    drawn = {
        section.title: [figures.curves_svg(task, looks) for task in report.tasks if task.metric is section.metric]
        for section in sections
    }
    families, count = list(dict.fromkeys(task.family for task in report.tasks)), len(report.runs) + len(report.damaged)
    return _render(
        "page.html.j2",
        folder,
        title=f"{count} {'run' if count == 1 else 'runs'} of {join_names(families, 3)}",
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=version("floq"),
        report=report,
        looks=looks,
        sections=sections,
        figures=drawn | {"Over all tasks": figures.aggregate_svgs(report, looks)},
        bands=figures.BANDS,
    )


def markdown(report: Report, folder: Path) -> str:
    """Format the tables of the report in Markdown; links to run folders are relative to `folder`."""
    return _render("report.md.j2", folder, sections=tables.sections(report), question="")


def comparison_markdown(report: Report, title: str, question: str = "") -> str:
    """Format the tables of an experiment in Markdown."""
    pairs = tables.paired_differences(report, report.metric)
    found = [table for table in (tables.over_all_tasks(report), pairs, tables.diagnosis(report)) if table.rows]
    return _render("report.md.j2", Path(), sections=[Section(title, found)], question=question)


def _render(template: str, folder: Path, **values: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("floq", "analysis/report"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["escaped"] = _escaped
    return environment.get_template(template).render(link=functools.partial(link, folder=folder), **values)


def _escaped(text: str) -> str:
    """Escape Markdown, so that a name cannot end its cell, make a link or a footnote, or emphasise."""
    text = re.sub(r"([\\|*<>`])", r"\\\1", text)
    return re.sub(r"(?<!\w)_|_(?!\w)|\](?=[(\[:])|\[(?=\^)", r"\\\g<0>", text)
