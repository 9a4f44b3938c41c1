"""Interactive charts of the page. Their texts and lines take the colours of the page, light or dark, from its style
sheet; the colours of groups are legible on both."""

import html
import textwrap
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import plotly.io

from floq.analysis.report.scores import Report, TaskScores

PALETTE = ("#3b82c4", "#dd6b4d", "#4f9e30", "#a367b8", "#b9792f", "#1a9a8f", "#e07ab0", "#c99a10")
DASHES = ("solid", "dash", "dot", "dashdot")
CROWDED = 20  # runs that are still distinguishable in one chart
BANDS = 3  # groups whose intervals are still distinguishable when they overlap
TRANSPARENT = "rgba(0,0,0,0)"
BUTTONS = ("zoom2d", "pan2d", "resetScale2d", "toImage")
CONFIG = {"responsive": True, "displaylogo": False, "modeBarButtons": [list(BUTTONS)]}
Look = tuple[str, str]
"""A colour and a line style."""


def looks(report: Report) -> dict[str, Look]:
    """Assign each group a colour and a line style: colours vary first; after 32 groups they repeat."""
    names = [group.name for group in report.groups]
    return {name: (PALETTE[n % 8], DASHES[n // 8 % 4]) for n, name in enumerate(names)}


def curve_chart(task: TaskScores, looks: Mapping[str, Look]) -> go.Figure:
    """Draw the learning curves of a task: every run thin, the mean of each group thick, with its interval."""
    chart, metric, form = _chart(), task.metric, ".1%" if task.metric.is_rate else ".4g"
    for name, run, steps, values in task.lines:  # first, so that the means lie above them
        hover = f"seed {run.seed}, step %{{x:,}}<br>{metric.name} %{{y:{form}}}" + (
            "" if run.ends else f", {run.state}"
        )
        style = {"color": looks[name][0], "width": 1 if run.ends else 1.5, "dash": "solid" if run.ends else "dot"}
        opacity = 0.9 if not run.ends else 0.45 if len(task.lines) <= CROWDED else 0.15
        chart.add_scatter(x=steps, y=values, line=style, opacity=opacity, **_of(name, hover, len(steps)))
    for name, found in task.means.items():
        if found.over != "nothing":
            known = abs(found.low) < float("inf")
            band = found.steps[known], found.low[known], found.high[known]
            _add_band(chart, *band, name, looks[name][0], len(task.cells) <= BANDS)
        style = {"color": looks[name][0], "width": 2.5, "dash": looks[name][1]}
        over = f"mean of {found.number} runs" if found.number > 1 else "the only run"
        over += "" if found.has_ended else ", which have not ended"
        hover = f"{over}, step %{{x:,}}<br>{metric.name} %{{y:{form}}}"
        chart.add_scatter(x=found.steps, y=found.values, line=style, **_of(name, hover, len(found.steps)))
    chart.update_xaxes(tickformat="~s", title_text=task.step_name)
    chart.update_yaxes(title_text=metric.name)
    if metric.is_rate:
        chart.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    for boundary in task.boundaries:
        chart.add_vline(boundary, line={"dash": "dash", "width": 1, "color": "#888"}, annotation_text="online")
    return chart


def profile_chart(report: Report, looks: Mapping[str, Look]) -> go.Figure:
    """Draw performance profiles: for each threshold, the share of runs that are above it."""
    chart = _chart()
    banded = len(report.aggregates) <= BANDS
    for name, found in report.aggregates.items():
        colour, dash = looks[name]
        share, low, high = found.profile
        if (abs(low) <= 1).all():
            _add_band(chart, report.thresholds, low, high, name, colour, banded)
        hover = "%{y:.0%} of runs are above %{x:.0%}"
        style = {"color": colour, "width": 2.5, "dash": dash, "shape": "hv"}
        chart.add_scatter(x=report.thresholds, y=share, line=style, **_of(name, hover, len(share)))
    chart.update_xaxes(title_text="success rate, threshold", tickformat=".0%", range=[0, 1])
    chart.update_yaxes(title_text="share of runs above it", tickformat=".0%", range=[-0.03, 1.03])
    return chart


def as_html(chart: go.Figure, name: str) -> str:
    """Render the chart as HTML for a page that includes plotly.js. `name` is its id in the page."""
    return plotly.io.to_html(chart, config=CONFIG, include_plotlyjs=False, full_html=False, div_id=name)


def _chart() -> go.Figure:
    chart = go.Figure()
    chart.update_layout(
        template="none",
        showlegend=False,
        height=300,
        margin={"l": 56, "r": 12, "t": 28, "b": 44},
        paper_bgcolor=TRANSPARENT,
        plot_bgcolor=TRANSPARENT,
        modebar={"bgcolor": TRANSPARENT},
        hovermode="closest",
        font={"family": "system-ui, sans-serif", "size": 12},
        hoverlabel={"font": {"color": "white"}, "align": "left", "namelength": 0},
    )
    chart.update_xaxes(zeroline=False, automargin=True, nticks=6)
    chart.update_yaxes(zeroline=False, automargin=True)
    return chart


def _of(name: str, hover: str, points: int) -> dict[str, Any]:
    """Return the properties that traces of a group share; a single point becomes a marker. Plotly parses texts as
    HTML."""
    wrapped = "<br>".join(html.escape(line) for line in textwrap.wrap(name, 38)).replace("%{", "% {")
    template = f"<b>{wrapped}</b><br>{hover}<extra></extra>"
    return {"legendgroup": name, "mode": "lines" if points > 1 else "markers", "hovertemplate": template}


def _add_band(chart: go.Figure, x: Any, low: Any, high: Any, name: str, colour: str, visible: bool) -> None:
    """Add an interval. The page shows it while few groups are selected, and identifies it by its `meta`."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    shared: dict[str, Any] = {"legendgroup": name, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
    shared |= {"meta": "band", "visible": visible}
    chart.add_scatter(x=x, y=low, **shared)
    chart.add_scatter(x=x, y=high, fill="tonexty", fillcolor=f"rgba({red},{green},{blue},0.15)", **shared)
