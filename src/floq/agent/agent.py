"""An agent: a critic, an actor and an optimiser in one pytree. Only this module combines critics with actors."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from floq.actors import ACTORS, Actor
from floq.actors.fixed import one_of
from floq.agent.config import AgentConfig, Hypers
from floq.agent.finite import OK, first_nonfinite
from floq.agent.policy import ObsStats, Policy, best_of
from floq.agent.state import ADAM, OptStates, Params, ValueRange
from floq.critics import CRITICS, Critic, ReturnScale
from floq.critics.base import Ranking
from floq.critics.encoded import EncodedCritic
from floq.networks.encoders import DEFAULT
from floq.networks.mlp import effective_rank
from floq.networks.precision import PUBLISHED, Precision, matmul_precision
from floq.utils.errors import UserError
from floq.utils.obs_spec import IMAGE, ObsSpec
from floq.utils.schema import Size, convert

Batch: TypeAlias = dict[str, Any]
Info: TypeAlias = dict[str, Float[Array, ""]]

Tree = TypeVar("Tree")

ACTION_LIMIT = 1 - 1e-5  # dataset actions are clipped to this, as published
MAX_DIAGNOSED = 128  # transitions of a batch over which diagnostics are averaged


class Agent(eqx.Module):
    """The complete training state, with `update`, `act` and `value` as pure functions of it.

    Every field but the last four is an array or a tree of arrays. `obs_spec`, `action_dim` and `static` alone determine
    shapes and branches; the other settings are in `hypers`, and have their defaults in `static`. `precision` applies to
    updates; acting and reading out values always use float32.
    """

    params: Params
    target: Critic
    target_actor: Actor | None  # None if TD targets use the actor itself
    opt_state: OptStates
    key: PRNGKeyArray  # never changes: the randomness of update number i is fold_in(key, i)
    step: Int[Array, ""]
    hypers: Hypers
    value_range: ValueRange
    obs_stats: ObsStats
    obs_spec: ObsSpec = eqx.field(static=True)
    action_dim: int = eqx.field(static=True)  # of a whole chunk of actions
    static: AgentConfig = eqx.field(static=True)
    precision: Precision = eqx.field(static=True, default=PUBLISHED)

    @classmethod
    def init(
        cls,
        key: PRNGKeyArray,
        obs_spec: ObsSpec | int | Mapping[str, tuple[int, ...]],
        action_dim: int,
        config: AgentConfig | None = None,
        *,
        reward_range: tuple[float, float] = (-1.0, 0.0),
        obs_stats: ObsStats | None = None,
        precision: Precision = PUBLISHED,
    ) -> "Agent":
        """Initialise an agent.

        Args:
            key: the only source of randomness; the same key gives the same agent.
            obs_spec: what an observation is; for a vector, its dimension is enough, for images and several parts a
                mapping from names to shapes.
            action_dim: action dimension; with action chunks, that of a whole chunk. Actions are in [-1, 1].
            config: critic, actor and their settings.
            reward_range: smallest and largest reward of the data. It determines floq's source noise and histogram, so
                it must fit the data.
            obs_stats: mean and std that normalise observations; by default they are not normalised.
            precision: precision of updates.
        """
        config, obs_spec = config or AgentConfig(), ObsSpec.of(obs_spec)
        if obs_spec.is_vector and config.encoder:
            raise UserError(f"--agent.encoder={config.encoder}: observations have no images; leave it out")
        if not obs_spec.is_vector:
            obs_spec = obs_spec.encoded_by(config.encoder or DEFAULT)
        stats = obs_stats or ObsStats.identity(obs_spec)
        traced = Hypers.of(config), ValueRange.of(*reward_range), stats
        kinds = CRITICS[config.critic_name][1], ACTORS[config.actor_name][1]
        return _init_agent(key, *traced, kinds, obs_spec, action_dim, config.compiled(), precision)

    @jax.jit
    def update(self, batch: Batch) -> tuple["Agent", Info]:
        """Take one gradient step on critic and actor.

        Args:
            batch: `observations`, `actions`, `next_observations` of shape (batch, size), or observations as a mapping
                of parts, images of uint8 and shape (batch, H, W, C); `rewards` and `masks` of shape (batch,), where the
                mask is 0 at a true termination. For n-step returns `rewards` is the discounted sum of n rewards,
                `next_observations` is n steps later, and `masks` includes the further powers of the discount (see
                `floq.data.Dataset.sample`). `next_actions` and `terminals` only for an actor that reads the next
                action; `policy_actions` (batch, draws, size), actions of a fixed policy in the next states, take the
                place of the actor's in the TD targets.

        Returns:
            The agent after the step, and the scalars to log: `critic/...` and `actor/...`.
        """
        return self._step(batch)[:2]

    @jax.jit
    def update_if_finite(self, batch: Batch) -> tuple["Agent", Info, Int[Array, ""]]:
        """Update as `update` does, or leave the agent unchanged if a term of the update is not finite.

        Returns:
            The agent, the scalars to log, and the number, from 1, of the first of `floq.agent.finite.TERMS` that is not
            finite (`OK` if there is none).
        """
        agent, info, fault = self._step(batch)
        keep = lambda new, old: jnp.where(fault == OK, new, old)  # noqa: E731
        names = ("params", "target", "target_actor", "opt_state", "step")
        fields = {name: jax.tree.map(keep, getattr(agent, name), getattr(self, name)) for name in names}
        return dataclasses.replace(agent, **fields), info, fault

    def _step(self, batch: Batch) -> tuple["Agent", Info, Int[Array, ""]]:
        target_key, critic_key, actor_key = jax.random.split(jax.random.fold_in(self.key, self.step), 3)
        batch = self._prepare(batch)
        with matmul_precision(self.precision):
            targets = self._targets(batch, target_key, self.static.target_noise_magnitude)
            critic_grad_fn = jax.value_and_grad(self._critic_loss, has_aux=True)
            (critic_loss, critic_info), critic_grads = critic_grad_fn(self.params.critic, batch, targets, critic_key)
        critic, critic_state = self._adam(self.params.critic, critic_grads, self.opt_state.critic)
        critic_terms = targets, critic_loss, critic_grads

        def update_actor(_: Any) -> tuple[tuple[Actor, optax.OptState, Critic, Actor | None], Info, Array]:
            """Update the actor and the target networks. As published, the moving average uses the parameters from
            before this step."""
            with matmul_precision(self.precision):
                actor_grad_fn = jax.value_and_grad(self._actor_loss, has_aux=True)
                (loss, info), grads = actor_grad_fn(self.params.actor, batch, actor_key)
            actor, state = self._adam(self.params.actor, grads, self.opt_state.actor)
            target = self._ema_step(self.target, self.params.critic.target_network())
            updated = actor, state, target, self._ema_step(self.target_actor, self.params.actor.target_network())
            return updated, info, first_nonfinite((*critic_terms, loss, grads, critic, actor))

        def skip_actor(_: Any) -> tuple[tuple[Actor, optax.OptState, Critic, Actor | None], Info, Array]:
            with matmul_precision(self.precision):
                loss, info = self._actor_loss(self.params.actor, batch, actor_key)
            unchanged = self.params.actor, self.opt_state.actor, self.target, self.target_actor
            return unchanged, info, first_nonfinite((*critic_terms, loss, (), critic))

        interval = self.params.actor.update_interval
        if interval == 1:
            updated, actor_info, fault = update_actor(None)
        else:
            due = (self.step + 1) % interval == 0
            updated, actor_info, fault = jax.lax.cond(due, update_actor, skip_actor, None)
        actor, actor_state, target, target_actor = updated
        agent = dataclasses.replace(
            self,
            params=Params(critic, actor),
            target=target,
            target_actor=target_actor,
            opt_state=OptStates(critic_state, actor_state),
            step=self.step + 1,
        )
        return agent, critic_info | actor_info, fault

    def _adam(self, params: Tree, grads: Tree, state: optax.OptState) -> tuple[Tree, optax.OptState]:
        steps, state = ADAM.update(grads, state)  # pyright: ignore[reportArgumentType]
        return jax.tree.map(lambda p, s: p - self.hypers.lr * s, params, steps), state

    def _ema_step(self, target: Tree, online: Tree) -> Tree:
        """Move the target network one step of its exponential moving average towards `online`."""
        tau = self.hypers.tau
        return jax.tree.map(lambda target, online: (1 - tau) * target + tau * online, target, online)

    @jax.jit
    def evaluate_loss(self, batch: Batch, key: PRNGKeyArray) -> Info:
        """Return the scalars that `update` would log on this batch, without a step: for validation. Consumes `key`."""
        target_key, critic_key, actor_key = jax.random.split(key, 3)
        batch = self._prepare(batch)
        with matmul_precision(self.precision):
            targets = self._targets(batch, target_key)
            critic_info = self._critic_loss(self.params.critic, batch, targets, critic_key)[1]
            return critic_info | self._actor_loss(self.params.actor, batch, actor_key)[1]

    @jax.jit
    def td_targets(self, batch: Batch, key: PRNGKeyArray) -> Float[Array, " batch *y"]:
        """Return the critic's regression target for each transition of a batch, in float32; a quantile critic has
        several targets for each. Consumes `key`."""
        with matmul_precision("f32"):
            return self._targets(self._prepare(batch), key)

    @jax.jit
    def diagnose(self, batch: Batch, key: PRNGKeyArray) -> Info:
        """Return the critic's diagnostics on (the first rows of) a batch: `critic/...`, as documented in the `diagnose`
        of each critic; and for the inputs of its last layer, averaged over members, `feature_norm`, their mean length,
        and `feature_rank`, the participation ratio of their squared singular values, 1 if all are parallel. Consumes
        `key`."""
        batch = self._prepare(batch)
        first = lambda x: jax.tree.map(lambda x: x[:MAX_DIAGNOSED], x)  # noqa: E731
        obs, act = (first(batch[name]) for name in ("observations", "actions"))
        critic, scale = self.params.critic, self.scale
        with matmul_precision("f32"):
            keys = jax.random.split(key, act.shape[0])
            info = jax.vmap(lambda obs, act, key: critic.diagnose(obs, act, scale, key))(obs, act, keys)
            features = jax.vmap(lambda obs, act: critic.features(obs, act, scale), out_axes=1)(obs, act)
        if features is not None:  # (members, batch, features)
            info["feature_norm"] = jnp.linalg.norm(features, axis=-1)
            info["feature_rank"] = jax.vmap(effective_rank)(features)
        return _named_means("critic", info)

    def act(self, obs: Any, key: PRNGKeyArray) -> Float[Array, " act"]:
        """Return one action in [-1, 1] for one observation; vmap over both arguments for many. Consumes `key`. With the
        setting `action_chunk` h it is the next h actions, concatenated, to be executed one after another. Raises
        UserError if `obs` has another shape than the observations that the agent was trained on."""
        return self.policy.act(self._observation(obs), key)

    @property
    def policy(self) -> Policy:
        """The part of the agent that acts."""
        return self.best_of()

    def best_of(
        self, num_candidates: int | None = None, rank_by: Ranking | None = None, acting_flow_steps: int | None = None
    ) -> Policy:
        """Return the policy that takes the best of so many samples of the actor, ranked by a value of a flow critic;
        each is by default as in training. With one candidate the actor acts alone.

        Raises:
            UserError: the actor has no samples to choose from, or nothing is ranked as asked.
        """
        (actor, critic), count = (self.params.actor, self.params.critic), num_candidates
        if count is None:
            count = actor.num_candidates
        elif self.samples_actions:
            count = convert("num_candidates", count, Size)
        elif count != 1:
            name = self.static.actor_name
            raise UserError(f"num_candidates={count}: actor {name!r} has one action and no samples; leave it out")
        if rank_by is not None or acting_flow_steps is not None:
            if count == 1:
                given = f"rank_by={rank_by}" if rank_by else f"acting_flow_steps={acting_flow_steps}"
                raise UserError(f"{given}: with one candidate nothing is ranked; give num_candidates too")
            critic = critic.ranking_by(rank_by, acting_flow_steps)
        ranking = (critic, self.scale) if count > 1 else (None, None)
        return Policy(actor, *ranking, self.obs_stats, self.obs_spec, count)

    @property
    def samples_actions(self) -> bool:
        """Whether the actor can be asked for several samples: it has the setting."""
        return "num_candidates" in self.static.flat()

    def value(
        self,
        obs: Any,
        act: Any,
        key: PRNGKeyArray,
        num_steps: int | None = None,
    ) -> Float[Array, ""]:
        """Return Q(obs, act) by the critic's `read_out`, in units of return; K = `num_steps` for a flow critic.

        One observation and one action; vmap for many. Consumes `key`. Raises UserError if one of them has another shape
        than those that the agent was trained on.
        """
        obs = self._observation(obs)
        act = _vector("the action", act, (self.action_dim,))
        with matmul_precision("f32"):
            return self.params.critic.read_out(self.normalize(obs), act, self.scale, key, num_steps)

    @property
    def scale(self) -> ReturnScale:
        """Scale of returns for the critic."""
        h, r = self.hypers, self.value_range
        return ReturnScale(r.r_min * h.reward_scale, r.r_max * h.reward_scale, h.discount, h.noise_coverage)

    def actor_value(self, obs: Any, act: Float[Array, " act"], key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the Q that the actor maximises; for floq the distilled critic. One observation and one action.
        Consumes `key`."""
        with matmul_precision("f32"):
            return jnp.mean(self.params.critic.actor_value(self.normalize(obs), act, self.scale, key))

    def normalize(self, obs: Any) -> Any:
        """Normalise observations as the networks expect them."""
        return self.obs_stats.normalize(obs, self.obs_spec)

    def _observation(self, obs: Any) -> Any:
        """Return one observation as arrays. Raises UserError if it, or a part of it, is of another shape."""
        spec = self.obs_spec
        if spec.is_vector:
            return _vector("the observation", obs, spec.shape)
        if not isinstance(obs, Mapping) and jnp.shape(obs) == spec.shape:
            return jnp.asarray(obs)
        given = obs if isinstance(obs, Mapping) else {IMAGE: obs}
        parts = spec.read({name: jnp.asarray(part) for name, part in given.items()})
        for name, shape in spec.shapes.items():
            if parts[name].shape != shape:
                raise UserError(
                    f"observations/{name} has shape {parts[name].shape}, this agent takes {shape}; jax.vmap takes many"
                )
        if odd := [name for name in spec.images if parts[name].dtype != jnp.uint8]:
            raise UserError(f"the image {odd[0]} is of {parts[odd[0]].dtype}: give uint8, from 0 to 255")
        return parts

    def _prepare(self, batch: Batch) -> Batch:
        prepared = batch | {"rewards": batch["rewards"] * self.hypers.reward_scale}
        for name in ("observations", "next_observations"):
            prepared[name] = jax.vmap(self.normalize)(batch[name])
        for name in ("actions", "next_actions", "policy_actions"):
            if name in batch:
                prepared[name] = jnp.clip(batch[name], -ACTION_LIMIT, ACTION_LIMIT)
        return prepared

    def _targets(self, batch: Batch, key: PRNGKeyArray, noise_std: float = 0.0) -> Float[Array, " batch *y"]:
        actor = self.params.actor if self.target_actor is None else self.target_actor
        critic, online = self.target, self.params.critic

        def target(reward, mask, next_obs, drawn, key):
            policy = actor.target_act
            if drawn is not None:
                policy = lambda obs, key: one_of(drawn, key)  # noqa: E731
            elif actor.target_candidates > 1:  # ranked once, however many samples or quantiles the target has
                key, act_key = jax.random.split(key)
                # The online critic selects the action, its target network evaluates it.
                best = best_of(actor.target_candidates, actor, online, self.scale, next_obs, act_key)
                policy = lambda obs, key: best  # noqa: E731
            return critic.target(reward, self.hypers.discount * mask, next_obs, policy, self.scale, key)

        rewards = batch["rewards"]
        if actor.has_target_penalty:
            key, penalty_key = jax.random.split(key)
            rewards -= self.hypers.discount * batch["masks"] * self._penalties(actor, batch, penalty_key)
        noise_key = None
        if noise_std:
            key, noise_key = jax.random.split(key)
        keys = jax.random.split(key, rewards.shape[0])
        drawn = batch.get("policy_actions")
        targets = jax.vmap(target)(rewards, batch["masks"], batch["next_observations"], drawn, keys)
        if noise_key is not None:  # one draw for all quantiles of a transition
            targets += noise_std * jax.random.normal(noise_key, (len(targets), *[1] * (targets.ndim - 1)))
        return jnp.clip(targets, *self.scale.support(0.0)) if self.static.clip_targets else targets

    def _penalties(self, actor: Actor, batch: Batch, key: PRNGKeyArray) -> Float[Array, " batch"]:
        """Compute the penalties that the actor subtracts from the values of the next states. Consumes `key`."""
        if actor.reads_next_action and not {"next_actions", "terminals"} <= batch.keys():
            raise UserError("this actor compares with the data's next action: the batch needs next_actions, terminals")
        next_acts = batch.get("next_actions", batch["actions"])
        valid = 1.0 - batch.get("terminals", jnp.zeros(next_acts.shape[0]))
        keys = jax.random.split(key, next_acts.shape[0])
        return jax.vmap(actor.target_penalty)(batch["next_observations"], next_acts, valid, keys)

    def _critic_loss(self, critic: Critic, batch: Batch, targets: Array, key: PRNGKeyArray):
        keys = jax.random.split(key, targets.shape[0])
        loss = jax.vmap(lambda obs, act, y, key: critic.loss(obs, act, y, self.scale, key))
        losses, info = loss(batch["observations"], batch["actions"], targets, keys)
        return jnp.mean(losses), _named_means("critic", info)

    def _actor_loss(self, actor: Actor, batch: Batch, key: PRNGKeyArray):
        critic = self.params.critic

        def loss(obs, act, key):
            act_key, value_key = jax.random.split(key)
            value = lambda a: critic.actor_value(obs, a, self.scale, value_key)  # noqa: E731
            return actor.loss(obs, act, value, self.hypers.alpha, act_key)

        keys = jax.random.split(key, batch["actions"].shape[0])
        terms = jax.vmap(loss)(batch["observations"], batch["actions"], keys)
        q_loss = -jnp.mean(terms.q) * jax.lax.stop_gradient(actor.q_scale(terms.q))
        total = jnp.mean(terms.behaviour) + q_loss
        return total, _named_means("actor", terms.info) | {"actor/actor_loss": total, "actor/q_loss": q_loss}


@partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
def _init_agent(
    key: PRNGKeyArray,
    hypers: Hypers,
    value_range: ValueRange,
    obs_stats: ObsStats,
    kinds: tuple[type[Critic], type[Actor]],
    obs_spec: ObsSpec,
    action_dim: int,
    config: AgentConfig,
    precision: Precision,
) -> Agent:
    """Initialise an agent; agents that differ only in traced values share one program."""
    init_key, run_key = jax.random.split(key)
    critic_key, actor_key = jax.random.split(init_key)
    params = Params(
        EncodedCritic.of(kinds[0], critic_key, obs_spec, action_dim, config.critic),
        kinds[1].init(actor_key, obs_spec, action_dim, config.actor),
    )
    return Agent(
        params=params,
        target=jax.tree.map(jnp.copy, params.critic.target_network()),  # a copy: the update donates its buffers
        target_actor=jax.tree.map(jnp.copy, params.actor.target_network()),
        opt_state=OptStates.init(params),
        key=run_key,
        step=jnp.zeros((), jnp.int32),
        hypers=hypers,
        value_range=value_range,
        obs_stats=obs_stats,
        obs_spec=obs_spec,
        action_dim=action_dim,
        static=config,
        precision=precision,
    )


def _named_means(prefix: str, info: dict[str, Any]) -> Info:
    return {f"{prefix}/{name}": jnp.mean(values) for name, values in info.items()}


def _vector(what: str, given: Any, shape: tuple[int, ...]) -> Array:
    """Return a vector of numbers as an array. Raises UserError if it is none, or of another shape."""
    try:
        array = jnp.asarray(given, jnp.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} is not an array of numbers: give {shape[0]} of them") from error
    if array.shape != shape:
        many = "; jax.vmap takes many at once" if array.shape[1:] == shape else ""
        raise UserError(f"{what} has shape {array.shape}; this agent takes {shape}{many}")
    return array
