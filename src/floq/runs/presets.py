"""Published settings of each family of environments, and the function that builds a configuration from them."""

import dataclasses
import re
from typing import Any, NamedTuple

from floq.agent.config import AGENTS, AgentConfig, settings_type
from floq.runs.config import Config, task_name
from floq.utils.errors import UserError, nearest


class Preset(NamedTuple):
    """Settings of an agent and of the run around it, and where they come from."""

    agent: dict[str, Any]
    run: dict[str, Any]
    source: str


FLOQ_PAPER = "floq (arXiv 2509.06863) and its published commands"
# FQL trained 1M steps; here it gets the 2M of floq's protocol, an equal budget.
FQL_PAPER = "FQL (arXiv 2502.02538), table of per-environment settings; floq's repository for humanoidmaze-large"
DEMO = "chosen here, for two CPU cores and 200 episodes"

# The demonstration's reward is some 250 steps away, and two cores allow about 10,000 updates: hence a larger learning
# rate and tau, and 10-step targets. The flow's loss is cheap and its integration expensive: hence eight source samples
# for the loss but two, stratified, for each integration.
DEMO_SHARED = {"alpha": 3.0, "lr": 1e-3, "tau": 0.02, "batch_size": 128, "n_step": 10, "actor_hidden_dims": (64,) * 3}
DEMO_FLOQ = {
    "value_hidden_dims": (64,) * 3,
    "block_width": 64,
    "block_depth": 3,
    "critic_flow_steps": 4,
    "noise_samples": 8,
    "target_noise_samples": 2,
    "distill_noise_samples": 2,
    "noise_scheme": "stratified",
}
DEMO_RUN = {
    "offline_steps": 10_000,
    "log_interval": 500,
    "eval_interval": 2_500,
    "save_interval": 5_000,
    "normalize_observations": True,
}

ANY = "any family"

FAMILIES: dict[str, dict[str, Preset]] = {
    "floq": {
        "pointmaze-medium": Preset(DEMO_SHARED | DEMO_FLOQ, DEMO_RUN, DEMO),
        "antmaze-large": Preset({"alpha": 10.0}, {}, FLOQ_PAPER),
        "antmaze-giant": Preset({"alpha": 10.0, "discount": 0.995, "q_agg": "min", "batch_size": 512}, {}, FLOQ_PAPER),
        "humanoidmaze-medium": Preset({"alpha": 30.0, "discount": 0.995}, {}, FLOQ_PAPER),
        "humanoidmaze-large": Preset({"alpha": 20.0, "discount": 0.995, "batch_size": 512}, {}, FLOQ_PAPER),
        "antsoccer-arena": Preset({"alpha": 10.0, "discount": 0.995}, {}, FLOQ_PAPER),
        "cube-single": Preset({"alpha": 300.0, "block_depth": 2}, {}, FLOQ_PAPER),
        "cube-double": Preset({"alpha": 300.0, "block_depth": 2}, {}, FLOQ_PAPER),
        "scene": Preset({"alpha": 300.0}, {}, FLOQ_PAPER),
        "puzzle-3x3": Preset({"alpha": 1000.0}, {}, FLOQ_PAPER),
        "puzzle-4x4": Preset({"alpha": 1000.0}, {}, FLOQ_PAPER),
    },
    "fql": {
        "pointmaze-medium": Preset(DEMO_SHARED | {"value_hidden_dims": (64,) * 3}, DEMO_RUN, DEMO),
        "antmaze-large": Preset({"alpha": 10.0, "q_agg": "min"}, {}, FQL_PAPER),
        "antmaze-giant": Preset({"alpha": 10.0, "discount": 0.995, "q_agg": "min"}, {}, FQL_PAPER),
        "humanoidmaze-medium": Preset({"alpha": 30.0, "discount": 0.995}, {}, FQL_PAPER),
        "humanoidmaze-large": Preset({"alpha": 30.0, "discount": 0.995, "batch_size": 512}, {}, FQL_PAPER),
        "antsoccer-arena": Preset({"alpha": 10.0, "discount": 0.995}, {}, FQL_PAPER),
        "cube-single": Preset({"alpha": 300.0}, {}, FQL_PAPER),
        "cube-double": Preset({"alpha": 300.0}, {}, FQL_PAPER),
        "scene": Preset({"alpha": 300.0}, {}, FQL_PAPER),
        "puzzle-3x3": Preset({"alpha": 1000.0}, {}, FQL_PAPER),
        "puzzle-4x4": Preset({"alpha": 1000.0}, {}, FQL_PAPER),
    },
    "fql_iqn": {
        "pointmaze-medium": Preset(DEMO_SHARED | {"value_hidden_dims": (64,) * 3}, DEMO_RUN, DEMO),
        "antmaze-giant": Preset(
            {"alpha": 10.0, "discount": 0.995, "q_agg": "min", "batch_size": 512}, {}, "floq's published commands"
        ),
    },
}
"""Settings of each agent for each environment family, chosen by `env_name`; more specific settings override them."""

FAST = {
    "noise_scheme": "stratified",
    "noise_samples": 4,
    "target_noise_samples": 2,
    "distill_noise_samples": 2,
    "distill_target": "one_pass",
}
PRESETS: dict[str, dict[tuple[str, str], Preset]] = {
    "fast": {("floq", ANY): Preset(FAST, {}, "floq's own: fewer, better spread source samples, one integration")},
    "best": {
        ("floq", "antmaze-giant"): Preset({"critic_flow_steps": 4}, {}, FLOQ_PAPER),
        ("floq", "puzzle-4x4"): Preset({"noise_coverage": 0.25}, {}, FLOQ_PAPER),
    },
}
"""Changes of `--preset NAME` to the family's settings, by (agent, family)."""


def preset_for(preset: str, agent: str, family: str) -> Preset | None:
    """Return the changes of a preset for an agent and a family of environments, None if there are none."""
    return PRESETS[preset].get((agent, family)) or PRESETS[preset].get((agent, ANY))


def family(env_name: str) -> str:
    """Return the family of an environment: `cube-double-play-singletask-task2-v0` -> `cube-double`."""
    return re.sub(r"-(navigate|stitch|explore|play|noisy)\b.*", "", env_name)


def missing_preset_note(task: str, agent: str, preset: str | None = None) -> str | None:
    """Return a line of warning if the task's family has no settings for this agent or this preset, otherwise None."""
    if preset is not None and preset_for(preset, agent, family(task)) is None:
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

    layers = [Preset({}, {}, "")]
    if not path_form:
        layers.append(FAMILIES[name].get(task, layers[0]))
    if preset is not None:
        layers.append(preset_for(preset, name, task) or layers[0])
    run_names = {f.name for f in dataclasses.fields(Config)} - {"agent", "env_name"}
    has = {f.name for f in dataclasses.fields(settings_type(critic, actor))}
    if actor != AGENTS[name][1]:
        has -= {"alpha"}  # the family's alpha is the weight of another actor's loss, in other units
    run: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    for layer in layers:
        run |= layer.run
        flat |= {key: value for key, value in layer.agent.items() if key in has}
    run |= {key: value for key, value in settings.items() if key in run_names}
    flat |= {key: value for key, value in settings.items() if key not in run_names}
    return Config(env_name=env_name, agent=AgentConfig.from_flat(critic, actor, flat), **run)
