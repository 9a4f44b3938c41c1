"""What is counted in the program that JAX traces, against the formula of docs/cost.md."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cost_formula import update_cost
from helpers import make_batch

from floq.actors import ACTORS
from floq.agent.agent import Agent
from floq.agent.config import AgentConfig, settings_type
from floq.analysis.cost import cost_of, critic_parameters, traced_flops
from floq.critics import CRITICS

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


QUICK = {"floq, fast", "floq, residual", "scalar"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CONFIGS])
def test_formula_and_program_agree(name):
    critic, settings = CONFIGS[name]
    config = AgentConfig.from_flat(critic, "fql", settings)
    formula, traced = update_cost(config, OBS, ACT), cost_of(config, OBS, ACT)
    assert (formula.flops, formula.parameters) == (traced.update_flops, traced.parameters)
    agent = jax.eval_shape(lambda: Agent.init(jax.random.key(0), OBS, ACT, config))
    assert traced.update_flops == traced_flops(lambda agent, batch: agent.update(batch), agent, make_batch(8))
    assert traced.critic_parameters == critic_parameters(config, OBS, ACT)
    # The one-step policy alone acts: 5 -> 8 -> 12 -> 2.
    assert traced.action_flops == 2 * (5 * 8 + 8 * 12 + 12 * 2)
    actor = [(5, 8), (8, 12), (12, 2)], [(6, 8), (8, 12), (12, 2)]  # the behaviour flow takes the time too
    norms = 2 * 2 * (8 + 12) if config.actor.actor_layer_norm else 0
    assert traced.parameters - traced.critic_parameters == sum((a + 1) * b for net in actor for a, b in net) + norms


PAIRS = [("floq", "best_of_n"), ("scalar", "gaussian"), ("quantile", "fql"), ("categorical", "deterministic")]
REST = [pytest.param(c, a, marks=pytest.mark.slow) for c in CRITICS for a in ACTORS if (c, a) not in PAIRS]


@pytest.mark.parametrize(("critic", "actor"), PAIRS + REST)
def test_any_critic_with_any_actor_is_counted(critic, actor):
    """Twice the batch is twice the work, and the parameters stay."""
    settings = {"value_hidden_dims": (8,), "actor_hidden_dims": (8,), "block_width": 8, "block_depth": 1}
    known = settings_type(critic, actor).__dataclass_fields__
    settings = {name: value for name, value in settings.items() if name in known}
    costs = [cost_of(AgentConfig.from_flat(critic, actor, settings | {"batch_size": b}), OBS, ACT) for b in (8, 16)]
    assert costs[1].update_flops == 2 * costs[0].update_flops
    assert costs[1]._replace(update_flops=0) == costs[0]._replace(update_flops=0)
    if actor == "fixed":  # a policy that is evaluated acts elsewhere
        assert (costs[0].parameters, costs[0].action_flops) == (costs[0].critic_parameters, 0)
        return
    assert 0 < costs[0].critic_parameters < costs[0].parameters
    assert 0 < costs[0].action_flops < costs[0].update_flops


@pytest.mark.slow
def test_counting_starts_no_accelerator():
    """Not even a CPU: here JAX is told of a platform that does not exist, and the first computation would fail."""
    code = "from floq.analysis.cost import cost_of; import floq; print(cost_of(floq.AgentConfig(), 3, 2))"
    environment = os.environ | {"JAX_PLATFORMS": "nonesuch"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout == f"{cost_of(AgentConfig(), 3, 2)}\n", done.stderr
    code = "import jax; jax.numpy.ones(3)"  # it would
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, env=environment).returncode


def test_the_published_sizes_come_to_what_the_anchors_say():
    """About 129 GFLOP for the critic at K = 8, with 37 observations and 5 actions, and little for the rest."""
    cost = update_cost(AgentConfig(), 37, 5)
    without = update_cost(AgentConfig.from_flat("scalar", "fql", {}), 37, 5)
    assert 129e9 < cost.flops < 145e9
    assert without.flops < 0.15 * cost.flops


@pytest.mark.slow
def test_xla_counts_the_same_where_no_loop_repeats():
    settings = FIELD | {"batch_size": 64, "block_width": 64, "actor_hidden_dims": (64, 64)}
    settings |= {"critic_flow_steps": 1, "actor_flow_steps": 1}
    config = AgentConfig.from_flat("floq", "fql", settings)
    agent = Agent.init(jax.random.key(0), OBS, ACT, config)
    compiled = jax.jit(lambda agent, batch: agent.update(batch)).lower(agent, make_batch(64)).compile()
    counted, formula = (compiled.cost_analysis() or {})["flops"], update_cost(config, OBS, ACT).flops
    assert formula < counted < 1.5 * formula  # XLA counts activations and the optimiser on top
    assert cost_of(config, OBS, ACT).update_flops == formula
    compiled = jax.jit(lambda agent, obs: agent.act(obs, agent.key)).lower(agent, jnp.ones(OBS)).compile()
    counted, traced = (compiled.cost_analysis() or {})["flops"], cost_of(config, OBS, ACT).action_flops
    assert traced < counted < 1.5 * traced


def test_loops_count_as_often_as_they_run():
    x = jnp.ones((4, 4))
    product = 2 * 4**3
    repeated = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=5)[0]  # noqa: E731
    assert traced_flops(repeated, x) == 5 * product
    assert traced_flops(lambda x: jax.vmap(jnp.matmul)(x, x), np.ones((3, 4, 4))) == 3 * product
    costly, cheap = (lambda x: x @ x @ x), (lambda x: x)
    assert traced_flops(lambda x: jax.lax.cond(x.sum() > 0, cheap, costly, x), x) == 2 * product
    with pytest.raises(ValueError, match="repetitions"):
        traced_flops(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x), x)
