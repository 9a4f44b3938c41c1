"""Cost of an update by the formula of docs/cost.md, from the settings of a published agent.

It gives what `floq.analysis.cost` does not count, the activations of hidden layers, and is the oracle of its tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from floq.agent.config import AgentConfig
from floq.critics import FloqConfig, QuantileConfig, ScalarConfig
from floq.networks.embeddings import time_embedding_size

FLOAT = 4  # bytes


@dataclass(frozen=True)
class UpdateModel:
    """Cost of one update of one run.

    flops: of matrix products, two for each multiplication and addition. parameters: learned parameters. hidden:
    activations of hidden layers, forward and backward. optimiser_bytes: memory traffic of Adam and of the target
    network's average.
    """

    flops: int
    parameters: int
    hidden: int

    @property
    def optimiser_bytes(self) -> int:
        """Bytes of nine floats per parameter: weight, both moments and average read and written, gradient read."""
        return 9 * FLOAT * self.parameters


class _Layers:
    """Stack of linear layers, and its cost per row of input, forward and backward."""

    def __init__(self, sizes: Sequence[int], norm: bool):
        self.parameters = sum((a + 1) * b for a, b in pairwise(sizes)) + (2 * sum(sizes[1:-1]) if norm else 0)
        self.forward = 2 * sum(a * b for a, b in pairwise(sizes))
        self.entry = 2 * sizes[0] * sizes[1]
        self.hidden = sum(sizes[1:-1])

    @property
    def to_inputs(self) -> int:
        """Operations of the forward pass and the gradient with respect to the inputs."""
        return 2 * self.forward

    @property
    def to_weights(self) -> int:
        """Operations of the forward pass and the gradient with respect to the weights but not the inputs."""
        return 3 * self.forward - self.entry


def update_cost(config: AgentConfig, obs_dim: int, action_dim: int) -> UpdateModel:
    """Compute the cost of `Agent.update` for one run, by formula.

    Args:
        config: a floq, scalar or quantile critic with the fql actor; floq with Euler steps and a distilled critic.
        obs_dim: observation dimension.
        action_dim: action dimension.
    """
    action_dim *= config.action_chunk
    a, both = config.actor, obs_dim + action_dim
    flow = _Layers((both + 1, *a.actor_hidden_dims, action_dim), a.actor_layer_norm)
    one_step = _Layers((both, *a.actor_hidden_dims, action_dim), a.actor_layer_norm)
    critic = _CRITICS[type(config.critic)](config.critic, both, one_step)
    actor_flops = flow.to_weights + a.actor_flow_steps * flow.forward + one_step.to_weights + one_step.forward
    actor_hidden = (2 + a.actor_flow_steps) * flow.hidden + 3 * one_step.hidden
    return UpdateModel(
        config.batch_size * (critic.flops + actor_flops),
        critic.parameters + flow.parameters + one_step.parameters,
        config.batch_size * (critic.hidden + actor_hidden),
    )


def _floq(c: FloqConfig, both: int, one_step: _Layers) -> UpdateModel:
    z_size = (c.num_bins - 1 if c.use_prob_embed else 1) + time_embedding_size(c.time, c.time_embed_dim)
    hidden = 1 + c.block_depth * c.num_transformations if c.use_resnets else c.block_depth
    field = _Layers((both + z_size, *(c.block_width,) * hidden, 1), c.layer_norm)
    distilled = _Layers((both, *c.value_hidden_dims, 1), c.layer_norm)
    fixed = 2 * both * c.block_width  # the share of (s, a) in the first layer: once per integration
    velocity = field.forward - fixed
    target_samples = c.target_noise_samples or c.noise_samples
    target_steps = target_samples * (c.target_flow_steps or c.critic_flow_steps)
    distill_samples = c.distill_noise_samples or c.noise_samples
    distill_steps = {"flow": c.critic_flow_steps, "one_pass": 1, "td": 0}[c.distill_target] * distill_samples
    # In the loss z_t and t are constants, so no gradient flows to them through the first layer.
    varying = 2 * z_size * c.block_width
    loss = 2 * fixed + c.noise_samples * (3 * velocity - varying)
    integrations = fixed * (target_samples + (distill_steps > 0)) + velocity * (target_steps + distill_steps)
    members, heads = c.flow_num_ensembles, c.distill_num_ensembles
    return UpdateModel(
        target_samples * one_step.forward
        + members * (loss + integrations)
        + heads * (distilled.to_weights + distilled.to_inputs),
        members * field.parameters + heads * distilled.parameters,
        target_samples * one_step.hidden
        + members * field.hidden * (2 * c.noise_samples + target_steps + distill_steps)
        + heads * 4 * distilled.hidden,
    )


def _scalar(c: ScalarConfig, both: int, one_step: _Layers) -> UpdateModel:
    if c.use_resnets:
        sizes = (both, *(c.block_width,) * (1 + c.block_depth * c.num_transformations), 1)
    else:
        sizes = (both, *c.hidden_dims, 1)
    return _ensemble(_Layers(sizes, c.layer_norm), c.value_num_ensembles, 1, one_step)


def _quantile(c: QuantileConfig, both: int, one_step: _Layers) -> UpdateModel:
    inputs = both + (c.quantile_embed_dim if c.embed_quantile else 1)
    net = _Layers((inputs, *c.value_hidden_dims, 1), c.layer_norm)
    return _ensemble(net, c.value_num_ensembles, c.num_tau_samples, one_step)


def _ensemble(net: _Layers, members: int, samples: int, one_step: _Layers) -> UpdateModel:
    """Compute the cost of a critic that evaluates its networks once per sample for target, loss and actor."""
    return UpdateModel(
        samples * (one_step.forward + members * (net.forward + net.to_weights + net.to_inputs)),
        members * net.parameters,
        samples * (one_step.hidden + members * 5 * net.hidden),
    )


_CRITICS: dict[type, Callable[[Any, int, _Layers], UpdateModel]] = {
    FloqConfig: _floq,
    ScalarConfig: _scalar,
    QuantileConfig: _quantile,
}
