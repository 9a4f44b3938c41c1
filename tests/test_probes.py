"""Probe MDPs: tiny problems whose values are known exactly. Every critic must learn them, with every actor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACTOR, FLOQ, QUANTILE, SCALAR

from floq.agent import Agent, zeros_like_info
from floq.config import AgentConfig
from floq.critics import FloqCritic, QuantileCritic

WIDE = (32, 32)
CRITICS = {
    "floq": dataclasses.replace(FLOQ, value_hidden_dims=WIDE, block_width=32, critic_flow_steps=4, noise_samples=4),
    "floq at zero only": dataclasses.replace(
        FLOQ, value_hidden_dims=WIDE, block_width=32, critic_flow_steps=1, noise_samples=4, train_at_zero_only=True
    ),
    "scalar": dataclasses.replace(SCALAR, value_hidden_dims=WIDE),
    "quantile": dataclasses.replace(QUANTILE, value_hidden_dims=WIDE, num_tau_samples=8),
}
ACTORS = {"fql": dataclasses.replace(ACTOR, actor_hidden_dims=WIDE, alpha=0.3)}
DISCOUNT, BATCH, UPDATES = 0.5, 64, 1500


def learn(critic, actor, make_batch, reward_range) -> Agent:
    """Train on batches that `make_batch(key)` draws, in one device call."""
    config = AgentConfig(
        critic=CRITICS[critic], actor=ACTORS[actor], lr=3e-3, discount=DISCOUNT, tau=0.05, batch_size=BATCH
    )
    agent = Agent.init(jax.random.key(0), 1, 1, config, reward_range=reward_range)

    @jax.jit
    def run(agent):
        step = lambda i, carry: carry[0].update(make_batch(jax.random.fold_in(jax.random.key(1), i)))  # noqa: E731
        info = zeros_like_info(agent, make_batch(jax.random.key(2)))
        return jax.lax.fori_loop(0, UPDATES, step, (agent, info))[0]

    return run(agent)


def values(agent, states, actions):
    """(read-out, what the actor climbs) at each state and action."""
    obs, act = jnp.asarray(states, jnp.float32)[:, None], jnp.asarray(actions, jnp.float32)[:, None]
    keys = jax.random.split(jax.random.key(3), (2, len(states)))
    return np.array([jax.vmap(agent.value)(obs, act, keys[0]), jax.vmap(agent.actor_value)(obs, act, keys[1])])


def batch_of(obs, act, rewards, next_obs, masks):
    return {
        "observations": obs[:, None],
        "actions": act[:, None],
        "next_observations": next_obs[:, None],
        "rewards": rewards,
        "masks": masks,
    }


@pytest.fixture(
    params=[(c, a) for c in ("floq", "scalar", "quantile") for a in ACTORS], ids=lambda pair: "-".join(pair)
)
def pair(request):
    return request.param


def test_one_step_of_known_reward(pair):
    """The episode ends at once, so Q(s, a) is the reward, here s + a."""

    def make_batch(key):
        obs, act = jax.random.uniform(key, (2, BATCH), minval=-1.0)
        return batch_of(obs, act, obs + act, obs, jnp.zeros(BATCH))

    agent = learn(*pair, make_batch, (-2.0, 2.0))
    expected = [-1.0, 0.0, 1.0, -0.8]
    read_out, climbed = values(agent, [-0.5, 0.0, 0.5, 0.0], [-0.5, 0.0, 0.5, -0.8])
    np.testing.assert_allclose(read_out, expected, atol=0.2)
    np.testing.assert_allclose(climbed, expected, atol=0.2)


def test_a_chain_of_two_steps_discounts(pair):
    """State -1 leads to state +1 with reward 1, and that to the end with reward 2: values 1 + g 2 and 2."""

    def make_batch(key):
        state_key, act_key = jax.random.split(key)
        first = jax.random.bernoulli(state_key, shape=(BATCH,))
        obs = jnp.where(first, -1.0, 1.0)
        act = jax.random.uniform(act_key, (BATCH,), minval=-1.0)
        return batch_of(obs, act, jnp.where(first, 1.0, 2.0), jnp.ones(BATCH), first.astype(jnp.float32))

    agent = learn(*pair, make_batch, (0.0, 2.0))
    expected = [1.0 + DISCOUNT * 2.0, 2.0]
    read_out, climbed = values(agent, [-1.0, 1.0], [0.3, -0.3])
    np.testing.assert_allclose(read_out, expected, atol=0.2)
    np.testing.assert_allclose(climbed, expected, atol=0.2)


def test_a_loop_reaches_its_fixed_point(pair):
    """One state, reward 1 forever: Q = 1 / (1 - g)."""

    def make_batch(key):
        act = jax.random.uniform(key, (BATCH,), minval=-1.0)
        return batch_of(jnp.zeros(BATCH), act, jnp.ones(BATCH), jnp.zeros(BATCH), jnp.ones(BATCH))

    agent = learn(*pair, make_batch, (0.0, 1.0))
    read_out, climbed = values(agent, [0.0, 0.0], [-0.5, 0.5])
    np.testing.assert_allclose(read_out, 1 / (1 - DISCOUNT), atol=0.15)
    np.testing.assert_allclose(climbed, 1 / (1 - DISCOUNT), atol=0.15)


def test_the_actor_finds_the_better_action_and_the_target_uses_it(pair):
    """In state 0 the reward is the action, which leads to state 1; there it is minus the action, and the end. The
    data's actions are uniform, so a policy that only copied them would be worth 0 in both."""

    def make_batch(key):
        state_key, act_key = jax.random.split(key)
        first = jax.random.bernoulli(state_key, shape=(BATCH,))
        act = jax.random.uniform(act_key, (BATCH,), minval=-1.0)
        return batch_of(
            jnp.where(first, 0.0, 1.0), act, jnp.where(first, act, -act), jnp.ones(BATCH), first.astype(jnp.float32)
        )

    agent = learn(*pair, make_batch, (-1.0, 1.0))
    keys = jax.random.split(jax.random.key(4), (2, 100))
    acts = [float(jax.vmap(agent.act, (None, 0))(jnp.array([s]), keys[int(s)]).mean()) for s in (0.0, 1.0)]
    assert acts[0] > 0.5
    assert acts[1] < -0.5
    read_out, _ = values(agent, [0.0], [0.0])
    assert read_out[0] == pytest.approx(DISCOUNT * -acts[1], abs=0.2)


def test_the_ablation_without_dense_supervision_learns_too():
    """One step, supervised at t = 0 only (`train_at_zero_only`, K = 1)."""

    def make_batch(key):
        obs, act = jax.random.uniform(key, (2, BATCH), minval=-1.0)
        return batch_of(obs, act, obs + act, obs, jnp.zeros(BATCH))

    read_out, _ = values(learn("floq at zero only", "fql", make_batch, (-2.0, 2.0)), [-0.5, 0.5], [-0.5, 0.5])
    np.testing.assert_allclose(read_out, [-1.0, 1.0], atol=0.2)


def test_a_flow_contracts_its_source_noise_when_the_return_is_certain():
    """Flow matching carries the noise to the distribution of the targets; here that is one number per state, so all
    of z(0), spread over [-0.2, 0.2], must land on it."""

    def make_batch(key):
        obs, act = jax.random.uniform(key, (2, BATCH), minval=-1.0)
        return batch_of(obs, act, obs, obs, jnp.zeros(BATCH))

    agent = learn("floq", "fql", make_batch, (-1.0, 1.0))
    z_0 = agent.scale.noise(jnp.linspace(0.0, 1.0, 9))
    critic = agent.params.critic
    assert isinstance(critic, FloqCritic)
    paths = critic.trajectories(z_0, jnp.array([0.5]), jnp.zeros(1), agent.scale)
    assert float(paths[..., 0].std()) > 0.1
    assert float(paths[..., -1].std()) < 0.5 * float(paths[..., 0].std())


def test_implicit_quantiles_of_a_coin_are_its_expectiles():
    """One step with reward -1 or 1 at even odds. The published error is squared, so the value at tau is the
    tau-expectile, 2 tau - 1, where a quantile would be -1 or 1."""

    def make_batch(key):
        rewards = jnp.where(jax.random.bernoulli(key, shape=(BATCH,)), 1.0, -1.0)
        return batch_of(jnp.zeros(BATCH), jnp.zeros(BATCH), rewards, jnp.zeros(BATCH), jnp.zeros(BATCH))

    critic = learn("quantile", "fql", make_batch, (-1.0, 1.0)).params.critic
    assert isinstance(critic, QuantileCritic)
    taus = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    at = jax.vmap(lambda tau: critic._members(jnp.zeros(1), jnp.zeros(1), tau).mean())(taus)
    np.testing.assert_allclose(at, 2 * taus - 1, atol=0.25)
