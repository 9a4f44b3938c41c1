"""Learning curve of one run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import PercentFormatter

from floq.analysis.figures.style import BLUE, GREY, ORANGE, figure, label_steps
from floq.analysis.metrics import RETURN, SUCCESS
from floq.analysis.statistics import wilson_interval
from floq.runs.run import Run, protocol


def draw_learning_curve(run: Run) -> None:
    """Draw `learning_curve.png` in the run's `plots` from eval.csv, if there is one: success with its 95% interval over
    episodes, or return, beside that of the exploration episodes from which it learned."""
    columns, config = run.evaluations(), run.config
    if not columns:
        return
    path, title = run.folder / "plots" / "learning_curve.png", f"{config.task}, seed {config.seed}"
    if "evaluation/initial_value" in columns:
        return _draw_held_out(path, title, columns)
    metric = SUCCESS if np.isfinite(columns.get(SUCCESS.column, [])).any() else RETURN
    steps, values = columns["step"], np.array(columns[metric.column])
    with figure(path, 6.4, 4.0, title=title) as (_, (ax,)):
        note = protocol(config)
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
        log = run.training() if config.online_steps else {}
        explored = np.array(log.get(metric.column.replace("evaluation", "exploration"), []))
        if (known := np.isfinite(explored)).any():
            ax.plot(np.array(log["step"])[known], explored[known], color=ORANGE, linewidth=0.8, label="exploring")
            ax.legend(fontsize=8)
        label_steps(ax, config.offline_steps if config.online_steps else None)
        ax.set_ylabel(metric.name)
        ax.text(0.0, -0.19, note, transform=ax.transAxes, fontsize=8, color=GREY, va="top")


def _draw_held_out(path: Path, title: str, columns: Mapping[str, Sequence[float]]) -> None:
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
