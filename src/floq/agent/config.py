"""Settings of an agent: those of a critic, of an actor, and those that all agents share.

A critic and an actor have their own settings; `AgentConfig` combines one of each with the shared settings. The command
line and `config.json` have all of them on one level, under their published names, such as `--agent.alpha`.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import jax.numpy as jnp
from annotated_types import Gt, Interval, Le
from jaxtyping import Array, Float

from floq.actors import ACTORS, FQLConfig
from floq.critics import CRITICS, FloqConfig
from floq.networks.encoders import EncoderName
from floq.utils.errors import UserError, nearest
from floq.utils.schema import Count, Mark, NonNegativeFloat, PositiveFloat, Settings, Share, check_settings, marked

AGENTS = {"floq": ("floq", "fql"), "fql": ("scalar", "fql"), "fql_iqn": ("quantile", "fql")}
"""The published agents, as (critic, actor)."""

_FQL_NAMES = {"flow_steps": "actor_flow_steps"}
PUBLISHED_ALIASES = {"scalar": _FQL_NAMES, "quantile": _FQL_NAMES, "categorical": _FQL_NAMES}
"""By critic: the published names of settings that floq renamed."""


@dataclass(frozen=True)
class LearningSettings(Settings):
    """Settings that all agents share, independent of critic and actor."""

    lr: Annotated[PositiveFloat, Mark.TRACED] = 3e-4
    """Adam's learning rate, for all networks."""
    batch_size: Count = 256
    """Transitions per update."""
    discount: Annotated[float, Interval(ge=0, lt=1), Mark.TRACED] = 0.99
    """Discount factor; below 1, since returns reach r / (1 - discount)."""
    tau: Annotated[Share, Mark.TRACED] = 0.005
    """Rate at which the target network follows."""
    n_step: Count = 1
    """Steps of reward in a TD target; with action_chunk, the number of chunks."""
    action_chunk: Annotated[int, Gt(0), Le(2**10)] = 1
    """Actions that the actor selects, the critic evaluates and the environment executes as one chunk (Q-chunking)."""
    reward_scale: Annotated[PositiveFloat, Mark.TRACED] = 1.0
    """Multiplies every reward."""
    clip_targets: Annotated[bool, Mark.HASHED_IF_SET] = False
    """Clips TD targets to the returns that the rewards alone allow, [r_min, r_max] / (1 - discount)."""
    target_noise_magnitude: Annotated[NonNegativeFloat, Mark.HASHED_IF_SET] = 0.0
    """Standard deviation, in units of return, of Gaussian noise that each update adds to its TD targets, before they
    are clipped."""
    encoder: EncoderName | None = None
    """Network that reads images, of FQL's sizes; by default impala_small."""


@dataclass(frozen=True)
class AgentConfig(LearningSettings):
    """An agent: a critic, an actor and what they share. The defaults are those of published floq."""

    critic: Any = field(default_factory=FloqConfig)
    """Settings of the critic; their type selects the critic."""
    actor: Any = field(default_factory=FQLConfig)
    """Settings of the actor; their type selects the actor."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for part in (self.critic, self.actor):
            check_settings(part)  # which may be any dataclass
            if unknown := set(marked(type(part), Mark.TRACED)) - set(Hypers._fields):
                raise UserError(
                    f"{type(part).__name__} marks {unknown.pop()} as traced, and no fleet can vary that, only "
                    f"{', '.join(Hypers._fields)}: leave the mark out"
                )
        candidates = [getattr(self.actor, name, None) for name in ("num_candidates", "target_candidates")]
        if (how := getattr(self.critic, "rank_by", None)) and max(n or 1 for n in candidates) == 1:
            raise UserError(f"--agent.rank_by={how}: one candidate is not ranked; give --agent.num_candidates")

    @property
    def critic_name(self) -> str:
        """Name of the critic in `CRITICS`."""
        return _name_of(self.critic, CRITICS)

    @property
    def actor_name(self) -> str:
        """Name of the actor in `ACTORS`."""
        return _name_of(self.actor, ACTORS)

    @property
    def learns_policy(self) -> bool:
        """Whether there is an actor that learns, and not a fixed policy to be evaluated."""
        return self.actor_name != "fixed"

    def compiled(self) -> "AgentConfig":
        """Return the settings that are compiled into the program: the same agent with every traced setting at its
        default, so that agents which differ only in those share one program."""
        return dataclasses.replace(_untraced(self), critic=_untraced(self.critic), actor=_untraced(self.actor))

    def networks(self) -> dict[str, Any]:
        """Return the compiled settings of critic and actor in one dictionary, and `action_chunk`. They include all that
        determine the networks' shapes, and none of `LearningSettings` but `action_chunk`."""
        compiled = self.compiled()
        settings = dataclasses.asdict(compiled.critic) | dataclasses.asdict(compiled.actor)
        return settings | {"action_chunk": self.action_chunk}

    def flat(self) -> dict[str, Any]:
        """Return all settings in one dictionary under their published names."""
        shared = {f.name: getattr(self, f.name) for f in dataclasses.fields(LearningSettings)}
        return shared | dataclasses.asdict(self.critic) | dataclasses.asdict(self.actor)

    @classmethod
    def from_flat(cls, critic: str, actor: str, settings: dict[str, Any]) -> "AgentConfig":
        """Return the agent with this critic and actor, the given settings and defaults for the others.

        Raises:
            UserError: an unknown critic or actor, a setting that neither has, or a value out of range.
        """
        names = {f.name for f in dataclasses.fields(settings_type(critic, actor))}
        settings = {
            name: tuple(value) if isinstance(value, list) else value  # as JSON and TOML have them
            for name, value in settings.items()
            if not is_removed(name, value)
        }
        for name in settings:
            if name not in names:
                raise UserError(
                    f"--agent.{name}: critic {critic!r} with actor {actor!r} has no such setting{nearest(name, names)}"
                )
        parts = {}
        for key, part in (("", LearningSettings), ("critic", CRITICS[critic][0]), ("actor", ACTORS[actor][0])):
            given = {f.name: settings[f.name] for f in dataclasses.fields(part) if f.name in settings}
            parts |= {key: part(**given)} if key else given
        return cls(**parts)


class Hypers(NamedTuple):
    """Scalars that may differ between the runs of a fleet. Traced, so that one compiled program serves them all. Those
    that neither critic nor actor has are 0."""

    alpha: Float[Array, ""]
    discount: Float[Array, ""]
    lr: Float[Array, ""]
    tau: Float[Array, ""]
    noise_coverage: Float[Array, ""]
    reward_scale: Float[Array, ""]

    @classmethod
    def of(cls, config: AgentConfig) -> "Hypers":
        """Extract the scalars from a configuration."""
        settings = config.flat()
        return cls(*(jnp.asarray(settings.get(name, 0.0), jnp.float32) for name in cls._fields))


def removed_settings(critic: str) -> dict[str, Any]:
    """Return the settings that older runs with this critic have, with the only values at which they can be read."""
    return {"td_lambda": 1.0} | ({"distill_flow_steps": None} if critic == "floq" else {})


def is_removed(name: str, value: Any) -> bool:
    """Return whether this setting of an agent was removed.

    Raises:
        UserError: it was, and has another value than that in `removed_settings`.
    """
    removed = removed_settings("floq")
    if name in removed and value != removed[name]:
        raise UserError(f"agent.{name}={value}: this setting was removed, only {removed[name]} is known today")
    return name in removed


def settings_type(critic: str, actor: str) -> type:
    """Return a dataclass with the settings of this critic, this actor and the shared ones, under their flat names.

    Raises:
        UserError: unknown critic or actor.
    """
    for kind, name, known in (("critic", critic, CRITICS), ("actor", actor, ACTORS)):
        if name not in known:
            raise UserError(f"--agent.{kind}={name}: choose {' or '.join(known)}{nearest(name, known)}")
    return _joined(ACTORS[actor][0], CRITICS[critic][0], LearningSettings)  # fields are collected from the last one on


@functools.cache
def _joined(*bases: type) -> type:
    return dataclasses.make_dataclass("AgentSettings", [], bases=bases, frozen=True)


def _untraced(settings: Any) -> Any:
    traced = marked(type(settings), Mark.TRACED)
    defaults = {f.name: f.default for f in dataclasses.fields(settings) if f.name in traced}
    return dataclasses.replace(settings, **defaults)


def _name_of(settings: Any, registry: dict[str, tuple[type, type]]) -> str:
    for name, (config_type, _) in registry.items():
        if type(settings) is config_type:
            return name
    raise UserError(f"{type(settings).__name__} are not the settings of any of: {', '.join(registry)}")
