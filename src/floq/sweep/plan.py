"""Plan of a sweep: the runs of its experiments, which of them have ended, and the cost of the others."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from floq.analysis.cost import Cost, cost_of
from floq.analysis.matching import matched
from floq.envs import ogbench
from floq.envs.environments import task_dims
from floq.runs.config import Config
from floq.runs.run import Run
from floq.runs.run_data import resolve_data_paths
from floq.sweep.experiment import Experiment, Group, resolve
from floq.training.train import check_built, fleets
from floq.utils.errors import UserError, nearest
from floq.utils.progress import Display


@dataclass(frozen=True)
class Entry:
    """The runs of one group on one task: their resolved configurations, and the cost of one of them."""

    experiment: Experiment
    group: Group
    task: str
    configs: tuple[Config, ...]
    cost: Cost

    @property
    def finished(self) -> list[Run | None]:
        """The finished run of each configuration, None if there is none."""
        return [next((run for run in runs_of(config) if run.is_finished), None) for config in self.configs]


def plan(experiment: Experiment, save_dir: str, dataset_dir: str) -> list[Entry]:
    """Return the runs of an experiment, group by group and task by task.

    Raises:
        UserError: a group, a setting or a task of the file is wrong.
    """
    named, datasets = experiment.budget.data, {ogbench.dataset_name(task) for task in experiment.budget.tasks}
    if unknown := sorted(named.keys() - datasets):
        raise UserError(f"{experiment.budget.path}: data: {unknown[0]} is of no task{nearest(unknown[0], datasets)}")
    resolved = {(g.name, task): resolve(experiment, g, task) for g in experiment.groups for task in experiment.tasks}
    for (_, task), config in resolved.items():
        if not config.from_scratch:
            ogbench.check_task(task)
    entries = []
    for group in experiment.groups:
        for task in experiment.tasks:
            config = resolved[group.name, task]
            dims = task_dims(config.make_env)
            if group.match is not None:
                reference = resolved[group.match_to or "", task].agent
                agent = matched(config.agent, reference, *dims, group.match, group.match_by or "width")
                config = dataclasses.replace(config, agent=agent)
            check_built(config)
            config = resolve_data_paths(dataclasses.replace(config, save_dir=save_dir, dataset_dir=dataset_dir))
            configs = tuple(dataclasses.replace(config, seed=seed) for seed in experiment.seeds)
            entries.append(Entry(experiment, group, task, configs, cost_of(config.agent, *dims)))
    return entries


def runs_of(config: Config) -> list[Run]:
    """Return the runs with this resolved configuration and seed, the newest first. A run that was resumed with another
    number of steps is not among them."""
    runs = [Run.open(folder, makes_env=False) for folder in folders_of(config)]
    return [run for run in runs if run.config == config]


def folders_of(config: Config) -> list[Path]:
    """Return the folders whose names fit this configuration and seed, the newest first, without reading them."""
    found = Run.parent(config).glob(f"sd{config.seed:03d}_*_{config.digest()}/config.json")
    return sorted((path.parent for path in found), reverse=True)


def unfinished(configs: Iterable[Config]) -> list[Config]:
    """Return those of these resolved configurations of which no run has ended, each once."""
    return [config for config in dict.fromkeys(configs) if not any(run.has_ended for run in runs_of(config))]


def show_plan(entries: Sequence[Entry], display: Display) -> None:
    """Show the plan as tables, one for each task of each experiment. GFLOP are those of an update."""
    header = "group", "agent", "runs", "done", "params", "GFLOP"
    tables: dict[str, list[list[str]]] = {}
    for entry in entries:
        agent = entry.configs[0].agent
        tables.setdefault(f"{entry.experiment.path}: {entry.task}", []).append(
            [
                entry.group.name,
                f"{agent.critic_name}+{agent.actor_name}",
                str(len(entry.configs)),
                str(len([run for run in entry.finished if run])),
                f"{entry.cost.parameters:,}",
                f"{entry.cost.update_flops / 1e9:.3g}",
            ]
        )
    for title, rows in tables.items():
        display.columns(title, header, rows)
    costs = {config: entry.cost.update_flops for entry in entries for config in entry.configs}
    left = unfinished(costs)
    updates, flops = sum(c.total_updates for c in left), sum(c.total_updates * costs[c] for c in left)
    display.note(
        f"total   {len(costs)} different runs, {len(costs) - len(left)} finished, {len(left)} to train in "
        f"{len(fleets(left))} programs: {updates:,} updates, {flops / 1e12:,.4g} TFLOP"
    )
