"""Report as one self-contained HTML page, which needs no network and no other file."""

import functools
import html
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from floq.analysis.metrics import METRICS
from floq.analysis.report import charts, tables
from floq.analysis.report.scores import Report
from floq.analysis.report.tables import join_names, link, short_task
from floq.utils.errors import in_one_line
from floq.utils.machine import version
from floq.utils.untrusted import printable


def page(report: Report, folder: Path) -> str:
    """Render the page; links to run folders are relative to `folder`, where it will be written."""
    looks = charts.looks(report)
    sections: list[dict[str, Any]] = []
    for metric in METRICS.values():
        tasks = [task for task in report.tasks if task.metric is metric]
        if tasks:
            found = {"title": metric.name.capitalize(), "tables": tables.results(report, tasks), "charts": []}
            for task in tasks:
                number = f"chart-{len(sections)}-{len(found['charts'])}"
                chart = _chart(functools.partial(charts.curve_chart, task, looks), number)
                found["charts"].append((short_task(task.name), chart, len(task.cells) > charts.BANDS))
            sections.append(found)
    intervals = {name: found.iqm for name, found in report.aggregates.items()}
    profile = None
    if report.aggregates:
        profile = _chart(functools.partial(charts.profile_chart, report, looks), "chart-profiles")
    return _template().render(
        title=_title(report),
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=version("floq"),
        report=report,
        looks=looks,
        sections=sections,
        tables={
            "overview": tables.overview(report),
            "published": tables.beside_published(report),
            "aggregates": tables.aggregates(report),
            "improvements": tables.improvements(report),
            "costs": tables.costs(report),
            "health": tables.health(report),
            "differences": tables.settings_table(report),
            "runs": tables.runs(report),
        },
        intervals=intervals,
        profile=profile,
        bands=charts.BANDS,
        link=functools.partial(link, folder=folder),
        plotly_js=get_plotlyjs(),
    )


def _chart(draw: Callable[[], go.Figure], name: str) -> str:
    """Render a chart as HTML, or why it is left out."""
    try:
        return charts.as_html(draw(), name)
    except Exception as error:  # a run's numbers may be anything
        return f"<p>left out: {html.escape(printable(in_one_line(error)))}</p>"


def _title(report: Report) -> str:
    families = list(dict.fromkeys(task.family for task in report.tasks))
    count = len(report.runs) + len(report.damaged)
    return f"{count} {'run' if count == 1 else 'runs'} of {join_names(families, 3)}"


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("floq", "analysis/report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html.j2")
