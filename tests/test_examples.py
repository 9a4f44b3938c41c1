"""The examples run and do what they say."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_critic_in_another_algorithm(capsys):
    assert len((EXAMPLES / "own_algorithm.py").read_text().splitlines()) < 60
    example = load("own_algorithm")
    actor = example.main(updates=1500)
    acts = jax.vmap(lambda s: jnp.tanh(actor(s[None]))[0])(jnp.array([-0.4, 0.0, 0.4]))
    assert jnp.abs(acts - jnp.array([0.8, 0.0, -0.8])).max() < 0.25
    assert capsys.readouterr().out.count("learned") == 5
