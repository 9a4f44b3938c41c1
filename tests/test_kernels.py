"""The fused integration, interpreted on the CPU, against the plain one; its batching; that it lowers for a GPU."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACT, OBS, agent_config, scale

from floq import cli
from floq.agent.agent import Agent
from floq.critics import FloqConfig, FloqCritic
from floq.critics.floq import VelocityField
from floq.flow import integrate
from floq.networks import kernels
from floq.networks.embeddings import histogram
from floq.networks.kernels import hopper, plan
from floq.networks.kernels.plan import Plan
from floq.utils.errors import UserError

# Its interface is that of JAX 0.11, which asks for Python 3.12.
launches = pytest.mark.skipif(jax.__version_info__ < plan.RELEASES[0], reason="the kernel needs JAX 0.11")
SMALL = FloqConfig(block_width=64, block_depth=2, value_hidden_dims=(8,), noise_samples=2, critic_flow_steps=2)
ALONE = dataclasses.replace(SMALL, flow_num_ensembles=1)
PUBLISHED = FloqConfig()


@pytest.fixture(autouse=True)
def _compile_quickly():
    """The interpreter compiles a program for each block of 64 rows, which takes longer than running it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@partial(jax.jit, static_argnums=(0, 1))
def fields(config: FloqConfig, obs: int = OBS, seed: int = 0) -> VelocityField:
    """An ensemble whose norms and biases have left their initial values, and whose velocities are large."""
    field = FloqCritic.init(jax.random.key(seed), obs, ACT, config).velocity
    leaves, structure = jax.tree.flatten(field)
    keys = jax.random.split(jax.random.key(seed + 100), len(leaves))
    noisy = [leaf + 0.2 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    field = jax.tree.unflatten(structure, noisy)
    return eqx.tree_at(lambda field: field.body.linears[-1].weight, field, replace_fn=lambda weight: 20 * weight)


def fused(field: VelocityField, x, z_0, returns, *, interpret=True):
    """For one transition, as the critic calls it."""
    c = field.config
    settings = kernels.Settings(c.critic_flow_steps, c.num_bins, c.sigma)
    support = returns.support(c.reward_offset)
    return kernels.integrate_fused(field.entry, field.body, x, z_0, *support, settings, interpret=interpret)


def plain(field: VelocityField, x, z_0, returns):
    def of_member(member: VelocityField):
        return integrate(member.at(x[:-ACT], x[-ACT:], returns), z_0, field.config.critic_flow_steps)

    return jax.vmap(of_member)(field)


def rows(number: int, inputs: int = OBS + ACT):
    """Inputs and starts, two of the starts far outside of the support [-101, 1]."""
    z_0 = jax.random.uniform(jax.random.key(2), (number,), minval=-100.0, maxval=0.0)
    return jax.random.normal(jax.random.key(1), (number, inputs)), z_0.at[0].set(-900.0).at[1].set(500.0)


def assert_close(ours, reference, start):
    """Within the error of bfloat16 products. The prototype saw 2e-3 of z and 6e-3 of its change on a GPU; the largest
    seen here are 3e-3 and 9e-3."""
    moved = np.linalg.norm(reference - start)
    assert moved > 0.1 * np.linalg.norm(start), "a flow that goes nowhere proves nothing"
    assert np.linalg.norm(ours - reference) < 0.015 * moved


@launches
@pytest.mark.parametrize(
    ("width", "depth", "inputs", "processors"),
    [
        (64, 2, 5, 132),
        pytest.param(128, 4, 5, 132, marks=pytest.mark.slow),
        pytest.param(128, 2, 70, 0, marks=pytest.mark.slow),  # two tiles of inputs, two warpgroups to a block
        pytest.param(384, 2, 5, 132, marks=pytest.mark.slow),  # two slabs of columns
        pytest.param(64, 1, 200, 132, marks=pytest.mark.slow),  # more inputs than the network is wide
    ],
)
def test_it_is_the_plain_integration(width, depth, inputs, processors, monkeypatch):
    """With rows for one block and a bit of another."""
    monkeypatch.setattr(plan, "PROCESSORS", processors)
    config = dataclasses.replace(ALONE, block_width=width, block_depth=depth, num_bins=41, sigma=4.0)
    field, (x, z_0), returns = fields(config, inputs - ACT), rows(70, inputs), scale()
    ours, reference = (jax.jit(jax.vmap(f, (None, 0, 0, None)))(field, x, z_0, returns) for f in (fused, plain))
    assert ours.shape == (70, 1)
    assert_close(ours, reference, z_0[:, None])


def test_its_parts_are_those_of_the_plain_one():
    """To float32, where the whole only agrees to bfloat16: GELU, and the embeddings in the kernel's unit of z."""
    u = jnp.linspace(-6.0, 6.0, 64)
    np.testing.assert_allclose(hopper._gelu(u), jax.nn.gelu(u, approximate=True), atol=1e-6)
    low, high, edges, sigma = jnp.float32(-101.0), jnp.float32(1.0), 41, 4.0
    z, t = jnp.linspace(-300.0, 200.0, 64), jnp.float32(0.625)
    unit = jnp.sqrt(2.0) * sigma * (high - low) / (edges - 1)
    ours = hopper._embedding((low - z) / unit, t, hopper._column_numbers(interpret=True), edges - 1, sigma)
    expected = jax.vmap(lambda z: histogram(z, low, high, edges, sigma))(z)
    np.testing.assert_allclose(ours[:, :40], expected, atol=1e-4)  # far outside, differences of erf cancel in both
    np.testing.assert_allclose(ours[:, 40], jnp.cos(t), rtol=1e-6)
    assert not ours[:, 41:].any()


def nested(one):
    """Over samples, which share an action; over the batch; over runs, which share nothing."""
    samples = jax.vmap(one, (None, None, 0, None))
    return jax.vmap(jax.vmap(samples, (None, 0, 0, None)))


def nested_arguments(config=SMALL, runs=2, batch=3, samples=2, obs=OBS):
    field = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(fields(config, obs, seed) for seed in range(runs)))
    x, z_0 = rows(runs * batch * samples, obs + ACT)
    x = x[: runs * batch].reshape(runs, batch, -1)
    returns = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(scale(-1.0 - run, run) for run in range(runs)))
    return field, x, z_0.reshape(runs, batch, samples), returns


@launches
def test_nested_vmaps_put_every_axis_in_its_place():
    field, x, z_0, returns = nested_arguments()
    ours, reference = (jax.jit(nested(f))(field, x, z_0, returns) for f in (fused, plain))
    assert ours.shape == (2, 3, 2, 2)
    assert_close(ours, reference, z_0[..., None])


@launches
def test_nested_vmaps_end_in_one_kernel():
    """Its result is [runs x members, batch x samples filled up to a block]."""
    on_the_chip = partial(fused, interpret=False)
    arguments = nested_arguments()
    assert kernel_results(nested(on_the_chip), *arguments) == [(4, 64)]
    field, x, z_0, returns = (jax.tree.map(lambda leaf: leaf[0], argument) for argument in arguments)
    only_x = jax.vmap(on_the_chip, (None, 0, None, None))
    assert kernel_results(only_x, field, x, z_0[0, 0], returns) == [(2, 64)]
    only_support = jax.vmap(on_the_chip, (None, None, None, 0))
    assert kernel_results(only_support, field, x[0], z_0[0, 0], arguments[3]) == [(4, 64)]
    runs_within_rows = jax.vmap(jax.vmap(on_the_chip, (0, None, None, 0)), (None, 0, 0, None))
    assert kernel_results(runs_within_rows, arguments[0], x, z_0[:, 0], arguments[3]) == [(4, 64)]


def kernel_results(function, *arguments) -> list[tuple[int, ...]]:
    """The shapes of what the kernels in a function return."""

    def walk(jaxpr) -> list[tuple[int, ...]]:
        found = []
        for equation in jaxpr.eqns:
            if equation.params.get("name") == "floq_integration":
                found += [equation.outvars[0].aval.shape]
                continue
            for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
                inner = getattr(value, "jaxpr", value)
                found += walk(inner) if hasattr(inner, "eqns") else []
        return found

    return walk(jax.make_jaxpr(function)(*arguments).jaxpr)


@launches
def test_a_critic_learns_the_same_with_it(monkeypatch):
    """Loss, gradient and target agree, since no gradient belongs to the integration."""
    monkeypatch.setattr(kernels, "check_machine", lambda: None)
    monkeypatch.setattr(kernels, "integrate_fused", partial(kernels.integrate_fused, interpret=True))
    obs, act = jnp.array([[0.1, -0.5, 0.3], [0.9, 0.2, -0.7]]), jnp.array([[0.4, -0.2], [-0.9, 0.1]])
    y, z_0, t = jnp.array([-40.0, -3.0]), jnp.array([-9.0, -0.5]), jnp.array([0.3, 0.8])
    results = []
    for integration in ("plain", "fused"):
        critic = FloqCritic.init(jax.random.key(0), OBS, ACT, dataclasses.replace(ALONE, integration=integration))

        def loss(critic):
            one = lambda obs, act, y: critic.loss_at(obs, act, y, scale(), z_0, t, z_0)[0]  # noqa: E731
            return jnp.mean(jax.vmap(one)(obs, act, y))

        def targets(critic):
            return jax.vmap(lambda obs, y: critic.target_at(y, y / 50, obs, act, scale(), z_0))(obs, y)

        results.append(jax.tree.leaves((jax.jit(targets)(critic), jax.jit(jax.value_and_grad(loss))(critic))))
    for expected, ours in zip(*results, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-2, atol=1e-2 * float(jnp.abs(expected).max()))


@launches
def test_a_fleet_update_has_two_kernels(monkeypatch):
    """That of the target, and that of the distilled value; both for all runs together."""
    monkeypatch.setattr(kernels, "check_machine", lambda: None)
    config = agent_config(dataclasses.replace(SMALL, integration="fused"))
    one_agent = lambda key: Agent.init(key, OBS, ACT, config)  # noqa: E731
    agents = jax.eval_shape(lambda: jax.vmap(one_agent)(jax.random.split(jax.random.key(0), 3)))
    batch = {name: jnp.zeros((3, 8, OBS)) for name in ("observations", "next_observations")}
    batch |= {"actions": jnp.zeros((3, 8, ACT)), "rewards": jnp.zeros((3, 8)), "masks": jnp.ones((3, 8))}
    assert kernel_results(jax.vmap(Agent.update), agents, batch) == [(6, 64), (6, 64)]


@launches
def test_it_has_no_derivative():
    field, (x, z_0) = fields(SMALL), rows(1)
    with pytest.raises(TypeError, match="stop the gradient"):
        jax.grad(lambda x: fused(field, x, z_0[0], scale(), interpret=False).sum())(x[0])


@launches
@pytest.mark.parametrize("runs", [1, 16])
def test_it_lowers_for_a_gpu_at_published_size(runs):
    arguments = jax.eval_shape(lambda: nested_arguments(PUBLISHED, runs, batch=256, samples=8, obs=37))
    traced = jax.jit(nested(partial(fused, interpret=False))).trace(*arguments)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()


def test_a_launch_fits_the_chip():
    published = partial(Plan.of, members=2, rows=2048, inputs=42, width=512, depth=4, num_steps=8, num_edges=51)
    one, sixteen = published(1, sigma=16.0), published(16, sigma=16.0)
    assert (one.warpgroups, sixteen.warpgroups, sixteen.stages) == (1, 2, 3)  # as measured to be best
    for width in range(64, 513, 64):
        for inputs in (1, 64, 400, 1000):
            for runs in (1, 16):
                p = Plan.of(runs, 2, 2048, inputs, width, 4, 8, 51, 16.0)
                acts, ring = p.warpgroups * p.act_tiles * 64 * 64, p.stages * 64 * p.slab
                assert 2 * (acts + ring) + 2048 <= 227 * 1024
                assert p.slab * p.slabs == width
                assert p.stages >= 2
    with pytest.raises(UserError, match=r"1300 numbers together, the kernel takes up to \d+; use plain"):
        Plan.of(1, 2, 2048, 1300, 512, 4, 8, 51, 16.0)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ({"layer_norm": False}, "layer_norm=True"),
        ({"use_resnets": True}, "use_resnets=False"),
        ({"use_prob_embed": False}, "use_prob_embed=True"),
        ({"num_bins": 65}, "num_bins=65 are too many; give up to 64"),
        ({"embed_time": False}, "not raw; give --agent.time_embedding=cos or use plain"),
        ({"time_embedding": "fourier"}, "not fourier"),
        ({"block_width": 100}, "block_width=100 does not fit"),
        ({"block_width": 1024}, "a multiple of 64 up to 512"),
    ],
)
def test_settings_that_it_lacks(setting, remedy):
    FloqConfig(**setting)
    with pytest.raises(UserError, match=f"--agent.integration=fused: .*{remedy}"):
        FloqConfig(integration="fused", **setting)


def test_machines_that_lack_it(monkeypatch, capsys, tmp_path):
    """Said before data is read or a folder is made. What was trained elsewhere can still be read out here."""
    monkeypatch.setattr(jax, "__version_info__", plan.RELEASES[0])
    flags = [f"--save_dir={tmp_path}", f"--dataset_dir={tmp_path}", "--precision=bf16", "--agent.integration=fused"]
    assert cli.run(["train", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--agent.integration=fused: it needs a Hopper GPU (H100, H200) and this is cpu; use plain" in line
    assert cli.run(["train", *flags, "--agent.block_width=100"]) == 2
    assert "does not fit" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

    config = dataclasses.replace(SMALL, integration="fused")
    critic = jax.eval_shape(lambda: FloqCritic.init(jax.random.key(0), OBS, ACT, config))
    obs, act, key = jnp.zeros(OBS), jnp.zeros(ACT), jax.random.key(1)
    assert jax.eval_shape(lambda critic: critic.read_out(obs, act, scale(), key), critic).shape == ()
    with pytest.raises(UserError, match="Hopper"):
        jax.eval_shape(lambda critic: critic.loss(obs, act, jnp.float32(0), scale(), key), critic)

    monkeypatch.setattr(jax, "__version_info__", (0, 99, 0))
    with pytest.raises(UserError, match=r"install one from 0\.11 on, before 0\.13 \(Python 3\.12\)"):
        kernels.check_machine()
