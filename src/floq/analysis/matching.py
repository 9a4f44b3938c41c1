"""Match a baseline to another agent in parameters or in cost, by its width or its number of ensemble members.

A flow critic costs more than a monolithic one of the same width. A comparison at equal parameters, or at equal
operations per update, shows what the flow adds beyond size.
"""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import numpy as np

from floq.agent.config import AgentConfig
from floq.analysis.cost import cost_of, critic_parameters
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec

What: TypeAlias = Literal["params", "flops"]
By: TypeAlias = Literal["width", "members"]


def matched(
    baseline: AgentConfig,
    reference: AgentConfig,
    obs_spec: ObsSpec | int,
    action_dim: int,
    what: What,
    by: By = "width",
) -> AgentConfig:
    """Scale the critic of `baseline` such that its count is nearest to that of `reference`; nothing else changes.

    Args:
        baseline: agent to scale.
        reference: agent to match.
        obs_spec: what an observation is; for a vector, its dimension is enough.
        action_dim: action dimension.
        what: the count to match: "params", the parameters of the critics; "flops", the operations of an update of the
            whole agents, each with its own batch size.
        by: "width" scales all hidden layers of the critic by one factor; "members" sets the size of its ensemble. For
            the floq critic these are the velocity fields; its distilled critic does not change.

    Raises:
        UserError: the critic has no such setting, or its smallest value already exceeds the count.
    """
    setting = scaled_setting(baseline, by)
    goal, start = count(reference, obs_spec, action_dim, what), getattr(baseline.critic, setting)

    def candidate(number: int) -> AgentConfig:
        changes: Any = {setting: _scaled(start, number)}
        return dataclasses.replace(baseline, critic=dataclasses.replace(baseline.critic, **changes))

    def counted(number: int) -> int:
        return count(candidate(number), obs_spec, action_dim, what)

    if counted(1) > goal:
        unit = {"params": "critic parameters", "flops": "operations per update"}[what]
        raise UserError(
            f"even {setting}={_scaled(start, 1)} comes to {counted(1):,} {unit}, and {goal:,} are to be matched: give "
            "the baseline fewer layers or members, or the reference more"
        )
    return candidate(_nearest(counted, goal, max(start) if isinstance(start, tuple) else start))


def scaled_setting(config: AgentConfig, by: By) -> str:
    """Return the name of the critic's setting that `matched` changes. Raises UserError if it has none."""
    critic = config.critic
    names = {f.name for f in dataclasses.fields(critic)}
    is_flow = "flow_num_ensembles" in names  # its `value_hidden_dims` are those of the distilled critic
    is_residual, in_blocks = getattr(critic, "use_resnets", False), getattr(critic, "value_hidden_dims", ()) is None
    if by == "members":
        setting = "flow_num_ensembles" if is_flow else "value_num_ensembles"
    else:
        setting = "block_width" if is_flow or is_residual or in_blocks else "value_hidden_dims"
    if setting not in names:
        raise UserError(f"critic {config.critic_name!r} cannot be scaled by {by}: it has no setting {setting}")
    return setting


def count(config: AgentConfig, obs_spec: ObsSpec | int, action_dim: int, what: What) -> int:
    """Count the critic's parameters, or the operations of an update."""
    config = config.compiled()  # traced settings change no count: agents that differ only in those are counted once
    if what == "params":
        return critic_parameters(config, obs_spec, action_dim)
    return cost_of(config, obs_spec, action_dim).update_flops


def _scaled(setting: int | tuple[int, ...], largest: int) -> int | tuple[int, ...]:
    """Scale the setting such that its largest number is `largest`, each number at least 1."""
    if not isinstance(setting, tuple):
        return largest
    return tuple(max(1, round(Fraction(number * largest, max(setting)))) for number in setting)


def _nearest(count: Callable[[int], int], goal: int, start: int) -> int:
    """Find the positive integer whose count is nearest to `goal`, the smaller of two that are equally near. `count`,
    which is expensive, increases, about quadratically, and is at most `goal` at 1; `start` is a first guess."""
    count = functools.cache(count)
    numbers = [1, max(2, start), 2 * max(2, start)]
    roots = np.roots(np.polyfit(numbers, [count(number) - goal for number in numbers], 2)).real
    number = int(min((root for root in roots if root >= 1), default=1) + 1e-6)  # exact if all layers are equally wide
    while count(number) > goal:
        number -= 1
    while count(number + 1) <= goal:
        number += 1
    return min((number, number + 1), key=lambda each: (abs(count(each) - goal), each))
