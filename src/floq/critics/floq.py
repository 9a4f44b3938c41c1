"""The floq critic: a Q-value is the end point of a learned velocity field, integrated from random noise in K steps.

Source: arXiv 2509.06863, sections 4.1 to 4.3. Two networks:

- an ensemble of velocity fields v(t, z | s, a), trained by flow matching on TD targets, with an EMA target copy;
- a distilled scalar critic, regressed on the integrated value, which the actor maximises, so that no gradient passes
  through the integration.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from floq.critics.base import (
    AggregationSettings,
    Critic,
    Info,
    PolicyFn,
    Ranking,
    ReturnScale,
    aggregate,
    td_errors,
)
from floq.flow import NoiseScheme, Solver, curvature, flow_matching_loss, integrate, source_nodes, trajectory
from floq.networks import kernels
from floq.networks.embeddings import NumEdges, TimeEmbedding, embed_time, histogram, scale_to_unit, time_embedding_size
from floq.networks.mlp import MLP, PlainBody, ResidualBody, SplitLinear, ensemble, folded_if
from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import Count, Depth, HiddenDims, Mark, NonNegativeFloat, PositiveFloat, Size

# --- Settings ---

Integration: TypeAlias = Literal["plain", "folded", "fused"]


@dataclass(frozen=True)
class IteratedConfig(AggregationSettings):
    """Settings of a critic that applies one network K times, and of the critic distilled from its values; the defaults
    are floq's."""

    value_hidden_dims: HiddenDims = (512, 512, 512, 512)
    """Hidden layers of the distilled critic."""
    layer_norm: bool = True
    """LayerNorm in the velocity field and in the distilled critic."""
    flow_num_ensembles: Count = 2
    """Velocity fields in the ensemble (E)."""
    distill_num_ensembles: Count = 2
    """Members of the distilled critic."""
    noise_samples: Size = 8
    """Source samples per transition in the loss, and by default wherever else noise is drawn (M)."""
    target_noise_samples: Size | None = None
    """Source samples of the TD target, each with its own action; by default `noise_samples`."""
    noise_coverage: Annotated[NonNegativeFloat, Mark.TRACED] = 0.1
    """Share of the return range that source noise covers (c)."""
    critic_flow_steps: Size = 8
    """Euler steps per integration (K): determines the critic's capacity."""
    target_flow_steps: Size | None = None
    """Euler steps of the TD target's integration; by default `critic_flow_steps`, as published."""
    acting_flow_steps: Size | None = None
    """Euler steps where the actor climbs the flow or ranks actions by it; by default `critic_flow_steps`."""
    actor_climbs: Ranking = "distilled"
    """The value that the actor climbs: the distilled critic (published), the K-step flow itself, or its one-pass
    read-out z_0 + v(0, z_0). With the latter two there is no distilled critic."""
    rank_by: Annotated[Ranking | None, Mark.HASHED_IF_SET] = None
    """The value by which one of several candidate actions is chosen; by default that of `actor_climbs`."""
    distill_target: Literal["flow", "one_pass", "td"] = "flow"
    """What the distilled critic learns: the value after K steps of the online flow (published); after a single one,
    z_0 + v(0, z_0), which saves the integration; or the TD target."""
    integration: Integration = "plain"
    """How targets and distilled values are integrated. folded: LayerNorm as part of the product after it, equal up to
    rounding, as always with --precision=bf16. fused: one kernel in bfloat16, on Hopper GPUs; not measured on hardware
    yet."""
    embed_time: bool = True
    """Published switch: True feeds cos(t), False raw t. `time_embedding` overrides it."""
    time_embedding: TimeEmbedding | None = None
    """How t enters the velocity field; by default as `embed_time` says."""
    time_embed_dim: Size = 64
    """Size of the Fourier embedding of t."""
    use_prob_embed: bool = True
    """z enters as a smoothed histogram; otherwise as one number scaled to [0, 1]."""
    num_bins: NumEdges = 51
    """Edges of that histogram (one more than its bins)."""
    sigma: PositiveFloat = 16.0
    """Its smoothing, in bin widths."""
    reward_offset: NonNegativeFloat = 0.01
    """Widens the histogram's support by this much reward on both sides."""
    block_width: Size = 512
    """Width of the velocity field."""
    block_depth: Depth = 4
    """Its hidden layers; with `use_resnets`, hidden layers per residual block."""
    use_resnets: bool = False
    """Residual velocity field."""
    num_transformations: Depth = 2
    """Residual blocks."""
    activate_before_layernorm: bool = True
    """In residual fields: GELU before LayerNorm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.time_embedding == "fourier" and self.time_embed_dim % 2:
            raise UserError(
                f"time_embed_dim={self.time_embed_dim}: must be even, a Fourier embedding pairs cosines with sines"
            )
        used, climbs = self.values_used, f"--agent.actor_climbs={self.actor_climbs}"
        if self.rank_by == "distilled" != self.actor_climbs:
            raise UserError(f"rank_by=distilled: with {climbs} there is no distilled critic; rank by flow or one_pass")
        if self.acting_flow_steps is not None and "flow" not in used:
            raise UserError(
                f"acting_flow_steps={self.acting_flow_steps}: with {climbs} no actor integrates the flow; give "
                "--agent.actor_climbs=flow, or rank by flow"
            )
        if self.integration == "folded" and (self.use_resnets or not self.layer_norm):
            raise UserError(
                "--agent.integration=folded: it folds the LayerNorms of a plain network, and this has none; use plain"
            )

    @property
    def values_used(self) -> set[Ranking]:
        """The values that an actor climbs or ranks by."""
        return {self.actor_climbs, self.rank_by or self.actor_climbs}

    @property
    def num_members(self) -> int:
        return self.flow_num_ensembles

    @property
    def hidden_width(self) -> int:
        return self.block_width

    @property
    def time(self) -> TimeEmbedding:
        """Embedding of t."""
        return self.time_embedding or ("cos" if self.embed_time else "raw")


@dataclass(frozen=True)
class FloqConfig(IteratedConfig):
    """Settings of the floq critic; the defaults are the published ones."""

    distill_noise_samples: Size | None = None
    """Source samples of the value that is distilled; by default the samples of the loss, as published."""
    noise_scheme: NoiseScheme = "iid"
    """How source noise is drawn. Published: iid."""
    solver: Solver = "euler"
    """Integration method; midpoint evaluates the velocity twice per step."""
    actor_noise_samples: Size = 1
    """Source samples of the values that the actor climbs and ranks by, if they are not the distilled critic's."""
    train_at_zero_only: bool = False
    """Supervise the velocity at t = 0 only: the ablation without dense supervision; use it with critic_flow_steps=1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integration == "fused":
            kernels.check_settings(
                layer_norm=self.layer_norm,
                residual=self.use_resnets,
                histogram=self.use_prob_embed,
                num_edges=self.num_bins,
                time=self.time,
                width=self.block_width,
            )
        if self.actor_noise_samples != 1 and self.values_used == {"distilled"}:
            raise UserError(
                f"--agent.actor_noise_samples={self.actor_noise_samples}: the distilled critic has no source samples; "
                "give --agent.actor_climbs=flow or one_pass, or rank by one of these"
            )
        if self.integration == "fused" and self.solver != "euler":
            raise UserError(f"--agent.integration=fused makes Euler steps: not --agent.solver={self.solver}; use plain")


class VelocityField(eqx.Module):
    """v(t, z | s, a), a scalar. Its first layer is W_sa [s, a] + W_z [embedding of z, embedding of t] + b."""

    entry: SplitLinear
    body: PlainBody | ResidualBody
    config: IteratedConfig = eqx.field(static=True)

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec, action_dim: int, config: IteratedConfig) -> "VelocityField":
        """Initialise the network. Consumes `key`."""
        entry_key, body_key = jax.random.split(key)
        c = config
        z_size = c.num_bins - 1 if c.use_prob_embed else 1
        t_size = time_embedding_size(c.time, c.time_embed_dim)
        entry = SplitLinear.init(entry_key, obs_spec.dim + action_dim, z_size + t_size, c.block_width)
        if c.use_resnets:
            body = ResidualBody.init(
                body_key, c.block_width, c.block_depth, c.num_transformations, c.layer_norm, c.activate_before_layernorm
            )
        else:
            body = PlainBody.init(body_key, (c.block_width,) * c.block_depth, 1, c.layer_norm)
        return cls(entry, body, config)

    def at(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale, folded: bool = False
    ) -> Callable[[Float[Array, ""], Float[Array, ""]], Float[Array, ""]]:
        """Return the velocity as a function of (z, t) alone; the part that depends on (s, a) is computed once, here.
        `folded` computes the same in fewer passes, which is faster where no gradient is needed."""
        body = folded_if(self.body, folded)
        fixed = self.entry.fixed(jnp.concatenate([obs, act]))
        return lambda z, t: body(fixed + self.entry.varying(self._embedded(z, t, scale)))[0]

    def features(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale, z: Array, t: Array
    ) -> Float[Array, " features"]:
        """Return the input of the last layer at (z, t)."""
        fixed = self.entry.fixed(jnp.concatenate([obs, act]))
        return self.body.features(fixed + self.entry.varying(self._embedded(z, t, scale)))

    def _embedded(self, z: Float[Array, ""], t: Float[Array, ""], scale: ReturnScale) -> Float[Array, " embedded"]:
        c = self.config
        low, high = scale.support(c.reward_offset)
        z_input = histogram(z, low, high, c.num_bins, c.sigma) if c.use_prob_embed else scale_to_unit(z, low, high)
        return jnp.concatenate([z_input, embed_time(t, c.time, c.time_embed_dim)])


class FloqCritic(Critic):
    """Ensemble of velocity fields and the distilled critic that the actor maximises."""

    bounded: ClassVar[bool] = True
    settings: ClassVar[type[IteratedConfig]] = FloqConfig
    velocity: VelocityField  # stacked over the ensemble
    distilled: MLP | None  # stacked over its members; None where it is not used, as in a target network
    config: Any = eqx.field(static=True)

    @classmethod
    def init(
        cls, key: PRNGKeyArray, obs_spec: ObsSpec | int, action_dim: int, config: IteratedConfig | None = None
    ) -> "FloqCritic":
        """Initialise both networks. Consumes `key`."""
        c, obs_spec = config or cls.settings(), ObsSpec.of(obs_spec)
        velocity_key, distilled_key = jax.random.split(key)
        field = lambda k: VelocityField.init(k, obs_spec, action_dim, c)  # noqa: E731
        head = lambda k: MLP.init(k, obs_spec.dim + action_dim, c.value_hidden_dims, 1, c.layer_norm)  # noqa: E731
        distilled = ensemble(head, distilled_key, c.distill_num_ensembles) if c.actor_climbs == "distilled" else None
        return cls(ensemble(field, velocity_key, c.flow_num_ensembles), distilled, c)

    def target_network(self) -> "FloqCritic":
        return replace(self, distilled=None)

    def target(self, reward, bootstrap, next_obs, policy: PolicyFn, scale: ReturnScale, key):
        """Compute `target_at` with random source noise and one action of the policy for each source sample."""
        key, pair = self.config.random_pair(key)
        act_key, noise_key = jax.random.split(key)
        samples = self.config.target_noise_samples or self.config.noise_samples
        next_acts = jax.vmap(policy, (None, 0))(next_obs, jax.random.split(act_key, samples))
        z_0 = self._source(noise_key, samples, scale)
        return self.target_at(reward, bootstrap, next_obs, next_acts, scale, z_0, pair)

    def target_at(
        self,
        reward: Float[Array, ""],
        bootstrap: Float[Array, ""],
        next_obs: Float[Array, " obs"],
        next_acts: Float[Array, "samples act"],
        scale: ReturnScale,
        z_0: Float[Array, " samples"],
        pair: Int[Array, " 2"] | None = None,
    ) -> Float[Array, ""]:
        """Compute y = r + g mask mean_j agg_e psi_e(1, z_j | s', a_j), the TD target of eq. 5 for given draws."""
        c = self.config

        def value_of_sample(act: Float[Array, " act"], z: Float[Array, ""]) -> Float[Array, ""]:
            values = self._members_from(z, next_obs, act, scale, c.target_flow_steps, integration=c.integration)
            return aggregate(values, c.q_agg, c.rho, pair)

        return reward + bootstrap * jnp.mean(jax.vmap(value_of_sample)(next_acts, z_0))

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Compute `loss_at` with random source noise and one random time for each source sample."""
        noise_key, t_key, distill_key = jax.random.split(key, 3)
        samples, distill_samples = self.config.noise_samples, self.config.distill_noise_samples
        t = jnp.zeros(samples) if self.config.train_at_zero_only else jax.random.uniform(t_key, (samples,))
        z_0 = self._source(noise_key, samples, scale)
        distill_z_0 = self._source(distill_key, distill_samples, scale) if distill_samples else z_0
        return self.loss_at(obs, act, target, scale, z_0, t, distill_z_0)

    def loss_at(
        self,
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        target: Float[Array, ""],
        scale: ReturnScale,
        z_0: Float[Array, " samples"],
        t: Float[Array, " samples"],
        distill_z_0: Float[Array, " distill_samples"],
    ) -> tuple[Float[Array, ""], Info]:
        """Compute the flow-matching loss (eq. 6) from `z_0` at times `t`, summed over source samples and averaged over
        members, plus the distilled critic's loss if there is one: its squared error to the value that the online flow
        reaches from `distill_z_0`, or to the target that `distill_target` selects. Logged: `q` is the distilled
        critic's value, `flow_q` the flow's; without a distilled critic both are the one-pass read-out, which is
        cheap."""
        c = self.config

        def flow_loss(member: VelocityField) -> Float[Array, ""]:
            velocity = member.at(obs, act, scale)
            return jnp.sum(jax.vmap(lambda z, t: flow_matching_loss(velocity, z, target, t))(z_0, t))

        floq_loss = jnp.mean(jax.vmap(flow_loss)(self.velocity))

        if self.distilled is not None and c.distill_target == "td":
            flow_q, variance = jnp.asarray(jnp.nan), jnp.asarray(jnp.nan)
        else:
            # The integration itself is never differentiated.
            frozen, fixed_obs = jax.lax.stop_gradient((self.target_network(), obs))
            in_one_pass = self.distilled is None or c.distill_target == "one_pass"
            steps, solver = (1, "euler") if in_one_pass else (None, c.solver)
            values_from = lambda z: frozen._members_from(z, fixed_obs, act, scale, steps, solver, c.integration)  # noqa: E731
            returns = jax.vmap(values_from)(distill_z_0)
            flow_q = jnp.mean(returns)  # over (samples, members)
            variance = jnp.var(jnp.mean(returns, axis=1))
        return self._with_distilled(floq_loss, obs, act, target, flow_q, variance)

    def _with_distilled(
        self,
        floq_loss: Float[Array, ""],
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        target: Float[Array, ""],
        flow_q: Float[Array, ""],
        variance: Float[Array, ""],
    ) -> tuple[Float[Array, ""], Info]:
        """Add to the loss of the velocities that of the distilled critic, which regresses on `flow_q` or the target, if
        there is one. Return the sum and what is logged."""
        distilled = None if self.distilled is None else self._distilled_members(obs, act)
        by_target = distilled is not None and self.config.distill_target == "td"
        q = flow_q if distilled is None else jnp.mean(distilled)
        info = {"floq_loss": floq_loss, "q": q, "flow_q": flow_q, "var_flow_returns": variance}
        info |= td_errors(target, q if by_target else flow_q)
        if distilled is None:
            return floq_loss, info | {"critic_loss": floq_loss}
        distilled_loss = jnp.mean(jnp.square(distilled - (target if by_target else flow_q)))
        total = floq_loss + distilled_loss
        return total, info | {"critic_loss": total, "distilled_critic_loss": distilled_loss}

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """Return the mean over members and `noise_samples` source samples of the K-step integration. It is always the
        plain integration, so that every agent can be read out on any machine."""
        z_0 = self._source(key, self.config.noise_samples, scale)
        return jnp.mean(jax.vmap(lambda z: self._members_from(z, obs, act, scale, num_steps))(z_0))

    def actor_value(self, obs, act, scale: ReturnScale, key):
        """Return the mean over members of the distilled critic; or of the flow from `actor_noise_samples` source
        samples, integrated in `acting_flow_steps` or read out in one pass."""
        return self._value_by(self.config.actor_climbs, obs, act, scale, key)

    def ranking_value(self, obs, act, scale: ReturnScale, key):
        """Return the same by `rank_by`."""
        return self._value_by(self.config.rank_by or self.config.actor_climbs, obs, act, scale, key)

    def ranking_by(self, rank_by: Ranking | None, acting_flow_steps: int | None) -> "FloqCritic":
        changes = {"rank_by": rank_by, "acting_flow_steps": acting_flow_steps}
        config = replace(self.config, **{name: value for name, value in changes.items() if value is not None})
        if acting_flow_steps is not None and (config.rank_by or config.actor_climbs) != "flow":
            raise UserError(f"acting_flow_steps={acting_flow_steps}: it does not rank by the flow; give rank_by=flow")
        return replace(self, config=config)

    def _value_by(self, how: Ranking, obs, act, scale: ReturnScale, key: PRNGKeyArray) -> Float[Array, ""]:
        c = self.config
        if how == "distilled":
            return jnp.mean(self._distilled_members(obs, act))
        z_0 = self._source(key, c.actor_noise_samples, scale)
        steps, solver = (1, "euler") if how == "one_pass" else (c.acting_flow_steps, c.solver)
        return jnp.mean(jax.vmap(lambda z: self._members_from(z, obs, act, scale, steps, solver))(z_0))

    @property
    def flow_steps(self) -> int:
        return self.config.critic_flow_steps

    def trajectories(
        self, z_0: Float[Array, " samples"], obs, act, scale: ReturnScale, num_steps: int | None = None
    ) -> Float[Array, "members samples steps"]:
        """Return z(0), z(1/K), ..., z(1) of every member from every source sample."""
        c = self.config
        steps = c.critic_flow_steps if num_steps is None else num_steps

        def of_member(member: VelocityField):
            velocity = member.at(obs, act, scale)
            return jax.vmap(lambda z: trajectory(velocity, z, steps, c.solver))(z_0)

        return jax.vmap(of_member)(self.velocity)

    def velocities(
        self, z: Float[Array, ""], t: Float[Array, ""], obs, act, scale: ReturnScale
    ) -> Float[Array, " members"]:
        return jax.vmap(lambda member: member.at(obs, act, scale)(z, t))(self.velocity)

    def diagnose(self, obs, act, scale: ReturnScale, key) -> Info:
        """Return diagnostics of the flow over `noise_samples` source samples, in units of return.

        z0_spread: standard deviation of the value over source samples. member_spread: over members. curvature: mean
        distance of a path from its chord. contraction: mean of dv/dz along the paths, negative where errors shrink;
        the ideal flow to one value has -1 / (1 - t). one_pass_gap: mean distance of z_0 + v(0, z_0) from the end of the
        path. outside_histogram: share of the points of the paths outside the support of z's histogram. value_after_i:
        mean z after step i; if it converges early, later steps contribute little.
        """
        c = self.config
        z_0 = self._source(key, c.noise_samples, scale)
        low, high = scale.support(c.reward_offset)
        times = jnp.arange(c.critic_flow_steps) / c.critic_flow_steps

        def along(member: VelocityField, paths: Array):
            slope_at = jax.value_and_grad(member.at(obs, act, scale))
            return jax.vmap(jax.vmap(slope_at), (0, None))(paths[:, :-1], times)

        paths = self.trajectories(z_0, obs, act, scale)  # (members, samples, times)
        velocities, slopes = jax.vmap(along)(self.velocity, paths)
        ends, one_pass = paths[..., -1], paths[..., 0] + velocities[..., 0]
        after = jnp.mean(paths, axis=(0, 1))
        return {
            "z0_spread": jnp.mean(jnp.std(ends, axis=1)),
            "member_spread": jnp.std(jnp.mean(ends, axis=1)),
            "curvature": jnp.mean(jax.vmap(jax.vmap(curvature))(paths)),
            "contraction": jnp.mean(slopes),
            "one_pass_gap": jnp.mean(jnp.abs(one_pass - ends)),
            "outside_histogram": jnp.mean((paths < low) | (paths > high)),
            **{f"value_after_{i}": after[i] for i in range(c.critic_flow_steps + 1)},
        }

    def features(self, obs, act, scale: ReturnScale):
        """Return the features at the start of the flow, at the middle of the noise interval."""
        z = scale.noise(jnp.float32(0.5))
        return jax.vmap(lambda member: member.features(obs, act, scale, z, jnp.float32(0.0)))(self.velocity)

    def _source(self, key: PRNGKeyArray, samples: int, scale: ReturnScale) -> Float[Array, " samples"]:
        """Draw source noise z(0). Consumes `key`."""
        return scale.noise(source_nodes(key, samples, self.config.noise_scheme))

    def _distilled_members(self, obs: Float[Array, " obs"], act: Float[Array, " act"]) -> Float[Array, " members"]:
        assert self.distilled is not None, "a target network has no distilled critic"
        return jax.vmap(lambda member: member(jnp.concatenate([obs, act]))[0])(self.distilled)

    def _members_from(
        self,
        z_0: Float[Array, ""],
        obs,
        act,
        scale: ReturnScale,
        num_steps: int | None = None,
        solver: Solver | None = None,
        integration: Integration = "plain",
    ) -> Float[Array, " members"]:
        """Compute psi_e(1, z_0 | s, a) for every member e. Only the plain `integration` runs on every machine and may
        be differentiated."""
        c = self.config
        steps = c.critic_flow_steps if num_steps is None else num_steps
        if integration != "fused":
            return self._ends(z_0, obs, act, scale, steps, solver, integration == "folded")
        kernels.check_machine()
        field, settings = self.velocity, kernels.Settings(steps, c.num_bins, c.sigma)
        assert isinstance(field.body, PlainBody)  # the settings were checked
        support = scale.support(c.reward_offset)
        return kernels.integrate_fused(field.entry, field.body, jnp.concatenate([obs, act]), z_0, *support, settings)

    def _ends(
        self, z_0: Float[Array, ""], obs, act, scale: ReturnScale, steps: int, solver: Solver | None, folded: bool
    ):
        """Return the end of each member's path, without a kernel."""
        rule: Solver = solver or self.config.solver
        return jax.vmap(lambda member: integrate(member.at(obs, act, scale, folded), z_0, steps, rule))(self.velocity)
