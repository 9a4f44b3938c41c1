"""Observations with images: what they are, stacked, cropped and encoded; every critic and actor with them; files that
hold them; a run from beginning to end, and the policy that is taken away."""

import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box
from helpers import ACTOR, CATEGORICAL, FLOQ, QUANTILE, SCALAR, agent_config
from online_runs import config
from PIL import Image
from probe_envs import watched

import floq
from floq import cli
from floq.actors import BestOfNConfig, DeterministicConfig, GaussianConfig
from floq.agent.agent import Agent
from floq.agent.policy import ObsStats
from floq.analysis.cost import traced_flops
from floq.critics import LoopedConfig
from floq.data.dataset import CROP_PADDING, Dataset, random_crop
from floq.data.formats.convert import to_minari
from floq.data.formats.files import decode_images
from floq.data.formats.open import open_dataset
from floq.data.options import DataOptions
from floq.data.replay import Experience, Replay, ReplaySnapshot
from floq.envs import spaces
from floq.envs.environments import EnvFactory, probe
from floq.evaluation.rollouts import Evaluator
from floq.export.exported import load_policy
from floq.networks.encoders import ENCODERS, Encoder, max_pool
from floq.runs import checkpoint
from floq.utils.errors import UserError
from floq.utils.machine import HEADLESS, use_renderer
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import FrozenDict

SPEC = ObsSpec.of({"wrist": (8, 8, 1), "above": (8, 8, 3), "joints/velocity": (2,)})
ENV = "probe_envs:Camera-v0"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.from_episodes(watched())


def observations(count: int, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = lambda shape: rng.integers(0, 256, (count, *shape)).astype(np.uint8)  # noqa: E731
    vector = rng.normal(size=(count, 2)).astype(np.float32)
    return {"joints/velocity": vector, "wrist": image((8, 8, 1)), "above": image((8, 8, 3))}


# --- What an observation is ---


@pytest.mark.parametrize("frames", [1, 3])
def test_a_row_holds_the_parts_of_all_frames(frames):
    spec, parts = SPEC.stacked(frames), observations(frames)
    rows = [SPEC.pack({name: x[number] for name, x in parts.items()}) for number in range(frames)]
    row = np.concatenate(rows)
    assert (row.shape, row.dtype) == (spec.shape, np.uint8)
    assert (spec.newest(row) == rows[-1]).all()
    for found in (spec.read(row), jax.jit(spec.read)(row)):
        assert list(found) == ["above", "joints/velocity", "wrist"]
        for name, x in found.items():
            assert (np.asarray(x) == np.concatenate(list(parts[name]), axis=-1)).all()
            assert x.shape == spec.shapes[name]
    coarse = spec.coarse(row[None])[0]
    above = spec.read(row)["above"]
    assert np.allclose(coarse[: above.size] * 255, above.ravel())  # blocks of a pixel each
    numbers = spec.of_numbers(np.concatenate([np.ravel(x) for x in spec.read(row).values()]))
    assert all((numbers[name] == x).all() for name, x in spec.read(row).items())
    assert sum(x.size for x in numbers.values()) == spec.num_numbers


def test_an_image_alone_and_what_is_no_observation():
    spec, image = ObsSpec.of({"image": (4, 5, 3)}), np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert (spec.read(image)["image"] == image).all()
    assert (spec.read(spec.pack({"image": image}))["image"] == image).all()
    assert str(spec.stacked(2)) == "image (4x5x6)"
    with pytest.raises(UserError, match=r"observations/image has shape \(4, 5\), this agent takes \(4, 5, 3\)"):
        spec.read(image[..., 0])
    with pytest.raises(UserError, match="wrist is missing"):
        SPEC.read({name: x[0] for name, x in observations(1).items() if name != "wrist"})
    with pytest.raises(UserError, match="give them an encoder"):
        SPEC.dim  # noqa: B018
    with pytest.raises(UserError, match=r"observations/depth has shape \(8, 8\)"):
        ObsSpec.of({"depth": (8, 8)})


def test_parts_without_an_image_are_a_vector():
    parts, zeros = {"b": np.ones((4, 1)), "a": np.zeros((4, 2))}, np.zeros(4)
    one = Dataset.from_arrays(parts, zeros[:, None], zeros, zeros, zeros)
    assert one.dims[0] == ObsSpec.of(3)
    assert (np.asarray(one.observations) == [0, 0, 1]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"above": np.zeros((5, 8, 8, 3))}, "observations/above are images of float64: give uint8"),
        ({"above": np.zeros((4, 8, 8, 3), np.uint8)}, "not equally long: above 4, joints/velocity 5, wrist 5"),
        ({"above": np.zeros((5, 8, 8), np.uint8)}, r"a part is a vector of numbers \(rows, size\), or an image"),
        ({"joints/velocity": np.full((5, 2), np.nan)}, "observations/joints/velocity is not finite in 5 of 5 rows"),
    ],
)
def test_parts_that_are_none(change, said):
    with pytest.raises(UserError, match=said):
        Dataset.from_arrays(observations(5) | change, np.zeros((5, 1)), np.zeros(5), np.zeros(5), np.zeros(5))


# --- Data and replay ---


def test_data_are_those_that_were_given(data):
    rows, given = data.on_host(), list(watched())
    assert data.dims == (SPEC, 2)
    assert data.observations.dtype == np.uint8
    for name in ("wrist", "above", "joints/velocity"):
        assert (rows.observations[name] == np.concatenate([one["observations"][name] for one in given])).all()
    again = Dataset.from_rows(*rows)
    assert again.fingerprint() == data.fingerprint()
    changed = rows.observations.copy()
    changed["above"][3, 0, 0, 0] ^= 1
    assert Dataset.from_rows(changed, *rows[1:]).fingerprint() != data.fingerprint()


def stacks(frames: list[np.ndarray], count: int) -> list[np.ndarray]:
    """For each row of an episode its newest frames, the first repeated where there are none before."""
    return [np.concatenate([frames[max(0, i - k)] for k in range(count - 1, -1, -1)]) for i in range(len(frames))]


@pytest.mark.parametrize("n_step", [1, 2])
def test_frames_never_cross_the_start_of_an_episode(data, n_step):
    seen, rows = data.seen_as(3, 0.0), np.asarray(data.observations)
    ends = np.flatnonzero(np.asarray(data.ends))
    expected = [
        stack
        for first, last in zip([0, *ends[:-1] + 1], ends, strict=True)
        for stack in stacks(list(rows[first : last + 1]), 3)
    ]
    assert (np.asarray(seen.observations_at(slice(None))) == np.array(expected)).all()
    for start in np.asarray(data.starts)[:20]:
        transition = seen.transition(jnp.int32(start), n_step, 0.9)
        assert (np.asarray(transition["observations"]) == expected[start]).all()
        reached = min(start + n_step, ends[ends > start][0])
        assert (np.asarray(transition["next_observations"]) == expected[reached]).all()


def test_a_replay_that_wraps_around_stacks_the_same_frames():
    ticks, spec = 7, SPEC.stacked(2)
    replay = Replay.of([ReplaySnapshot.empty(1, spec, 2)], ticks, 1, spec)
    rng, frames, episode = np.random.default_rng(0), [], []
    for tick in range(20):
        starts_episode = tick % 6 == 0
        frame = rng.integers(0, 256, SPEC.shape).astype(np.uint8)
        episode = [frame] if starts_episode else [*episode, frame]
        frames.append(stacks(episode, 2)[-1])
        one = lambda x: np.full((1, 1), x, np.float32)  # noqa: E731
        acts, stepped = np.zeros((1, 1, 2), np.float32), one(not starts_episode) > 0
        new = Experience(acts, one(0), one(1), stepped, frame[None, None])
        replay = replay.add(new)
        for index in range(int(replay.count[0])):
            start = int(replay.of_run(jnp.int32(0)).start(jnp.int32(index)))
            age = (tick + 1 - start) % ticks  # the row of tick t is t + 1
            transition = replay.data.transition(jnp.int32(start), 1, 0.9)
            if tick - age >= tick + 2 - ticks:  # the frame before it is not overwritten yet
                assert (np.asarray(transition["observations"]) == frames[tick - age]).all()
            reached = SPEC.newest(np.asarray(transition["next_observations"]))
            assert (reached == SPEC.newest(frames[tick - age + 1])).all()
    (kept,) = replay.recorded()
    assert kept.observations.dtype == np.uint8


def test_a_crop_is_one_of_49_each_as_likely():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (6, 5, 2)), jnp.uint8)
    padded = np.pad(np.asarray(image), ((3, 3), (3, 3), (0, 0)), mode="edge")
    for i, j in itertools.product(range(7), repeat=2):
        found = np.asarray(random_crop(image, jnp.array([i, j])))
        assert (found == padded[i : i + 6, j : j + 5]).all()
    assert CROP_PADDING == 3


def crops(image: np.ndarray) -> dict[bytes, tuple[int, int]]:
    """All crops of an image by their content."""
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="edge")
    return {padded[i : i + 8, j : j + 8].tobytes(): (i, j) for i, j in itertools.product(range(7), repeat=2)}


def test_batches_are_cropped_with_their_probability_and_both_observations_alike():
    """Random images, whose crops all differ."""
    noise = observations(12)
    data = Dataset.from_arrays(noise, np.zeros((12, 1)), np.zeros(12), np.zeros(12), np.arange(12) == 11).seen_as(
        1, 0.5
    )
    plain, sample = dataclasses.replace(data, p_aug=0.0), jax.jit(lambda data, key: data.sample(key, 8))
    used, corners = 0, set()
    for number in range(40):
        batch, drawn_with = sample(data, jax.random.key(number)), jax.random.split(jax.random.key(number))[0]
        before = sample(plain, drawn_with)
        kept = {key: SPEC.read(before[key]) for key in ("observations", "next_observations")}
        is_used = not all((batch[key][name] == kept[key][name]).all() for key in kept for name in SPEC.images)
        used += is_used
        for key, row in itertools.product(kept, range(8) if is_used else ()):
            images = [(np.asarray(kept[key][name][row]), np.asarray(batch[key][name][row])) for name in SPEC.images]
            found = {crops(image)[cropped.tobytes()] for image, cropped in images}
            assert len(found) == 1
            corners.add((number, row, *found))
        assert all((batch[key]["joints/velocity"] == kept[key]["joints/velocity"]).all() for key in kept)
    assert 10 <= used <= 30  # of 40, at one half
    assert len(corners) == 8 * used  # one corner for both observations of a transition
    assert len({corner for _, _, corner in corners}) > 40  # of 49


# --- Encoders ---


def conv(x, weight, bias):
    """A convolution of 3 x 3 by its definition, in float64."""
    (height, width, _), weight, bias = x.shape, np.asarray(weight), np.asarray(bias)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, weight.shape[-1]))
    for i, j in np.ndindex(height, width):
        out[i, j] = np.einsum("ijc,ijco->o", padded[i : i + 3, j : j + 3], weight)
    return out + bias


def pool(x):
    """A pooling of 3 x 3 with stride 2 by its definition: windows begin at -(missing // 2)."""
    sizes = [-(-n // 2) for n in x.shape[:2]]
    begins = [max(0, 2 * kept + 1 - n) // 2 for kept, n in zip(sizes, x.shape[:2], strict=True)]
    out = np.zeros((*sizes, x.shape[2]))
    for i, j in np.ndindex(*sizes):
        corner = [2 * at - begin for at, begin in zip((i, j), begins, strict=True)]
        rows, columns = (slice(max(0, at), at + 3) for at in corner)
        out[i, j] = x[rows, columns].max(axis=(0, 1))
    return out


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("name", ["impala_debug", "impala_small", "impala"])
def test_an_encoder_is_that_of_the_paper(name):
    spec = SPEC.encoded_by(name)
    encoder, dim = Encoder.init(jax.random.key(0), spec)
    assert encoder is not None
    assert dim == 2 * 512 + 2
    parts = {key: x[0] / np.float32(255) if x.ndim == 4 else x[0] for key, x in observations(1).items()}
    expected = []
    for key in ("above", "wrist"):  # in the order of their names, and the vector after them
        network, x = encoder.images[key], parts[key].astype(np.float64)
        assert [len(stack.blocks) for stack in network.stacks] == [ENCODERS[name].blocks] * len(ENCODERS[name].channels)
        for stack in network.stacks:
            x = pool(conv(x, stack.entry.weight, stack.entry.bias))
            for first, second in stack.blocks:
                y = conv(np.maximum(x, 0), first.weight, first.bias)
                x = x + conv(np.maximum(y, 0), second.weight, second.bias)
        head = np.asarray(network.head.weight), np.asarray(network.head.bias)
        expected.append(gelu(np.maximum(x, 0).reshape(-1) @ head[0] + head[1]))
    expected.append(parts["joints/velocity"])
    assert np.abs(np.asarray(encoder(parts)) - np.concatenate(expected)).max() < 1e-4


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2), (5, 4)])
def test_pooling_is_that_of_a_window(size):
    x = jax.random.normal(jax.random.key(0), (*size, 2))
    window = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (3, 3, 1), (2, 2, 1), "SAME")
    assert (max_pool(x) == window).all()
    assert np.allclose(pool(np.asarray(x)), window)


def convolutions(function, *arguments) -> int:
    """How many convolutions a function makes, those of loops as often as they are made."""

    def count(jaxpr) -> int:
        total = 0
        for equation in jaxpr.eqns:
            inner = [p for p in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "jaxpr"))]
            bodies = [getattr(p, "jaxpr", p) for p in inner if hasattr(p, "jaxpr") or hasattr(p, "eqns")]
            times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += times * sum(map(count, bodies)) + (equation.primitive.name == "conv_general_dilated")
        return total

    return count(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_an_observation_is_encoded_once_however_many_steps_are_integrated(data):
    counts = []
    for steps in (1, 8):
        critic = dataclasses.replace(FLOQ, critic_flow_steps=steps)
        actor = dataclasses.replace(ACTOR, actor_flow_steps=steps)
        agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(critic, actor, encoder="impala_debug"))
        batch = data.sample(jax.random.key(1), 8)
        counts.append(convolutions(lambda agent, batch: agent.update(batch), agent, batch))
    assert counts[0] == counts[1] > 0


def test_no_gradient_passes_through_the_integration_into_the_encoder(data):
    """The distilled value is a target: with weights that make it constant, the encoder learns the same."""
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(encoder="impala_debug"))
    batch = agent._prepare(data.sample(jax.random.key(1), 4))
    critic, scale = agent.params.critic, agent.scale
    targets = jnp.linspace(-3.0, -1.0, 4)

    def loss(critic, stopped):
        def one(obs, act, y, key):
            features = critic.encoder(obs)
            if stopped:
                features = jax.lax.stop_gradient(features)
            return critic.critic.loss(features, act, y, scale, key)[1]["flow_q"]

        keys = jax.random.split(jax.random.key(2), 4)
        return jnp.sum(jax.vmap(one)(batch["observations"], batch["actions"], targets, keys))

    grads = jax.grad(loss)(critic, False)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads.encoder))


# --- Agents ---

CRITICS = {
    "floq": FLOQ,
    "looped": LoopedConfig(value_hidden_dims=(16,), block_width=16, block_depth=2, critic_flow_steps=2),
    "scalar": SCALAR,
    "quantile": QUANTILE,
    "categorical": CATEGORICAL,
}
ACTORS = {
    "fql": ACTOR,
    "gaussian": GaussianConfig(actor_hidden_dims=(16,)),
    "deterministic": DeterministicConfig(actor_hidden_dims=(16,)),
    "best_of_n": BestOfNConfig(actor_hidden_dims=(16,), actor_flow_steps=2, num_candidates=2),
}
QUICK = [("floq", "fql")]


def pairs():
    for pair in itertools.product(CRITICS, ACTORS):
        yield pytest.param(*pair, id="-".join(pair), marks=() if pair in QUICK else pytest.mark.slow)


@pytest.mark.parametrize(("critic", "actor"), list(pairs()))
def test_every_critic_and_actor_learns_from_images(data, critic, actor):
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(CRITICS[critic], ACTORS[actor], encoder="impala_debug"))
    batch = data.sample(jax.random.key(1), 8)
    after, info = agent.update(batch)
    after, _ = after.update(batch)
    assert all(np.isfinite(value) for value in info.values())
    learned = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, agent.params)
    assert all(jax.tree.leaves(learned.critic.encoder.images["above"].stacks))
    followed = jax.tree.map(lambda a, b: bool((a != b).any()), after.target.encoder, agent.target.encoder)
    assert all(jax.tree.leaves(followed.images["wrist"].stacks))  # the target's copy follows
    parts = {name: x[0] for name, x in observations(1).items()}
    key = jax.random.key(3)
    by_name = after.act(parts, key)
    assert (by_name == after.act(SPEC.pack(parts), key)).all()
    assert (by_name == after.policy.act(SPEC.pack(parts), key)).all()
    assert np.isfinite(after.value(parts, by_name, key))
    assert all(np.isfinite(value) for value in after.diagnose(batch, key).values())


def test_an_agent_takes_the_parts_of_a_batch_as_its_rows(data):
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(SCALAR, encoder="impala_debug"))
    rows = data.sample(jax.random.key(1), 8)
    parts = rows | {name: SPEC.read(rows[name]) for name in ("observations", "next_observations")}
    one, other = (agent.update(batch)[0] for batch in (rows, parts))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), one.params, other.params))
    floats = {name: x[0] / 255 for name, x in observations(1).items()}
    with pytest.raises(UserError, match="the image above is of float32: give uint8, from 0 to 255"):
        one.act(floats, jax.random.key(0))
    with pytest.raises(UserError, match="observations have no images; leave it out"):
        Agent.init(jax.random.key(0), 3, 2, agent_config(encoder="impala"))


def test_the_networks_of_an_actor_have_encoders_of_their_own():
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(encoder="impala_debug"))
    weights = [
        encoder.images["above"].stacks[0].entry.weight
        for encoder in (agent.params.critic.encoder, agent.params.actor.flow.encoder, agent.params.actor.encoder)
    ]
    assert not any((a == b).all() for a, b in itertools.combinations(weights, 2))


def test_vectors_are_normalised_and_pixels_are_not(data):
    stats = ObsStats(*data.seen_as(2, 0.0).obs_stats())
    spec = SPEC.stacked(2)
    vectors = data.on_host().observations["joints/velocity"]
    assert np.allclose(stats.mean["joints/velocity"], np.tile(vectors.mean(axis=0), 2), atol=1e-6)
    assert list(stats.mean) == ["joints/velocity"]
    row = np.asarray(data.seen_as(2, 0.0).observation(jnp.int32(3)))
    read, parts = stats.normalize(row, spec), spec.read(row)
    assert np.allclose(read["above"], parts["above"] / 255)
    centred = parts["joints/velocity"] - stats.mean["joints/velocity"]
    assert np.allclose(read["joints/velocity"], centred / stats.std["joints/velocity"])


# --- Environments ---


def test_an_environment_shows_the_rows_of_its_parts():
    env = EnvFactory(ENV, frame_stack=2)()
    assert probe(env) == (SPEC.stacked(2), 2)
    assert env.parts == ("above (8x8x3)", "joints/velocity (2)", "wrist (8x8x1)")
    row = env.begin_episode((1, 2))
    step = env.advance(np.array([1.0, -1.0], np.float32))
    first, second = (SPEC.stacked(2).read(one) for one in (row, step.obs))
    assert (first["above"][..., :3] == first["above"][..., 3:]).all()
    assert (second["above"][..., :3] == first["above"][..., :3]).all()
    assert second["joints/velocity"].tolist() == [0, 0, 1, -1]
    assert (second["above"][..., 3:] == env.unwrapped.shown()["above"]).all()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("size", r"its observations/above was an array of uint8 of shape \(4, 8, 3\), and not an image of uint8"),
        ("type", "its observations/wrist was an array of float64"),
        ("part", "its observation has no part observations/joints/velocity"),
    ],
)
def test_an_environment_that_shows_something_else(fault, said):
    with pytest.raises(UserError, match=said):
        probe(EnvFactory(ENV, kwargs=FrozenDict({"fault": fault}))())


def test_channels_come_last():
    with pytest.raises(UserError, match="channels first: floq takes"):
        spaces.obs_spec(Box(0, 255, (3, 64, 64), np.uint8), "it")


@pytest.mark.skipif(len(HEADLESS) < 2, reason="Linux")
def test_without_a_renderer_there_is_one_line(monkeypatch):
    monkeypatch.setattr("floq.utils.machine.HEADLESS", ("no-such", "nor-this"))
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr("floq.utils.machine.sys.modules", {})
    with pytest.raises(UserError, match=r"visual-x shows images, and nothing renders them here .*no-such.*apt-get"):
        use_renderer("visual-x")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    use_renderer("visual-x")  # the user's


# --- Runs ---

IMAGES = {"encoder": "impala_debug"}


def pixel_config(save_dir, **settings):
    own = {"agent": agent_config(SCALAR, ACTOR, **IMAGES), "offline_steps": 4, "online_steps": 0, "eval_interval": 4}
    own |= {"frame_stack": 2, "p_aug": 0.5, "save_interval": 2, "normalize_observations": True}
    return config(save_dir, "Camera", **(own | settings))


@pytest.mark.usefixtures("no_pictures")
def test_a_run_from_images_goes_on_bit_by_bit(data, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    whole = floq.train(pixel_config(tmp_path / "whole"), data=data)
    short = floq.train(pixel_config(tmp_path / "short", offline_steps=2), data=data)
    resumed = floq.resume(str(short.folder), data, offline_steps=4)
    first, second = (checkpoint.load(run.folder / "checkpoints").agent for run in (whole, resumed))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), first.params, second.params))
    assert first.obs_spec == SPEC.stacked(2).encoded_by("impala_debug")


@pytest.mark.usefixtures("no_pictures")
def test_a_run_from_nothing_but_images_keeps_what_it_saw_as_single_frames(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    run = floq.train(pixel_config(tmp_path, offline_steps=0, warmup_steps=6, save_interval=4, online_steps=4))
    before = checkpoint.load_replay(run.folder / "checkpoints", 4)
    floq.resume(str(run.folder), online_steps=8)
    after = checkpoint.load_replay(run.folder / "checkpoints", 8)
    assert before is not None
    assert after is not None
    assert after.observations.shape == (*after.ends.shape, *SPEC.shape)
    assert (after.observations[: len(before.ends)] == before.observations).all()
    images = SPEC.read(after.observations[1:])["above"]  # nothing was seen at the first tick
    assert ((images == 250).sum(axis=(-1, -2, -3)) == 8).all()  # the column that Camera shows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--agent.encoder=impala"], "--agent.encoder=impala: observations have no images"),
        (["--p_aug=0.5"], "it crops images, and the observations have none"),
        (
            ["--agent.encoder=resnet"],
            "invalid choice 'resnet' for argument '--agent.encoder'",
        ),
        (["--frame_stack=0"], "frame_stack=0: must be greater than 0"),
        (["--p_aug=2"], "p_aug=2.0: must be between 0 and 1"),
    ],
)
def test_settings_that_need_images(dataset_dir, tmp_path, capsys, words, said):
    flags = ["--env_name=pointmaze-medium-navigate-singletask-v0", f"--dataset_dir={dataset_dir}"]
    assert cli.run(["train", *flags, f"--save_dir={tmp_path}", "--offline_steps=1", *words]) == 2
    assert said in capsys.readouterr().err


# --- Files ---


def opened(name):
    return open_dataset(str(name), "")


def same(one, other) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one.dtype.fields)


def test_files_with_images(data, tmp_path, capsys):
    rows = data.on_host()
    starts = np.flatnonzero(~rows.ends)
    flat = {
        "actions": rows.actions[starts],
        "rewards": rows.rewards[starts],
        "terminals": rows.masks[starts] == 0,
    }
    parts = {
        f"{key}/{name}": rows.observations[name][starts + shift]
        for key, shift in (("observations", 0), ("next_observations", 1))
        for name in rows.observations.dtype.fields
    }
    np.savez(tmp_path / "own.npz", **flat, **parts)
    assert same(opened(tmp_path / "own.npz").data.observations, rows.observations)
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "own.hdf5", "w") as file:
        for name, x in (flat | parts).items():
            file[name] = x
    assert same(opened(tmp_path / "own.hdf5").data.observations, rows.observations)
    assert cli.run(["data", "convert", str(tmp_path / "own.npz"), str(tmp_path / "converted.npz")]) == 0
    assert same(opened(tmp_path / "converted.npz").data.observations, rows.observations)
    picture = tmp_path / "sheet.png"
    assert cli.run(["data", "inspect", str(tmp_path / "own.npz"), f"--out={picture}"]) == 0
    assert "above (8x8x3), joints/velocity (2), wrist (8x8x1)" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


def test_an_image_alone_in_a_file(tmp_path):
    images = observations(6)["above"]
    np.savez(tmp_path / "x.npz", observations=images, actions=np.zeros((6, 1), np.float32), terminals=np.arange(6) == 5)
    assert (opened(tmp_path / "x.npz").data.observations["image"] == images).all()  # OGBench's visual datasets


def test_minari_with_jpeg_and_without(data, tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "store"))
    rows = data.on_host()
    to_minari(rows, "test/images-v0", "a test")  # JPEG, as is Minari's default
    found = opened("test/images-v0").data.observations
    assert found.dtype == rows.observations.dtype
    assert (found["joints/velocity"] == rows.observations["joints/velocity"]).all()
    distance = np.abs(found["above"].astype(int) - rows.observations["above"])
    assert distance.max() < 120  # JPEG is lossy
    assert distance.mean() < 20


def test_a_damaged_jpeg_is_named():
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(stream, format="JPEG")
    good = stream.getvalue()
    assert decode_images([good, good], 2, "x").shape == (2, 8, 8, 3)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(stream, format="JPEG")
    for bad in (good[:40], good[:0], stream.getvalue()):
        with pytest.raises(UserError, match="x: number 1 is no image of 8x8x3"):
            decode_images([good, bad], 2, "x")
    with pytest.raises(UserError, match="x: number 0 is no image of 4x4x3"):
        decode_images([good], 1, "x", (4, 4, 3))


def lerobot_folder(path, data: Dataset, pyarrow, video=False):
    """Two files, of versions 2 and 3 alike, with PNG images in them."""
    rows, episodes = data.on_host(), []
    ends = np.flatnonzero(rows.ends)
    for number, (first, last) in enumerate(zip([0, *ends[:-1] + 1], ends, strict=True)):
        png = []
        for image in rows.observations["above"][first:last]:
            Image.fromarray(image).save(stream := io.BytesIO(), format="PNG")
            png.append({"bytes": stream.getvalue(), "path": None})
        episodes.append(
            {
                "observation.state": rows.observations["joints/velocity"][first:last].tolist(),
                "observation.images.above": png,
                "action": rows.actions[first:last].tolist(),
                "next.reward": rows.rewards[first:last].tolist(),
                "next.success": (rows.masks[first:last] == 0).tolist(),
                "episode_index": [number] * (last - first),
            }
        )
    (path / "meta").mkdir(parents=True)
    kinds = {"observation.state": "float32", "observation.images.above": "image", "action": "float32"}
    kinds |= {"next.reward": "float32", "next.success": "bool", "episode_index": "int64"}
    kinds |= {"observation.images.wrist": "video"} if video else {}
    features = {name: {"dtype": kind, "shape": [8, 8, 3] if "images" in name else [2]} for name, kind in kinds.items()}
    (path / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "features": features}))
    for number, part in enumerate((episodes[:5], episodes[5:])):
        folder = path / "data" / "chunk-000"
        folder.mkdir(parents=True, exist_ok=True)
        joined = {name: list(itertools.chain(*(one[name] for one in part))) for name in part[0]}
        pyarrow.parquet.write_table(pyarrow.table(joined), folder / f"file-{number:03d}.parquet")
    return path


def test_a_lerobot_folder(data, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    found = open_dataset(str(lerobot_folder(tmp_path / "a", data, pyarrow)), "").data
    rows = data.on_host()
    kept = ~rows.ends & np.append(~rows.ends[1:] | (rows.masks[:-1] == 0), False)  # a last state that was not recorded
    assert found.dims[0] == ObsSpec.of({"images.above": (8, 8, 3), "state": (2,)})
    starts = ~found.ends
    assert (found.observations["images.above"][starts] == rows.observations["above"][kept]).all()
    assert (found.actions[starts] == rows.actions[kept]).all()
    assert (found.masks[starts] == rows.masks[kept]).all()
    folder = str(lerobot_folder(tmp_path / "b", data, pyarrow, video=True))
    with pytest.raises(UserError, match=r"wrist is of type 'video', .* --obs_keys observation.images.above obs"):
        open_dataset(folder, "")
    only = open_dataset(folder, "", options=DataOptions(obs_keys=("observation.state",))).data
    assert only.dims[0] == ObsSpec.of(2)


# --- Evaluation, and the policy to take away ---


@pytest.mark.parametrize("form", ["numpy", "onnx", "stablehlo"])
@pytest.mark.usefixtures("no_pictures")
def test_an_exported_policy_with_encoders_acts_as_the_agent(data, tmp_path, monkeypatch, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    if form == "stablehlo":
        pytest.importorskip("flatbuffers")
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    run = floq.train(pixel_config(tmp_path, offline_steps=1), data=data)
    out = tmp_path / "policy"
    assert cli.run(["export", str(run.folder), f"--format={form}", f"--out={out}", "--tolerance=1e-5"]) == 0
    if form == "numpy":
        policy = load_policy(out)
        parts = {name: np.concatenate([x[0]] * 2, axis=-1) for name, x in observations(1).items()}
        agent = checkpoint.load(run.folder / "checkpoints").agent
        assert policy.observation_parts == dict(SPEC.stacked(2).shapes)
        assert policy.act(parts, np.random.default_rng(0)).shape == (2,)
        with pytest.raises(ValueError, match="wrist is missing in the observation"):
            policy.act({name: x for name, x in parts.items() if name != "wrist"})
        assert agent.act(parts, jax.random.key(0)).shape == (2,)


def test_an_evaluation_sends_rows(data):
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(SCALAR, ACTOR, **IMAGES))
    with Evaluator(EnvFactory(ENV), 2, workers=1) as evaluator:
        found = evaluator(agent.policy, 0, 0)
    assert found is not None
    assert len(found.episodes) == 2


def test_convolutions_count_as_operations():
    x, weight = jnp.zeros((1, 6, 5, 3)), jnp.zeros((3, 3, 3, 4))
    layout = ("NHWC", "HWIO", "NHWC")
    function = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=layout)  # noqa: E731
    assert traced_flops(function, x, weight) == 2 * (6 * 5 * 4) * (3 * 3 * 3)


# --- What a reviewer found ---


def test_images_that_would_be_read_wrongly_are_refused():
    first = np.zeros((5, 3, 8, 8), np.uint8)
    with pytest.raises(UserError, match="channels first: give"):
        Dataset.from_arrays({"camera": first}, np.zeros((5, 1)), np.zeros(5), np.zeros(5), np.zeros(5))
    palette = Image.fromarray(np.zeros((8, 8, 3), np.uint8)).convert("P")
    palette.save(stream := io.BytesIO(), format="PNG")
    with pytest.raises(UserError, match=r"x: number 0 is no image .*mode 'P'"):
        decode_images([stream.getvalue()], 1, "x")
    with pytest.raises(UserError, match="observations is not an array of numbers"):
        Dataset.from_arrays([[1, 2], [3]], np.zeros((2, 1)), np.zeros(2), np.zeros(2), np.zeros(2))


def test_records_of_another_order_or_type_are_rearranged(data):
    rows = data.on_host()
    kinds = [("wrist", "u1", (8, 8, 1)), ("joints/velocity", "f8", 2), ("above", "u1", (8, 8, 3))]
    other = np.empty(len(rows.ends), kinds)
    for name in other.dtype.names or ():
        other[name] = rows.observations[name]
    assert Dataset.from_rows(other, *rows[1:]).fingerprint() == data.fingerprint()


def test_an_agent_takes_one_observation(data):
    agent = Agent.init(jax.random.key(0), SPEC, 2, agent_config(SCALAR, encoder="impala_debug"))
    with pytest.raises(UserError, match=r"observations/above has shape \(3, 8, 8, 3\), this agent takes \(8, 8, 3\)"):
        agent.act(observations(3), jax.random.key(0))


def test_a_factory_is_that_of_its_environment():
    made = EnvFactory(ENV, frame_stack=3, discount=0.5)()
    assert (made.factory.frame_stack, made.factory.discount) == (3, 0.5)
    again = made.factory()
    assert (again.obs_spec.frames, again.discount) == (3, 0.5)


@pytest.mark.usefixtures("no_pictures")
def test_policies_from_images_are_evaluated_off_policy(data, tmp_path, monkeypatch):
    monkeypatch.setenv("FLOQ_ENV_MODULES", "probe_envs")
    run = floq.train(pixel_config(tmp_path, offline_steps=1), data=data)
    assert cli.run(["export", str(run.folder), f"--out={tmp_path / 'policy'}"]) == 0

    def still(parts, rng):
        assert parts["above"].shape[1:] == (8, 8, 6)
        return np.zeros((len(parts["above"]), 2))

    policies = {"exported": load_policy(tmp_path / "policy"), "still": still}
    own = {"offline_steps": 2, "save_dir": str(tmp_path / "ope"), "batch_size": 8, "policy_samples": 2}
    own |= {"frame_stack": 2, "encoder": "impala_debug", "value_hidden_dims": (16,)}
    found = floq.ope(policies, data=data, seeds=(0,), critic="scalar", show=False, **own)
    assert [one.policy for one in found.policies] == ["exported", "still"]
    assert np.isfinite([one.seeds for one in found.policies]).all()


@pytest.mark.slow
def test_a_visual_task_of_ogbench():
    """In a process of its own: here MuJoCo has no renderer."""
    code = """
import os
import numpy as np
from floq.envs import ogbench
from floq.envs.environments import EnvFactory, probe
from floq.utils.errors import UserError
name = "visual-cube-single-play-singletask-task1-v0"
try:
    ogbench.check_task(name)
except UserError as error:
    assert "nothing renders them here" in str(error)
    print("no renderer")
else:
    env = EnvFactory(name, frame_stack=3)()
    spec, action_dim = probe(env)
    assert str(spec) == "image (64x64x9)" and action_dim == 5, spec
    first = spec.read(env.begin_episode((0,)))["image"]
    assert first.std() > 10 and (first[..., :3] == first[..., 6:]).all()
    print("seen", os.environ["MUJOCO_GL"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] in ("seen", "no")
