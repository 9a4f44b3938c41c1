"""Published settings of each family of environments, and the function that builds a configuration from them."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from floq.agent.config import AGENTS, AgentConfig, settings_type
from floq.runs.config import Config, task_name
from floq.utils.errors import UserError, nearest
from floq.utils.schema import read_toml

_TABLES = read_toml(Path(__file__).with_suffix(".toml"))

FAMILIES: dict[str, dict[str, dict[str, Any]]] = _TABLES["families"]
"""Settings of each agent for each environment family, chosen by `env_name`; more specific settings override them."""

PRESETS: dict[str, dict[str, dict[str, Any]]] = _TABLES["presets"]
"""Changes of `--preset NAME` to the family's settings, by agent, or agent and family."""


def preset_for(preset: str, agent: str, family: str) -> dict[str, Any]:
    """Return the changes of a preset for an agent and a family of environments; empty if there are none."""
    return PRESETS[preset].get(f"{agent} on {family}") or PRESETS[preset].get(agent, {})


def family(env_name: str) -> str:
    """Return the family of an environment: `cube-double-play-singletask-task2-v0` -> `cube-double`."""
    return re.sub(r"-(navigate|stitch|explore|play|noisy)\b.*", "", env_name)


def missing_preset_note(task: str, agent: str, preset: str | None = None) -> str | None:
    """Return a line of warning if the task's family has no settings for this agent or this preset, otherwise None."""
    if preset is not None and not preset_for(preset, agent, family(task)):
        return f"--preset={preset} changes nothing for {family(task)} with {agent}"
    if agent not in FAMILIES or family(task) in FAMILIES[agent]:
        return None
    return f"no published settings for {family(task)} with {agent}: using its defaults, set --agent.alpha at least"


def configure(
    env_name: str | None = None,
    agent: str = "floq",
    *,
    critic: str | None = None,
    actor: str | None = None,
    preset: str | None = None,
    **settings: Any,
) -> Config:
    """Return the configuration of a run: `configure("cube-double-play-singletask-v0", alpha=100.0, seed=3)`.

    Settings given here override the preset, the preset the family's settings, and those the defaults.

    Args:
        env_name: the task; by default the demonstration task, or none if there is a `dataset`.
        agent: a name in `AGENTS`. The path form of the published commands, `agents/floq.py`, means that file's
            defaults without the family's settings.
        critic: replaces the agent's critic; the family's settings still apply where the new critic has them.
        actor: replaces the agent's actor, likewise, except alpha: another actor's has another unit.
        preset: a name in `PRESETS`.
        **settings: any setting of the run or of the agent, by its flat name.

    Raises:
        UserError: an unknown name, or a value out of range.
    """
    if env_name is None and settings.get("dataset") is None:
        env_name = Config.env_name
    task = family(task_name(env_name, settings.get("dataset")))
    path_form = re.fullmatch(r"agents/(\w+)\.py", agent)
    name = path_form.group(1) if path_form else agent
    if name not in AGENTS:
        raise UserError(f"--agent={agent}: unknown agent; choose {' or '.join(AGENTS)}{nearest(name, AGENTS)}")
    critic = AGENTS[name][0] if critic is None else critic
    actor = AGENTS[name][1] if actor is None else actor
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset={preset}: unknown preset; choose {' or '.join(PRESETS)}{nearest(preset, PRESETS)}")

    published = {} if path_form else FAMILIES[name].get(task, {})
    if preset is not None:
        published = published | preset_for(preset, name, task)
    run_names = {f.name for f in dataclasses.fields(Config)} - {"agent", "env_name"}
    has = {f.name for f in dataclasses.fields(settings_type(critic, actor))}
    if actor != AGENTS[name][1]:
        has -= {"alpha"}  # the family's alpha is the weight of another actor's loss, in other units
    run: dict[str, Any] = {} if path_form else dict(_TABLES["run"].get(task, {}))
    flat = {key: value for key, value in published.items() if key in has}
    for key, value in settings.items():
        (run if key in run_names else flat)[key] = value
    return Config(env_name=env_name, agent=AgentConfig.from_flat(critic, actor, flat), **run)
