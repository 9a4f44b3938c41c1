"""Cost of any agent, counted in its traced JAX program: for every critic and actor, without a formula.

Nothing is computed or allocated, and no accelerator is started. Matrix products are counted, two operations for each
multiplication and addition. A loop counts as often as it runs, a conditional at its most expensive branch. Custom calls
are opaque, so the fused kernel of `floq.networks.kernels` is counted as the plain integration, whose products it makes.
docs/cost.md says where the operations are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from floq.agent.agent import Agent
from floq.agent.config import AgentConfig
from floq.utils.obs_spec import ObsSpec


class Cost(NamedTuple):
    """Size and cost of an agent.

    parameters, critic_parameters: learned parameters of critic and actor, and of the critic alone; target networks are
    copies and do not count. update_flops: operations of one update of one run. action_flops: operations of choosing one
    action, or one chunk of actions, for one observation.
    """

    parameters: int
    critic_parameters: int
    update_flops: int
    action_flops: int


@functools.lru_cache(maxsize=256)
def cost_of(config: AgentConfig, obs_spec: ObsSpec | int, action_dim: int) -> Cost:
    """Count the cost of an agent with any critic and any actor.

    Args:
        config: the agent.
        obs_spec: what an observation is; for a vector, its dimension is enough.
        action_dim: action dimension.

    Raises:
        ValueError: the program has a loop whose number of iterations is not known.
    """
    if config.flat().get("integration") == "fused":
        config = dataclasses.replace(config, critic=dataclasses.replace(config.critic, integration="plain"))
    agent = _untrained(config, obs_spec, action_dim)
    act, spec = (agent.action_dim,), agent.obs_spec
    shapes: dict[str, Any] = {"actions": act, "next_actions": act}
    shapes |= dict.fromkeys(("rewards", "masks", "terminals"), ())
    if not config.learns_policy:
        shapes["policy_actions"] = (config.actor.policy_samples, *act)
    array = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    batch: dict[str, Any] = {name: array((config.batch_size, *shape)) for name, shape in shapes.items()}
    obs, observations = (array((*size, *spec.shape), dtype=spec.dtype) for size in ((), (config.batch_size,)))
    batch |= dict.fromkeys(("observations", "next_observations"), observations)
    return Cost(
        _size(agent.params),
        _size(agent.params.critic),
        traced_flops(lambda agent, batch: agent.update(batch), agent, batch),
        traced_flops(lambda agent, obs: agent.act(obs, agent.key), agent, obs) if config.learns_policy else 0,
    )


@functools.lru_cache(maxsize=256)
def critic_parameters(config: AgentConfig, obs_spec: ObsSpec | int, action_dim: int) -> int:
    """Return `cost_of(...).critic_parameters` alone, which takes only hundredths of a second."""
    return _size(_untrained(config, obs_spec, action_dim).params.critic)


def _untrained(config: AgentConfig, obs_spec: ObsSpec | int, action_dim: int) -> Agent:
    """Return the shapes of an agent, without allocating arrays."""
    width = config.action_chunk * action_dim
    return jax.eval_shape(lambda: Agent.init(jax.random.key(0), obs_spec, width, config))


def _size(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def traced_flops(function: Callable[..., Any], *args: Any) -> int:
    """Count the operations of products and convolutions in `function(*args)`, as traced by JAX; of `args` only the
    shapes matter. (XLA's own `cost_analysis` counts the body of a loop once.) Raises ValueError for a loop whose number
    of iterations is not known."""
    return _flops(jax.make_jaxpr(function)(*args).jaxpr)


def _flops(jaxpr: Any) -> int:
    is_program = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")  # noqa: E731
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod([shape[axis] for axis in contracted])
            continue
        if name == "conv_general_dilated":
            layout, kernel = equation.params["dimension_numbers"].rhs_spec, equation.invars[1].aval
            total += 2 * equation.outvars[0].aval.size * kernel.size // kernel.shape[layout[0]]
            continue
        leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
        parts = [_flops(x if hasattr(x, "eqns") else x.jaxpr) for x in leaves if is_program(x)]
        if any(parts) and name == "while":
            raise ValueError("a loop whose number of repetitions is not known")
        inner = max(parts) if name == "cond" else sum(parts)
        total += inner * (equation.params["length"] if name == "scan" else 1)
    return total
