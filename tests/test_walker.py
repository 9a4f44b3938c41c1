"""The ant that comes with floq: its network, its file, and that it walks where it should."""

import json
from pathlib import Path

import jax
import numpy as np

from floq.actors.gaussian import GaussianActor, GaussianConfig
from floq.data.collection import experts as module
from floq.data.collection.collect import recipe
from floq.data.collection.experts import Walker
from floq.envs import environments


def test_a_walker_acts_like_the_actor_it_was_made_from(tmp_path):
    actor = GaussianActor.init(jax.random.key(0), 5, 3, GaussianConfig(actor_hidden_dims=(8, 6)))
    layers = [actor.net.entry, *actor.net.body.linears]
    made = Walker([(np.asarray(layer.weight), 0.1 + np.asarray(layer.bias)) for layer in layers], {"seed": "7"})
    made.save(tmp_path / "w.safetensors")
    walker = Walker.load(str(tmp_path / "w.safetensors"))
    assert walker.about == {"seed": "7"}
    shifted = jax.tree.map(lambda x: x + 0.1 if x.ndim == 1 else x, actor)  # biases begin at zero
    for seed in range(3):
        obs = np.random.default_rng(seed).normal(size=5).astype(np.float32)
        expected = shifted.act(jax.numpy.asarray(obs), jax.random.key(0))
        np.testing.assert_allclose(walker.act(obs), expected, atol=1e-5)


def test_the_shipped_ant_says_how_it_was_made_and_is_small():
    path = Path(module.__file__).with_name("ant.safetensors")
    assert path.stat().st_size < 2e6
    about = Walker.load("ant").about
    assert about["command"].startswith("floq train --agent=fql --agent.actor=gaussian --env_name=online-ant-xy-v0")
    assert about["seed"] == "0"
    assert float(about["return"].split()[0]) > 150
    assert "jax" in json.loads(about["versions"])


def test_the_ant_walks_where_it_is_told():
    """More than a metre in ten steps on average, starting from rest, whatever the direction."""
    env, walker = environments.make("online-ant-xy-v0"), Walker.load("ant")
    for number in range(4):
        obs, total = env.reset_with((0, number)), 0.0
        for _ in range(100):
            obs, reward, terminated, _, _ = env.step(walker.act(obs))
            total += float(reward)
            assert not terminated
        assert total > 10.0


def test_an_ant_in_a_maze_reaches_its_goals_and_reproduces():
    name = "antmaze-medium-navigate-v0"
    settings = recipe(name).settings
    ant = recipe(name).expert(name, 401, 0, **settings)
    rows = ant.episode(1)
    assert ant.goals_reached >= 1
    assert {key: x.shape for key, x in rows.items()} == {
        "observations": (401, 29), "actions": (401, 8), "terminals": (401,), "qpos": (401, 15), "qvel": (401, 14),
    }  # fmt: skip
    np.testing.assert_array_equal(rows["observations"], np.concatenate([rows["qpos"], rows["qvel"]], axis=1))
    assert np.abs(rows["actions"]).max() <= 1
    again = recipe(name).expert(name, 401, 0, **settings)
    again.episode(0)
    np.testing.assert_array_equal(again.episode(1)["qpos"], rows["qpos"])
