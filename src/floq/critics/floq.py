"""The floq critic: a Q-value is where a learned velocity field carries a random number in K steps.

Source: arXiv 2509.06863, sections 4.1 to 4.3. Two networks:

- an ensemble of velocity fields v(t, z | s, a), trained by flow matching on TD targets, with an EMA target copy;
- a distilled scalar critic, regressed on the value that the flow integrates to, which the actor climbs, so that no
  gradient crosses the integration.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq import kernels
from floq.critics.base import Critic, Info, Policy, ReturnScale, aggregate
from floq.embeddings import TimeEmbedding, embed_time, histogram, scaled, time_embedding_size
from floq.errors import UserError
from floq.flow import NoiseScheme, flow_matching_loss, integrate, source_nodes, trajectory
from floq.networks import MLP, FoldedBody, PlainBody, ResidualBody, SplitLinear, ensemble


@dataclass(frozen=True)
class FloqConfig:
    """Settings of the floq critic; the defaults are the published ones."""

    traced_settings: ClassVar[tuple[str, ...]] = ("noise_coverage",)

    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of the distilled critic."""
    layer_norm: bool = True
    """LayerNorm in the velocity field and in the distilled critic."""
    q_agg: Literal["mean", "min"] = "mean"
    """How the TD target combines the velocity fields of the ensemble."""
    flow_num_ensembles: int = 2
    """Velocity fields in the ensemble (E)."""
    distill_num_ensembles: int = 2
    """Members of the distilled critic."""
    noise_samples: int = 8
    """Source samples per transition in the loss, and by default wherever else noise is drawn (M)."""
    target_noise_samples: int | None = None
    """Source samples of the TD target, each with an action of its own; by default `noise_samples`."""
    distill_noise_samples: int | None = None
    """Source samples of the value that is distilled; by default the very samples of the loss, as published."""
    noise_coverage: float = 0.1
    """Share of the return range that source noise covers (c)."""
    noise_scheme: NoiseScheme = "iid"
    """How source noise is drawn. Published: iid."""
    critic_flow_steps: int = 8
    """Euler steps per integration (K): the dial for critic capacity."""
    target_flow_steps: int | None = None
    """Euler steps of the TD target's integration; by default `critic_flow_steps`, as published."""
    distill_target: Literal["flow", "one_pass", "td"] = "flow"
    """What the distilled critic learns: the value after K steps of the online flow (published); after a single one,
    z_0 + v(0, z_0), which spares the integration; or the TD target."""
    integration: Literal["plain", "folded", "fused"] = "plain"
    """How targets and distilled values are integrated. folded: LayerNorm as part of the product after it, equal up to
    rounding. fused: one kernel in bfloat16, on Hopper GPUs; not measured on hardware yet."""
    train_at_zero_only: bool = False
    """Supervise the velocity at t = 0 only: the ablation without dense supervision; use it with critic_flow_steps=1."""
    embed_time: bool = True
    """Published switch: True feeds cos(t), False raw t. `time_embedding` overrules it."""
    time_embedding: TimeEmbedding | None = None
    """How t enters the velocity field; by default as `embed_time` says."""
    time_embed_dim: int = 64
    """Size of the Fourier embedding of t."""
    use_prob_embed: bool = True
    """z enters as a smoothed histogram; otherwise as one number scaled to [0, 1]."""
    num_bins: int = 51
    """Edges of that histogram (one more than its bins)."""
    sigma: float = 16.0
    """Its smoothing, in bin widths."""
    reward_offset: float = 0.01
    """Widens the histogram's support by this much reward on both sides."""
    block_width: int = 512
    """Width of the velocity field."""
    block_depth: int = 4
    """Its hidden layers; with `use_resnets`, hidden layers per residual block."""
    use_resnets: bool = False
    """Residual velocity field."""
    num_transformations: int = 1
    """Residual blocks."""
    activate_before_layernorm: bool = True
    """In residual blocks: GELU before LayerNorm."""

    def __post_init__(self) -> None:
        if self.integration == "fused":
            kernels.check_settings(
                layer_norm=self.layer_norm,
                residual=self.use_resnets,
                histogram=self.use_prob_embed,
                num_edges=self.num_bins,
                time=self.time,
                width=self.block_width,
            )
        if self.integration == "folded" and (self.use_resnets or not self.layer_norm):
            raise UserError(
                "--agent.integration=folded: it folds the LayerNorms of a plain network, and this has none; use plain"
            )

    @property
    def time(self) -> TimeEmbedding:
        return self.time_embedding or ("cos" if self.embed_time else "raw")


class VelocityField(eqx.Module):
    """v(t, z | s, a), a scalar. Its first layer is W_sa [s, a] + W_z [embedding of z, embedding of t] + b."""

    entry: SplitLinear
    body: PlainBody | ResidualBody
    config: FloqConfig = eqx.field(static=True)

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: FloqConfig) -> "VelocityField":
        entry_key, body_key = jax.random.split(key)
        c = config
        z_size = c.num_bins - 1 if c.use_prob_embed else 1
        t_size = time_embedding_size(c.time, c.time_embed_dim)
        entry = SplitLinear.init(entry_key, obs_size + act_size, z_size + t_size, c.block_width)
        if c.use_resnets:
            body = ResidualBody.init(
                body_key,
                c.block_width,
                c.block_depth,
                c.num_transformations,
                1,
                c.layer_norm,
                c.activate_before_layernorm,
            )
        else:
            body = PlainBody.init(body_key, (c.block_width,) * c.block_depth, 1, c.layer_norm)
        return cls(entry, body, config)

    def at(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale, folded: bool = False
    ) -> Callable[[Float[Array, ""], Float[Array, ""]], Float[Array, ""]]:
        """The velocity as a function of (z, t) alone; what depends on (s, a) is computed once, here. `folded` computes
        the same in fewer passes, which pays off where no gradient is wanted."""
        c, body = self.config, self.body
        if folded and isinstance(body, PlainBody):
            body = FoldedBody.of(body)
        fixed = self.entry.fixed(jnp.concatenate([obs, act]))
        low, high = scale.support(c.reward_offset)

        def velocity(z: Float[Array, ""], t: Float[Array, ""]) -> Float[Array, ""]:
            z_input = histogram(z, low, high, c.num_bins, c.sigma) if c.use_prob_embed else scaled(z, low, high)
            t_input = embed_time(t, c.time, c.time_embed_dim)
            return body(fixed + self.entry.varying(jnp.concatenate([z_input, t_input])))[0]

        return velocity


class FloqCritic(Critic):
    """Ensemble of velocity fields and the distilled critic that the actor climbs."""

    velocity: VelocityField  # stacked over the ensemble
    distilled: MLP | None  # stacked over its members; None in a target network, which has no use for it
    config: FloqConfig = eqx.field(static=True)

    @classmethod
    def init(cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: FloqConfig | None = None) -> "FloqCritic":
        """Networks for observations of `obs_size` and actions of `act_size` numbers. Consumes `key`."""
        c = config or FloqConfig()
        velocity_key, distilled_key = jax.random.split(key)
        return cls(
            ensemble(lambda k: VelocityField.init(k, obs_size, act_size, c), velocity_key, c.flow_num_ensembles),
            ensemble(
                lambda k: MLP.init(k, obs_size + act_size, c.value_hidden_dims, 1, c.layer_norm),
                distilled_key,
                c.distill_num_ensembles,
            ),
            c,
        )

    def tracked(self) -> "FloqCritic":
        return FloqCritic(self.velocity, None, self.config)

    def target(self, reward, bootstrap, next_obs, policy: Policy, scale: ReturnScale, key):
        """`target_at` with fresh draws: source noise, and for each source sample an action of its own."""
        act_key, noise_key = jax.random.split(key)
        samples = self.config.target_noise_samples or self.config.noise_samples
        next_acts = jax.vmap(policy, (None, 0))(next_obs, jax.random.split(act_key, samples))
        return self.target_at(reward, bootstrap, next_obs, next_acts, scale, self._source(noise_key, samples, scale))

    def target_at(
        self,
        reward: Float[Array, ""],
        bootstrap: Float[Array, ""],
        next_obs: Float[Array, " obs"],
        next_acts: Float[Array, "samples act"],
        scale: ReturnScale,
        z_0: Float[Array, " samples"],
    ) -> Float[Array, ""]:
        """y = r + g mask mean_j agg_e psi_e(1, z_j | s', a_j), the TD target of eq. 5 for given draws."""

        def value_of_sample(act: Float[Array, " act"], z: Float[Array, ""]) -> Float[Array, ""]:
            steps = self.config.target_flow_steps
            return aggregate(self._members_from(z, next_obs, act, scale, steps), self.config.q_agg)

        return reward + bootstrap * jnp.mean(jax.vmap(value_of_sample)(next_acts, z_0))

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """`loss_at` with fresh draws: source noise, and for each source sample a time of its own."""
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
        """Flow matching (eq. 6) from `z_0` at times `t`, summed over source samples and averaged over members, plus the
        distillation of the value that the online flow reaches from `distill_z_0`, or of what `distill_target` says."""
        assert self.distilled is not None, "a target network has no loss"

        def flow_loss(member: VelocityField) -> Float[Array, ""]:
            velocity = member.at(obs, act, scale)
            return jnp.sum(jax.vmap(lambda z, t: flow_matching_loss(velocity, z, target, t))(z_0, t))

        floq_loss = jnp.mean(jax.vmap(flow_loss)(self.velocity))

        distilled = self._distilled_members(obs, act)
        if self.config.distill_target == "td":
            distilled_loss, value, variance = jnp.mean(jnp.square(distilled - target)), jnp.mean(distilled), jnp.nan
        else:
            frozen = jax.lax.stop_gradient(self.tracked())  # the integration itself is never differentiated
            steps = 1 if self.config.distill_target == "one_pass" else None
            flow_returns = jax.vmap(lambda z: frozen._members_from(z, obs, act, scale, steps))(distill_z_0)
            value, variance = jnp.mean(flow_returns), jnp.mean(jnp.var(flow_returns, axis=0))  # over (samples, members)
            distilled_loss = jnp.mean(jnp.square(distilled - value))

        return floq_loss + distilled_loss, {
            "critic_loss": floq_loss + distilled_loss,
            "floq_loss": floq_loss,
            "distilled_critic_loss": distilled_loss,
            "q": value,
            "var_flow_returns": jnp.asarray(variance),
            "td_error": jnp.abs(target - value),
        }

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """The mean over members and `noise_samples` source samples of the K-step integration, the plain one: whatever
        an agent was trained with, it can be read out anywhere."""
        z_0 = self._source(key, self.config.noise_samples, scale)
        return jnp.mean(jax.vmap(lambda z: self._members_plainly_from(z, obs, act, scale, num_steps))(z_0))

    def actor_value(self, obs, act, scale: ReturnScale, key):
        """The mean member of the distilled critic."""
        return jnp.mean(self._distilled_members(obs, act))

    def trajectories(
        self, z_0: Float[Array, " samples"], obs, act, scale: ReturnScale, num_steps: int | None = None
    ) -> Float[Array, "members samples steps"]:
        """Every stop z(0), z(1/K), ..., z(1) of every member from every source sample, for pictures and analysis."""
        steps = self.config.critic_flow_steps if num_steps is None else num_steps

        def of_member(member: VelocityField):
            velocity = member.at(obs, act, scale)
            return jax.vmap(lambda z: trajectory(velocity, z, steps))(z_0)

        return jax.vmap(of_member)(self.velocity)

    def _source(self, key: PRNGKeyArray, samples: int, scale: ReturnScale) -> Float[Array, " samples"]:
        """Source noise z(0)."""
        return scale.noise(source_nodes(key, samples, self.config.noise_scheme))

    def _distilled_members(self, obs: Float[Array, " obs"], act: Float[Array, " act"]) -> Float[Array, " members"]:
        assert self.distilled is not None, "a target network has no distilled critic"
        return jax.vmap(lambda member: member(jnp.concatenate([obs, act]))[0])(self.distilled)

    def _members_from(
        self, z_0: Float[Array, ""], obs, act, scale: ReturnScale, num_steps: int | None = None
    ) -> Float[Array, " members"]:
        """psi_e(1, z_0 | s, a) for every member e, as `integration` says."""
        if self.config.integration != "fused":
            return self._members_plainly_from(z_0, obs, act, scale, num_steps, self.config.integration == "folded")
        kernels.check_machine()
        c, field = self.config, self.velocity
        steps = c.critic_flow_steps if num_steps is None else num_steps
        settings = kernels.Settings(steps, c.num_bins, c.sigma)
        assert isinstance(field.body, PlainBody)  # the settings were checked
        support = scale.support(c.reward_offset)
        return kernels.integrate_fused(field.entry, field.body, jnp.concatenate([obs, act]), z_0, *support, settings)

    def _members_plainly_from(
        self, z_0: Float[Array, ""], obs, act, scale: ReturnScale, num_steps: int | None = None, folded: bool = False
    ) -> Float[Array, " members"]:
        steps = self.config.critic_flow_steps if num_steps is None else num_steps
        return jax.vmap(lambda member: integrate(member.at(obs, act, scale, folded), z_0, steps))(self.velocity)
