"""Figures of a run over its training: its learning curve, and the diagnostic metrics of its critic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from floq.analysis.figures.style import BLUE, GREY, ORANGE, figure, label_steps
from floq.analysis.metrics import DIAGNOSTICS, RETURN, SCORE, SUCCESS, with_score
from floq.analysis.statistics import wilson_interval
from floq.runs.record import OF_CRITIC
from floq.runs.run import Run, protocol

SUMMARISED = ("curvature", "z0_spread", "return_spread", "quantile_spread", "abs_td_error")
"""Diagnostic metrics in the sentence on them."""


def draw_learning_curve(run: Run, path: Path) -> str:
    """Draw eval.csv, which must have a row: success with its 95% interval over episodes, or return, beside that of the
    exploration episodes from which it learned. Returns a sentence on the result."""
    columns, config = run.evaluations(), run.config
    title = f"{config.task}, seed {config.seed}"
    if "evaluation/initial_value" in columns:
        return _draw_held_out(path, title, columns)
    known = (metric for metric in (SUCCESS, SCORE) if np.isfinite(columns.get(metric.column, [])).any())
    metric = next(known, RETURN)
    steps, values, note = columns["step"], np.array(columns[metric.column]), protocol(config)
    with figure(path, 6.4, 4.0, title=title) as (_, (ax,)):
        if metric.is_rate:
            values, count = np.nan_to_num(values), config.eval_episodes
            low, high = np.transpose([wilson_interval(round(value * count), count) for value in values])
            ax.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
            ax.set_ylim(-0.03, 1.05)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
            note = f"shaded: 95% interval over {note}"
        ax.plot(steps, values, "o-", color=BLUE, markersize=4)
        shown, at = f"{values[-1]:.0%}" if metric.is_rate else metric.shown(values[-1]), (steps[-1], values[-1])
        ax.annotate(shown, at, (6, 0), textcoords="offset points", va="center", color=BLUE)
        log = with_score(run.training(), config.score_range) if config.online_steps else {}
        explored = np.array(log.get(metric.column.replace("evaluation", "exploration"), []))
        if (known := np.isfinite(explored)).any():
            ax.plot(np.array(log["step"])[known], explored[known], color=ORANGE, linewidth=0.8, label="exploring")
            ax.legend(fontsize=8)
        label_steps(ax, config.offline_steps if config.online_steps else None)
        ax.set_ylabel(metric.name)
        ax.text(0.0, -0.19, note, transform=ax.transAxes, fontsize=8, color=GREY, va="top")
    return f"{metric.name} {shown} at step {steps[-1]:.0f}"


def _draw_held_out(path: Path, title: str, columns: Mapping[str, Sequence[float]]) -> str:
    """Draw the evaluation of a run without an environment: the critic's value of its policy beside the return of the
    data from the same states, and the TD error of held-out transitions."""
    steps, td_errors = columns["step"], np.array(columns["evaluation/td_error"])
    with figure(path, 8.0, 3.8, 1, 2, title) as (_, (left, right)):
        name = "policy, according to the critic"
        left.plot(steps, columns["evaluation/initial_value"], "o-", color=BLUE, markersize=4, label=name)
        left.plot(steps, columns["evaluation/data_return"], "--", color=ORANGE, label="data, discounted return")
        left.set_ylabel("value of held-out initial states")
        left.legend(fontsize=8)
        right.plot(steps, td_errors, "o-", color=BLUE, markersize=4)
        right.set_ylabel("mean |TD error|, held-out transitions")
        if (finite := td_errors[np.isfinite(td_errors)]).size:
            right.set_ylim(0, 1.1 * finite.max() or 1.0)
        for ax in (left, right):
            label_steps(ax, None)
    return f"TD error {td_errors[-1]:.3g} at step {steps[-1]:.0f}"


def draw_diagnosis(path: Path, columns: Mapping[str, Sequence[float]], boundary: int | None, title: str) -> str | None:
    """Draw a panel for each diagnostic metric in these columns of train.csv. `boundary`: the step at which the run goes
    online, if it does. Returns a sentence on the result; None, and nothing is drawn, if there are no numbers."""
    known = {}
    for name in DIAGNOSTICS:
        pairs = zip(columns.get("step", ()), columns.get(OF_CRITIC + name, ()), strict=False)
        if points := [(step, value) for step, value in pairs if np.isfinite(value)]:
            known[name] = np.array(points)
    if not known:
        return None
    across = min(4, len(known)) if len(known) not in (5, 6, 9) else 3
    down = -(-len(known) // across)
    with figure(path, 3.2 * across, 2.5 * down + 0.6, down, across, title) as (_, axes):
        for (name, points), ax in zip(known.items(), axes, strict=False):
            ax.plot(*points.T, "o-", color=BLUE, markersize=3, linewidth=1.4)
            ax.set_title(name, fontsize=10)
            ax.set_ylabel(DIAGNOSTICS[name], fontsize=7.5)
            if points[:, 1].min() >= 0:
                ax.set_ylim(0, 1.1 * points[:, 1].max() or 1.0)
            label_steps(ax, boundary, 7)
    said = []
    for name in SUMMARISED:
        if (points := known.get(name)) is not None:
            said.append(f"{name} {points[0, 1]:.3g} at step {points[0, 0]:.0f}")
            said += [f"{points[-1, 1]:.3g} at {points[-1, 0]:.0f}"] if len(points) > 1 else []
    return ", ".join(said)
