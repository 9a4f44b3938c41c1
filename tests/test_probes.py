"""Probe MDPs: tiny problems whose values are known exactly. Every critic must learn them, with every actor.

The probes of a pair are a small fleet: four agents, one program.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import ACTOR, CATEGORICAL, FLOQ, QUANTILE, SCALAR, optimised

from floq.actors import BestOfNConfig, DeterministicConfig, FixedConfig, GaussianConfig
from floq.agent.agent import Agent
from floq.agent.config import AgentConfig
from floq.agent.state import ValueRange
from floq.critics import FloqCritic, LoopedConfig, QuantileCritic

WIDE = (32,)
FLOQ = dataclasses.replace(
    FLOQ, value_hidden_dims=WIDE, block_width=32, block_depth=1, critic_flow_steps=2, noise_samples=4
)
CRITICS = {
    "floq": FLOQ,
    "looped": LoopedConfig(value_hidden_dims=WIDE, block_width=32, block_depth=1, critic_flow_steps=2, noise_samples=4),
    "scalar": dataclasses.replace(SCALAR, value_hidden_dims=WIDE),
    "quantile": dataclasses.replace(QUANTILE, value_hidden_dims=WIDE, num_tau_samples=8),
    "categorical": dataclasses.replace(CATEGORICAL, value_hidden_dims=WIDE),
}
VARIANTS = {
    "floq, at zero only": dataclasses.replace(FLOQ, critic_flow_steps=1, train_at_zero_only=True),
    "floq, residual": dataclasses.replace(FLOQ, use_resnets=True, num_transformations=2),
    "floq, midpoint": dataclasses.replace(FLOQ, solver="midpoint", critic_flow_steps=2),
    "floq, climbs the flow": dataclasses.replace(FLOQ, actor_climbs="flow", actor_noise_samples=2),
    "floq, climbs one pass": dataclasses.replace(FLOQ, actor_climbs="one_pass"),
    "scalar, residual": dataclasses.replace(CRITICS["scalar"], use_resnets=True, block_width=32, num_transformations=2),
    "floq, pairs of three": dataclasses.replace(FLOQ, flow_num_ensembles=3, q_agg="min_pair"),
    "quantile, pairs of three": dataclasses.replace(CRITICS["quantile"], value_num_ensembles=3, q_agg="min_pair"),
    "scalar, pairs of ten members": dataclasses.replace(
        CRITICS["scalar"], value_num_ensembles=10, q_agg="min_pair", target_action_samples=2
    ),
    "scalar, sixteen members": dataclasses.replace(CRITICS["scalar"], value_num_ensembles=16, q_agg="lcb", rho=0.5),
}
ACTORS = {
    "fql": dataclasses.replace(ACTOR, actor_hidden_dims=WIDE, alpha=0.3),
    "gaussian": GaussianConfig(actor_hidden_dims=WIDE, alpha=0.03),
    "deterministic": DeterministicConfig(actor_hidden_dims=WIDE, alpha=0.1, actor_noise=0.05),
    "best_of_n": BestOfNConfig(actor_hidden_dims=WIDE, actor_flow_steps=4, num_candidates=16),
}
DISCOUNT, BATCH, UPDATES = 0.5, 32, 600
PATIENCE = {"floq, climbs one pass": 8 * UPDATES}  # v(0, z) alone is learned more slowly than what K steps come to


class Probe(NamedTuple):
    """Draws a batch of (state, action, reward, next state, mask); and the range of rewards that the agent is told."""

    draw: Callable
    rewards: tuple[float, float]


def one_step(key):
    """The episode ends at once, so Q(s, a) is the reward, here s + a."""
    obs, act = jax.random.uniform(key, (2, BATCH), minval=-1.0)
    return obs, act, obs + act, obs, jnp.zeros(BATCH)


def chain(key):
    """State -1 leads to state +1 with reward 1, and that to the end with reward 2: values 1 + g 2 and 2."""
    state_key, act_key = jax.random.split(key)
    first = jax.random.bernoulli(state_key, shape=(BATCH,))
    act = jax.random.uniform(act_key, (BATCH,), minval=-1.0)
    return jnp.where(first, -1.0, 1.0), act, jnp.where(first, 1.0, 2.0), jnp.ones(BATCH), first.astype(jnp.float32)


def loop(key):
    """One state, reward 1 forever: Q = 1 / (1 - g)."""
    act = jax.random.uniform(key, (BATCH,), minval=-1.0)
    return jnp.zeros(BATCH), act, jnp.ones(BATCH), jnp.zeros(BATCH), jnp.ones(BATCH)


def choice(key):
    """In state 0 the reward is the action, which leads to state 1; there it is minus the action, and the end. The
    data's actions are uniform, so a policy that only copied them would be worth 0 in both."""
    state_key, act_key = jax.random.split(key)
    first = jax.random.bernoulli(state_key, shape=(BATCH,))
    act = jax.random.uniform(act_key, (BATCH,), minval=-1.0)
    return jnp.where(first, 0.0, 1.0), act, jnp.where(first, act, -act), jnp.ones(BATCH), first.astype(jnp.float32)


PROBES = {
    "one step": Probe(one_step, (-2.0, 2.0)),
    "chain": Probe(chain, (0.0, 2.0)),
    "loop": Probe(loop, (0.0, 1.0)),
    "choice": Probe(choice, (-1.0, 1.0)),
}


def learn(critic, actor="fql", probes=PROBES, updates=UPDATES) -> dict[str, Agent]:
    """Train an agent on each of the probes, all in one device call."""
    config = AgentConfig(critic=critic, actor=ACTORS[actor], lr=1e-2, discount=DISCOUNT, tau=0.05, batch_size=BATCH)
    ranges = [ValueRange.of(*probe.rewards) for probe in probes.values()]

    def batch(number, key):
        keys = jax.random.split(key, len(probes))
        drawn = [jnp.stack(probe.draw(k)) for probe, k in zip(probes.values(), keys, strict=True)]
        obs, act, rewards, next_obs, masks = jnp.stack(drawn)[number]
        columns = {"observations": obs[:, None], "actions": act[:, None], "next_observations": next_obs[:, None]}
        return columns | {"rewards": rewards, "masks": masks}

    @jax.jit
    @jax.vmap
    def run(number, value_range):
        agent = Agent.init(jax.random.key(0), 1, 1, config)
        agent = dataclasses.replace(agent, value_range=value_range)
        step = lambda i, carry: carry[0].update(batch(number, jax.random.fold_in(jax.random.key(1), i)))  # noqa: E731
        info = jax.eval_shape(step, 0, (agent, None))[1]
        return jax.lax.fori_loop(0, updates, step, (agent, jax.tree.map(lambda x: jnp.zeros(x.shape), info)))[0]

    with optimised():
        agents = run(jnp.arange(len(probes)), jax.tree.map(lambda *x: jnp.stack(x), *ranges))
    return {name: jax.tree.map(lambda x, i=i: x[i], agents) for i, name in enumerate(probes)}


@jax.jit
def values(agent, states, actions):
    """(read-out, what the actor climbs) at each state and action."""
    keys = jax.random.split(jax.random.key(3), (2, len(states)))
    pairs = states[:, None], actions[:, None]
    return jnp.stack([jax.vmap(agent.value)(*pairs, keys[0]), jax.vmap(agent.actor_value)(*pairs, keys[1])])


@jax.jit
def mean_action(agent, state):
    return jax.vmap(agent.act, (None, 0))(state[None], jax.random.split(jax.random.key(4), 100)).mean()


def check(agents: dict[str, Agent]) -> None:
    """That each agent knows the values of its probe, and found the better actions where there are any."""
    chosen = {s: float(mean_action(agents["choice"], jnp.float32(s))) for s in (0.0, 1.0)}
    assert chosen[0.0] > 0.5
    assert chosen[1.0] < -0.5
    for probe, states, actions, wanted, within in (
        ("one step", [-0.5, 0.0, 0.5, 0.0], [-0.5, 0.0, 0.5, -0.8], [-1.0, 0.0, 1.0, -0.8], 0.2),
        ("chain", [-1.0, 1.0] * 2, [0.3, -0.3] * 2, [1.0 + DISCOUNT * 2.0, 2.0] * 2, 0.2),
        ("loop", [0.0] * 4, [-0.5, 0.5] * 2, [1 / (1 - DISCOUNT)] * 4, 0.15),
        ("choice", [0.0] * 4, [0.0] * 4, [DISCOUNT * -chosen[1.0]] * 4, 0.2),
    ):
        found = values(agents[probe], jnp.array(states), jnp.array(actions))
        np.testing.assert_allclose(found, [wanted] * 2, atol=within, err_msg=probe)


def unhurried(values: tuple, quick: bool):
    """A case of a test; those that are not quick wait for `-m slow`: compiling a pair takes most of its time."""
    return pytest.param(*values, marks=() if quick else pytest.mark.slow)


PAIRS = [unhurried((c, a), quick=a == "fql" and c in ("floq", "scalar")) for c in CRITICS for a in ACTORS]


@pytest.fixture(scope="module")
def learned():
    """`learned(critic, actor)`: the agents of such a pair, trained once."""
    return functools.cache(lambda critic, actor: learn(CRITICS[critic], actor))


@pytest.mark.parametrize(("critic", "actor"), PAIRS)
def test_every_critic_learns_with_every_actor(learned, critic, actor):
    check(learned(critic, actor))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_the_critics_learn_too(variant):
    check(learn(VARIANTS[variant], updates=PATIENCE.get(variant, UPDATES)))


def test_a_flow_contracts_its_source_noise_when_the_return_is_certain(learned):
    """Flow matching carries the noise to the distribution of the targets; here that is one number for a state and
    action, so all of z(0), spread over [-0.4, 0.4], must land on it."""
    agent, pair = learned("floq", "fql")["one step"], (jnp.array([0.5]), jnp.zeros(1))
    critic = agent.params.critic
    assert isinstance(critic, FloqCritic)
    paths = jax.jit(FloqCritic.trajectories)(critic, agent.scale.noise(jnp.linspace(0.0, 1.0, 9)), *pair, agent.scale)
    assert float(paths[..., 0].std()) > 0.2
    assert float(paths[..., -1].std()) < 0.5 * float(paths[..., 0].std())
    assert float(paths[..., -1].mean()) == pytest.approx(0.5, abs=0.2)
    found = jax.jit(FloqCritic.diagnose)(critic, *pair, agent.scale, jax.random.key(0))
    assert float(found["contraction"]) < -0.2


@pytest.mark.slow
def test_implicit_quantiles_of_a_coin_are_its_expectiles():
    """One step with reward -1 or 1 at even odds. The published error is squared, so the value at tau is the
    tau-expectile, 2 tau - 1, where a quantile would be -1 or 1."""

    def draw(key):
        rewards = jnp.where(jax.random.bernoulli(key, shape=(BATCH,)), 1.0, -1.0)
        return jnp.zeros(BATCH), jnp.zeros(BATCH), rewards, jnp.zeros(BATCH), jnp.zeros(BATCH)

    critic = learn(CRITICS["quantile"], probes={"coin": Probe(draw, (-1.0, 1.0))})["coin"].params.critic
    assert isinstance(critic, QuantileCritic)
    taus = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    at = jax.vmap(lambda tau: critic._members(jnp.zeros(1), jnp.zeros(1), tau).mean())(taus)
    np.testing.assert_allclose(at, 2 * taus - 1, atol=0.25)


# --- Off-policy evaluation ---

DRAWS = 4
EVALUATED = {"another": (0.5, 0.3), "behaviour": (0.0, 1.0)}
"""Policies whose actions are uniform around a number, by that and by how far; in each state the same. The data's are
those of the second."""


def evaluate(critic) -> dict[str, Agent]:
    """Learn the values of these policies on `choice`, in whose second state alone their next actions count."""
    if "actor_climbs" in critic.__dataclass_fields__:
        critic = dataclasses.replace(critic, actor_climbs="one_pass")
    config = AgentConfig(critic=critic, actor=FixedConfig(), lr=1e-2, discount=DISCOUNT, tau=0.05, batch_size=BATCH)

    def batch(middle, width, key):
        draw_key, act_key = jax.random.split(key)
        obs, act, rewards, next_obs, masks = choice(draw_key)
        columns = {"observations": obs[:, None], "actions": act[:, None], "next_observations": next_obs[:, None]}
        drawn = middle + width * jax.random.uniform(act_key, (BATCH, DRAWS, 1), minval=-1.0)
        return columns | {"rewards": rewards, "masks": masks, "policy_actions": drawn}

    @jax.jit
    @jax.vmap
    def run(middle, width):
        agent = Agent.init(jax.random.key(0), 1, 1, config, reward_range=(-1.0, 1.0))
        draw = lambda i: batch(middle, width, jax.random.fold_in(jax.random.key(1), i))  # noqa: E731
        step = lambda i, agent: agent.update(draw(i))[0]  # noqa: E731
        return jax.lax.fori_loop(0, UPDATES, step, agent)

    with optimised():
        agents = run(*jnp.array(list(EVALUATED.values())).T)
    return {name: jax.tree.map(lambda x, i=i: x[i], agents) for i, name in enumerate(EVALUATED)}


@pytest.mark.parametrize("critic", [unhurried((c,), quick=c == "scalar") for c in CRITICS])
def test_every_critic_knows_the_value_of_the_evaluated_policy(critic):
    """Not that of the greedy policy, 1 + g, nor that of the policy that made the data, but where it is evaluated."""
    for name, agent in evaluate(CRITICS[critic]).items():
        middle, width = EVALUATED[name]
        actions = middle + width * jnp.linspace(-0.8, 0.8, 9)
        keys = jax.random.split(jax.random.key(3), 9)
        found = jax.jit(jax.vmap(agent.value, (None, 0, 0)))(jnp.zeros(1), actions[:, None], keys)
        np.testing.assert_allclose(found.mean(), middle - DISCOUNT * middle, atol=0.1, err_msg=name)
        np.testing.assert_allclose(found, actions - DISCOUNT * middle, atol=0.25, err_msg=name)
