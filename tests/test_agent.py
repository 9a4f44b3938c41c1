"""The agent's update: EMA order, optimiser, determinism, and what it is told."""

import dataclasses
import itertools
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import ACT, ACTOR, CATEGORICAL, FLOQ, OBS, QUANTILE, SCALAR, agent_config, make_batch

from floq import actors, critics
from floq.actors import DeterministicConfig
from floq.actors.fixed import FixedActor
from floq.agent.agent import ACTION_LIMIT, Agent
from floq.agent.config import AgentConfig, removed_settings
from floq.agent.policy import ObsStats
from floq.agent.state import Params
from floq.runs.config import UserError
from floq.utils.obs_spec import ObsSpec

CRITICS = {"floq": FLOQ, "scalar": SCALAR, "quantile": QUANTILE, "categorical": CATEGORICAL}


def slow_but_for(*names):
    """All critics; those that are not named wait for `-m slow`."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in CRITICS]


def make_agent(critic="floq", seed=0, **settings) -> Agent:
    return Agent.init(jax.random.key(seed), OBS, ACT, agent_config(CRITICS[critic], **settings))


def moments(agent) -> Params:
    """Adam's first moments."""
    return Params(*(state.mu for state in agent.opt_state))


def distance(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


vmapped_update = jax.jit(jax.vmap(Agent.update, (0, None)))


@pytest.mark.parametrize("critic", CRITICS)
def test_update_changes_parameters_and_counts(critic):
    agent = make_agent(critic)
    after, info = agent.update(make_batch())
    assert int(after.step) == 1
    assert distance(agent.params.critic, after.params.critic) > 0
    assert distance(agent.params.actor, after.params.actor) > 0
    assert all(np.isfinite(value) for value in info.values())
    expected = {"critic/critic_loss", "critic/q", "critic/td_error", "critic/abs_td_error", "actor/actor_loss"}
    expected |= {
        "actor/bc_flow_loss",
        "actor/mean_bc_flow_loss",
        "actor/distill_loss",
        "actor/q_loss",
        "actor/q",
        "actor/mse",
    }
    if critic == "floq":
        expected |= {"critic/floq_loss", "critic/distilled_critic_loss", "critic/var_flow_returns", "critic/flow_q"}
    assert set(info) == expected


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_average_takes_in_the_parameters_from_before_the_step(tau):
    agent = make_agent("scalar", tau=tau, lr=0.1)
    agent, _ = agent.update(make_batch())  # now online and target differ
    after, _ = agent.update(make_batch(seed=1))
    expected = jax.tree.map(
        lambda slow, fast: (1 - tau) * slow + tau * fast, agent.target, agent.params.critic.target_network()
    )
    assert distance(after.target, expected) < 1e-6
    assert distance(after.params.critic.target_network(), agent.params.critic.target_network()) > 1e-2


def test_the_first_adam_step_is_the_learning_rate_times_the_sign():
    agent = make_agent(lr=0.01)
    after, _ = agent.update(make_batch())
    step = np.abs(np.asarray(after.params.critic.velocity.entry.weight_x - agent.params.critic.velocity.entry.weight_x))
    np.testing.assert_allclose(step, 0.01, rtol=2e-3)


def test_a_traced_learning_rate_equals_optax_adam():
    agent = make_agent("scalar", lr=3e-3)
    adam = optax.adam(3e-3)
    params, state = agent.params, adam.init(agent.params)  # type: ignore[arg-type]
    for seed in range(3):
        batch = make_batch(seed=seed)
        before = agent
        agent, _ = agent.update(batch)
        # the gradient, from the first moment: m' = 0.9 m + 0.1 g
        grads = jax.tree.map(lambda new, old: (new - 0.9 * old) / 0.1, moments(agent), moments(before))
        updates, state = adam.update(grads, state)
        params = optax.apply_updates(params, updates)
    assert distance(params, agent.params) < 1e-5


@pytest.mark.parametrize("critic", CRITICS)
def test_the_same_seed_gives_the_same_agent_and_another_seed_another(critic):
    runs = []
    for seed in (0, 0, 1):
        agent = make_agent(critic, seed)
        for i in range(3):
            agent, _ = agent.update(make_batch(seed=i))
        runs.append(agent.params)
    assert distance(runs[0], runs[1]) == 0
    assert distance(runs[0], runs[2]) > 0


@pytest.mark.parametrize("critic", slow_but_for("scalar"))
def test_vmapped_agents_equal_looped_ones(critic):
    """A fleet is a vmap: initialisation bit by bit, updates up to the order of additions."""
    init = lambda key: Agent.init(key, OBS, ACT, agent_config(CRITICS[critic]))  # noqa: E731
    batch = make_batch()
    fleet = jax.vmap(init)(jax.random.split(jax.random.key(7), 3))
    updated, _ = vmapped_update(fleet, batch)
    for i, key in enumerate(jax.random.split(jax.random.key(7), 3)):
        single = init(key)
        pick = lambda tree, i=i: jax.tree.map(lambda leaf, i=i: leaf[i], tree)  # noqa: E731
        assert distance(pick(fleet.params), single.params) == 0
        after, _ = single.update(batch)
        assert distance(pick(updated.target), after.target) < 1e-5
        moved = jax.tree.map(lambda a, b: a - b, moments(after), pick(moments(updated)))
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(moved)) < 1e-3


@pytest.mark.parametrize("actor", [actors.FQLConfig(), actors.GaussianConfig(temperature=1.0, learn_temperature=True)])
def test_an_update_keeps_types_so_that_it_is_compiled_once(actor):
    agent = jax.eval_shape(lambda key: Agent.init(key, OBS, ACT, agent_config(FLOQ, actor)), jax.random.key(0))
    after, _ = jax.eval_shape(Agent.update, agent, make_batch())
    kinds = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(tree)] for tree in (agent, after)]
    assert kinds[0] == kinds[1]


def test_masks_cut_the_bootstrap():
    agent = make_agent("scalar")
    batch = make_batch() | {"masks": jnp.zeros(8)}
    targets = agent.td_targets(batch, jax.random.key(0))
    np.testing.assert_allclose(targets, batch["rewards"], rtol=1e-6)


def test_targets_are_clipped_to_the_possible_returns():
    """r in [-1, 0], g = 0.9: in [-10, 0]. The networks of a new agent answer near 0, those of this one far below."""
    batch, agent = make_batch(), make_agent("scalar", discount=0.9)
    far = dataclasses.replace(agent.target, net=jax.tree.map(lambda x: 30 * x, agent.target.net))
    free, clipped = (
        dataclasses.replace(agent, target=far, static=dataclasses.replace(agent.static, clip_targets=on))
        for on in (False, True)
    )
    found = free.td_targets(batch, jax.random.key(0))
    assert float(found.min()) < -10 or float(found.max()) > 0
    np.testing.assert_allclose(clipped.td_targets(batch, jax.random.key(0)), np.clip(found, -10, 0), rtol=1e-6)


@pytest.mark.parametrize("critic", ["scalar", "quantile"])
def test_noise_on_targets_is_gaussian_fresh_and_alike_for_all_of_a_transition(critic):
    agent = make_agent(critic)
    batch = {name: jnp.repeat(column, 128, axis=0) for name, column in make_batch().items()}
    batch |= {"masks": jnp.zeros(1024)}

    def noise(seed):
        return (
            np.reshape(agent._targets(agent._prepare(batch), jax.random.key(seed), 3.0), (1024, -1))
            - batch["rewards"][:, None]
        )

    first, second = noise(0), noise(1)
    assert float(first.std()) == pytest.approx(3.0, rel=0.1)
    assert float(first.mean()) == pytest.approx(0.0, abs=0.4)
    assert critic == "scalar" or float(first.std(axis=1).max()) < 1e-5
    assert abs(np.corrcoef(first[:, 0], second[:, 0])[0, 1]) < 0.2


def test_reward_scale_multiplies_rewards_and_their_range():
    agent = make_agent(reward_scale=3.0)
    assert agent.scale.r_min == -3.0
    np.testing.assert_allclose(agent._prepare(make_batch())["rewards"], 3 * make_batch()["rewards"])


def test_the_reward_range_is_widened_to_contain_zero():
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(), reward_range=(-5.0, -1.0))
    assert (agent.value_range.r_min, agent.value_range.r_max) == (-5.0, 0.0)
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(), reward_range=(0.5, 2.0))
    assert (agent.value_range.r_min, agent.value_range.r_max) == (0.0, 2.0)


def test_observations_are_normalised_and_actions_clipped():
    stats = ObsStats(jnp.full(OBS, 10.0), jnp.full(OBS, 4.0))
    agent = Agent.init(jax.random.key(0), OBS, ACT, agent_config(), obs_stats=stats)
    batch = make_batch() | {"observations": jnp.full((8, OBS), 18.0), "actions": jnp.ones((8, ACT))}
    prepared = agent._prepare(batch)
    np.testing.assert_allclose(prepared["observations"], 2.0)
    assert prepared["actions"].max() == jnp.float32(ACTION_LIMIT) < 1


LEARNED = [kind for _, kind in (*critics.CRITICS.values(), *actors.ACTORS.values()) if kind is not FixedActor]


@pytest.mark.parametrize("kind", LEARNED)
def test_critics_and_actors_take_the_dimension_of_a_vector_for_its_specification(kind):
    init = lambda obs_spec: jax.eval_shape(lambda: kind.init(jax.random.key(0), obs_spec, ACT))  # noqa: E731
    short, full, wider = init(OBS), init(ObsSpec.of(OBS)), init(ObsSpec.of(OBS + 1))
    assert eqx.tree_equal(short, full)
    assert not eqx.tree_equal(wider, full)


def test_an_agent_knows_what_an_observation_is():
    for given in (OBS, ObsSpec.of(OBS)):
        agent = Agent.init(jax.random.key(0), given, ACT, agent_config(SCALAR))
        assert (agent.obs_spec, agent.action_dim) == (ObsSpec.of(OBS), ACT)
        assert agent.act(agent.obs_spec.zeros(), jax.random.key(1)).shape == (ACT,)
    assert ObsSpec.of(np.prod((OBS,))) == ObsSpec.of(OBS)
    with pytest.raises(TypeError, match="'tuple'"):
        ObsSpec.of((OBS,))  # pyright: ignore[reportArgumentType]


def test_act_lies_in_the_box_and_follows_its_key():
    agent = make_agent()
    obs = jnp.ones(OBS)
    acts = jax.vmap(agent.act, (None, 0))(obs, jax.random.split(jax.random.key(0), 50))
    assert acts.shape == (50, ACT)
    assert jnp.abs(acts).max() <= 1
    assert len(np.unique(np.asarray(acts), axis=0)) == 50
    np.testing.assert_allclose(acts[0], agent.act(obs, jax.random.split(jax.random.key(0), 50)[0]), atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_normalize_q_loss_divides_by_the_mean_magnitude(normalize):
    """With a critic that says about 50 everywhere the loss is -50, or -1 if normalised."""
    agent = Agent.init(
        jax.random.key(0), OBS, ACT, agent_config(SCALAR, dataclasses.replace(ACTOR, normalize_q_loss=normalize))
    )
    head = lambda a: a.params.critic.net.body.linears[-1].bias  # noqa: E731
    info = eqx.tree_at(head, agent, head(agent) + 50.0).update(make_batch())[1]
    assert float(info["actor/q"]) == pytest.approx(50, abs=5)
    assert float(info["actor/q_loss"]) == pytest.approx(-1 if normalize else -float(info["actor/q"]), rel=1e-5)


@jax.jit
def gradients(agent, batch):
    """Of each loss, differentiated alone, in an agent's first update."""
    target_key, critic_key, actor_key = jax.random.split(jax.random.fold_in(agent.key, 0), 3)
    prepared = agent._prepare(batch)
    targets = jax.lax.stop_gradient(agent._targets(prepared, target_key))
    critic_grads = jax.grad(lambda c: agent._critic_loss(c, prepared, targets, critic_key)[0])(agent.params.critic)
    return critic_grads, jax.grad(lambda a: agent._actor_loss(a, prepared, actor_key)[0])(agent.params.actor)


@pytest.mark.parametrize("critic", slow_but_for("scalar", "categorical"))  # of others `test_golden` has the authors'
def test_critic_and_actor_get_the_gradients_of_their_own_losses_alone(critic):
    """The first moment after one step is a tenth of the gradient."""
    agent, batch = make_agent(critic), make_batch()
    critic_grads, actor_grads = gradients(agent, batch)
    after = moments(agent.update(batch)[0])
    for moment, grads in ((after.critic, critic_grads), (after.actor, actor_grads)):
        for m, g in zip(jax.tree.leaves(moment), jax.tree.leaves(grads), strict=True):
            np.testing.assert_allclose(m, 0.1 * g, rtol=1e-3, atol=1e-4 * float(jnp.abs(g).max()) + 1e-7)


def test_evaluate_loss_reports_what_update_reports_without_a_step():
    agent = make_agent()
    info = agent.evaluate_loss(make_batch(), jax.random.key(0))
    assert set(info) == set(agent.update(make_batch())[1])


def test_settings_that_only_scale_share_one_program():
    """Agents that differ in traced settings have the same static structure, and one vmapped update serves them."""
    still, moved = make_agent("scalar", lr=1e-9), make_agent("scalar", lr=0.1, discount=0.5, tau=0.3)
    assert jax.tree.structure(still) == jax.tree.structure(moved)
    fleet = jax.tree.map(lambda *leaves: jnp.stack(leaves), still, moved, moved)
    updated, _ = vmapped_update(fleet, make_batch())
    distances = [distance(jax.tree.map(lambda x, i=i: x[i], updated.params), still.params) for i in range(2)]
    assert distances[0] < 1e-6
    assert distances[1] > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"discount": 1.0}, "discount=1.0"),
        ({"tau": 1.5}, "tau=1.5"),
        ({"tau": -0.1}, "tau=-0.1: must be between 0 and 1"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"action_chunk": 0}, "action_chunk=0: must be greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        agent_config(**settings)


def test_settings_that_were_removed_are_read_at_the_value_that_remains():
    """Runs of the old layout, which the fixtures hold, have them at these values."""
    assert AgentConfig.from_flat("floq", "fql", removed_settings("floq")) == AgentConfig()
    for name, value in {"td_lambda": 0.5, "distill_flow_steps": 2}.items():
        with pytest.raises(UserError, match=rf"agent.{name}={value}: this setting was removed, only"):
            AgentConfig.from_flat("floq", "fql", {name: value})


# --- actors that want more of the agent ---


def make_rebrac(**settings) -> Agent:
    return Agent.init(
        jax.random.key(0), OBS, ACT, agent_config(SCALAR, DeterministicConfig(actor_hidden_dims=(16, 16), **settings))
    )


def full_batch(seed=0) -> dict:
    rng = np.random.default_rng(seed + 50)
    extra = {"next_actions": jnp.asarray(rng.uniform(-1, 1, (8, ACT)), jnp.float32)}
    return make_batch(seed=seed) | extra | {"terminals": jnp.array([0.0, 1.0] * 4)}


def test_the_actor_and_the_targets_move_in_every_other_update():
    agents = [make_rebrac(actor_freq=2)]
    for seed in range(4):
        agents.append(agents[-1].update(full_batch(seed))[0])
    moved = lambda part: [distance(part(a), part(b)) > 0 for a, b in itertools.pairwise(agents)]  # noqa: E731
    assert moved(lambda agent: agent.params.critic) == [True] * 4
    assert moved(lambda agent: agent.params.actor) == [False, True, False, True]
    assert moved(lambda agent: agent.target) == [False, True, False, True]
    assert [int(agents[-1].opt_state.critic.count), int(agents[-1].opt_state.actor.count)] == [4, 2]


def test_targets_act_with_the_slow_copy_of_the_actor():
    agent = make_rebrac(actor_noise=0.0)
    moved = jax.tree.map(lambda x: x + 0.5, agent.params.actor)
    agent = dataclasses.replace(agent, params=agent.params._replace(actor=moved))
    batch = agent._prepare(full_batch())
    acts = jax.vmap(lambda obs: jnp.tanh(agent.target_actor.net(obs)))(batch["next_observations"])
    values = jax.vmap(lambda o, a: agent.target.members(o, a, agent.scale))(batch["next_observations"], acts).mean(
        axis=1
    )
    expected = batch["rewards"] + 0.99 * values
    np.testing.assert_allclose(agent.td_targets(batch, jax.random.key(0)), expected, rtol=1e-4)
    assert make_rebrac(target_actor=False).target_actor is None


def test_a_penalty_of_the_actor_lowers_the_bootstrap():
    """By the discounted squared distance from the data's next action, where the data has one."""
    plain, held = make_rebrac(actor_noise=0.0), make_rebrac(actor_noise=0.0, alpha_critic=0.5)
    batch = plain._prepare(full_batch() | {"masks": jnp.array([0.0] + [1.0] * 7)})
    acts = jax.vmap(lambda obs: jnp.tanh(plain.target_actor.net(obs)))(batch["next_observations"])
    distance_squared = jnp.sum(jnp.square(acts - batch["next_actions"]), axis=1)
    expected = 0.99 * batch["masks"] * 0.5 * distance_squared * (1 - batch["terminals"])
    found = plain.td_targets(batch, jax.random.key(0)) - held.td_targets(batch, jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(UserError, match="the batch needs next_actions"):
        held.update(make_batch())


def test_diagnosis_of_the_features():
    """Parallel features have rank one; so has the batch if the observations are all the same."""
    agent = make_agent("scalar")
    found = agent.diagnose(make_batch(), jax.random.key(0))
    assert set(found) == {"critic/member_spread", "critic/feature_norm", "critic/feature_rank"}
    assert 1 < float(found["critic/feature_rank"]) < 8
    same = {name: jnp.broadcast_to(x[:1], x.shape) for name, x in make_batch().items()}
    assert float(agent.diagnose(same, jax.random.key(0))["critic/feature_rank"]) == pytest.approx(1, abs=1e-3)
    features = jax.vmap(lambda o, a: agent.params.critic.features(o, a, agent.scale))(
        make_batch()["observations"], agent._prepare(make_batch())["actions"]
    )
    ranks = []
    for member in range(2):
        singular = np.linalg.svd(np.asarray(features[:, member]), compute_uv=False)
        ranks.append((singular**2).sum() ** 2 / (singular**4).sum())
    assert float(found["critic/feature_rank"]) == pytest.approx(np.mean(ranks), rel=1e-3)
    norms = np.linalg.norm(np.asarray(features), axis=-1)
    assert float(found["critic/feature_norm"]) == pytest.approx(norms.mean(), rel=1e-4)


def test_act_and_value_take_lists_and_check_shapes():
    agent, key = Agent.init(jax.random.key(0), OBS, ACT, agent_config(SCALAR)), partial(jax.random.key, 1)
    obs, act = [0.5] * OBS, [0.0] * ACT
    np.testing.assert_array_equal(agent.act(obs, key()), agent.act(jnp.asarray(obs), key()))
    assert agent.value(obs, np.zeros(ACT), key()) == agent.value(jnp.asarray(obs), act, key())
    for wrong, complaint in (
        (obs[1:], r"the observation has shape \(2,\); this agent takes \(3,\)$"),
        ([obs] * 4, r"the observation has shape \(4, 3\); .*; jax.vmap takes many at once"),
        (["a"] * OBS, "the observation is not an array of numbers: give 3 of them"),
        ([[0.0], [0.0, 1.0]], "the observation is not an array of numbers"),
    ):
        for call in (lambda x: agent.act(x, key()), lambda x: agent.value(x, act, key())):
            with pytest.raises(UserError, match=complaint):
                call(wrong)
    with pytest.raises(UserError, match=r"the action has shape \(3,\); this agent takes \(2,\)"):
        agent.value(obs, obs, key())
