"""The formula for what an update costs, against the program that JAX traces, product by product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_batch

from floq.agent import Agent
from floq.analysis.cost import traced_flops, update_cost
from floq.config import AgentConfig

OBS, ACT = 3, 2
ACTOR = {"batch_size": 8, "actor_hidden_dims": (8, 12), "value_hidden_dims": (8, 9)}
FIELD = ACTOR | {"block_width": 10, "block_depth": 3}
FAST = {"noise_samples": 4, "target_noise_samples": 2, "distill_noise_samples": 3, "distill_target": "one_pass"}
RESIDUAL = {"use_resnets": True, "block_width": 10, "block_depth": 2, "num_transformations": 3}
CONFIGS = {
    "floq": ("floq", FIELD),
    "floq, fast": ("floq", FIELD | FAST | {"target_flow_steps": 3}),
    "floq, td": ("floq", FIELD | {"distill_target": "td", "time_embedding": "fourier", "use_prob_embed": False}),
    "floq, one layer": ("floq", FIELD | {"block_depth": 1, "layer_norm": False}),
    "floq, residual": ("floq", ACTOR | RESIDUAL),
    "scalar": ("scalar", ACTOR),
    "scalar, residual": ("scalar", ACTOR | RESIDUAL),
    "quantile": ("quantile", ACTOR | {"value_num_ensembles": 3}),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_formula_and_program_agree(name):
    critic, settings = CONFIGS[name]
    config = AgentConfig.from_flat(critic, "fql", settings)
    agent = jax.eval_shape(lambda: Agent.init(jax.random.key(0), OBS, ACT, config))
    cost = update_cost(config, OBS, ACT)
    assert cost.flops == traced_flops(lambda agent, batch: agent.update(batch), agent, make_batch(8))
    assert cost.parameters == sum(leaf.size for leaf in jax.tree.leaves(agent.params))


def test_the_published_sizes_come_to_what_the_anchors_say():
    """About 129 GFLOP for the critic at K = 8, with 37 observations and 5 actions, and little for the rest."""
    cost = update_cost(AgentConfig(), 37, 5)
    without = update_cost(AgentConfig.from_flat("scalar", "fql", {}), 37, 5)
    assert 129e9 < cost.flops < 145e9
    assert without.flops < 0.15 * cost.flops


def test_xla_counts_the_same_where_no_loop_repeats():
    settings = FIELD | {"batch_size": 64, "block_width": 64, "actor_hidden_dims": (64, 64)}
    settings |= {"critic_flow_steps": 1, "actor_flow_steps": 1}
    config = AgentConfig.from_flat("floq", "fql", settings)
    agent = Agent.init(jax.random.key(0), OBS, ACT, config)
    compiled = jax.jit(lambda agent, batch: agent.update(batch)).lower(agent, make_batch(64)).compile()
    counted, formula = compiled.cost_analysis()["flops"], update_cost(config, OBS, ACT).flops
    assert formula < counted < 1.5 * formula  # XLA counts activations and the optimiser on top


def test_loops_count_as_often_as_they_run():
    x = jnp.ones((4, 4))
    product = 2 * 4**3
    repeated = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]  # noqa: E731
    assert traced_flops(repeated, x) == 5 * product
    assert traced_flops(lambda x: jax.vmap(jnp.matmul)(x, x), np.ones((3, 4, 4))) == 3 * product
    with pytest.raises(ValueError, match="repetitions"):
        traced_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), x)
