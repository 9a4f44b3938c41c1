"""Small agents and scales that several tests share."""

import contextlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from floq.actors import FQLConfig
from floq.agent.config import AgentConfig
from floq.critics import CategoricalConfig, FloqConfig, QuantileConfig, ReturnScale, ScalarConfig

WIDTH = 16
FLOQ = FloqConfig(
    value_hidden_dims=(WIDTH, WIDTH), block_width=WIDTH, block_depth=2, noise_samples=3, critic_flow_steps=4
)
SCALAR = ScalarConfig(value_hidden_dims=(WIDTH, WIDTH))
QUANTILE = QuantileConfig(value_hidden_dims=(WIDTH, WIDTH), num_tau_samples=3, quantile_embed_dim=8)
CATEGORICAL = CategoricalConfig(value_hidden_dims=(WIDTH, WIDTH))
ACTOR = FQLConfig(actor_hidden_dims=(WIDTH, WIDTH), actor_flow_steps=4)
OBS, ACT = 3, 2


def scale(r_min=-1.0, r_max=0.0, discount=0.99, noise_coverage=0.1) -> ReturnScale:
    return ReturnScale(*(jnp.float32(x) for x in (r_min, r_max, discount, noise_coverage)))


def agent_config(critic: Any = FLOQ, actor: Any = ACTOR, **settings) -> AgentConfig:
    return AgentConfig(**({"batch_size": 8} | settings), critic=critic, actor=actor)


def make_batch(size=8, seed=0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "observations": jnp.asarray(rng.normal(size=(size, OBS)), jnp.float32),
        "actions": jnp.asarray(rng.uniform(-1, 1, (size, ACT)), jnp.float32),
        "next_observations": jnp.asarray(rng.normal(size=(size, OBS)), jnp.float32),
        "rewards": jnp.asarray(rng.uniform(-1, 0, size), jnp.float32),
        "masks": jnp.ones(size),
    }


@contextlib.contextmanager
def optimised():
    """What is compiled in here runs fast: for what learns in a quick test."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


def benchmark(name: str, folder: str = "benchmarks") -> ModuleType:
    """A program in `benchmarks/`, or another folder, as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
