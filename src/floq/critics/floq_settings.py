"""The settings of the floq critic: what each of its dials does, and what was published."""

from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from floq import kernels
from floq.critics.base import Aggregation
from floq.embeddings import TimeEmbedding
from floq.errors import UserError
from floq.flow import NoiseScheme, Solver

Integration: TypeAlias = Literal["plain", "folded", "fused"]


@dataclass(frozen=True)
class FloqConfig:
    """Settings of the floq critic; the defaults are the published ones."""

    traced_settings: ClassVar[tuple[str, ...]] = ("noise_coverage",)

    value_hidden_dims: tuple[int, ...] = (512, 512, 512, 512)
    """Hidden layers of the distilled critic."""
    layer_norm: bool = True
    """LayerNorm in the velocity field and in the distilled critic."""
    q_agg: Aggregation = "mean"
    """How the TD target combines the values of the ensemble: mean, min, or mean less rho standard deviations (lcb)."""
    rho: float = 0.0
    """Standard deviations that q_agg=lcb subtracts."""
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
    distill_flow_steps: int | None = None
    """Euler steps to the value that is distilled; by default `critic_flow_steps`, as published."""
    acting_flow_steps: int | None = None
    """Euler steps where the actor climbs the flow or ranks actions by it; by default `critic_flow_steps`."""
    solver: Solver = "euler"
    """How steps are made; midpoint evaluates the velocity twice in each."""
    actor_climbs: Literal["distilled", "flow", "one_pass"] = "distilled"
    """The value that the actor climbs: the distilled critic (published), the K-step flow itself, or its one-pass
    read-out z_0 + v(0, z_0). With the latter two there is no distilled critic."""
    actor_noise_samples: int = 1
    """Source samples of that value, if it is not the distilled critic's."""
    distill_target: Literal["flow", "one_pass", "td"] = "flow"
    """What the distilled critic learns: the value after K steps of the online flow (published); after a single one,
    z_0 + v(0, z_0), which spares the integration; or the TD target."""
    integration: Integration = "plain"
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
    num_transformations: int = 2
    """Residual blocks."""
    activate_before_layernorm: bool = True
    """In residual fields: GELU before LayerNorm."""

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
        if self.acting_flow_steps is not None and self.actor_climbs != "flow":
            raise UserError(
                f"--agent.acting_flow_steps={self.acting_flow_steps}: with --agent.actor_climbs={self.actor_climbs} no "
                "actor integrates the flow; give --agent.actor_climbs=flow"
            )
        if self.actor_noise_samples != 1 and self.actor_climbs == "distilled":
            raise UserError(
                f"--agent.actor_noise_samples={self.actor_noise_samples}: the distilled critic has no source samples; "
                "give --agent.actor_climbs=flow or one_pass"
            )
        if self.distill_flow_steps is not None and (self.actor_climbs, self.distill_target) != ("distilled", "flow"):
            raise UserError(
                f"--agent.distill_flow_steps={self.distill_flow_steps}: nothing is distilled from an integration; "
                "leave it out, or leave --agent.actor_climbs and --agent.distill_target as they are"
            )
        if self.integration == "fused" and self.solver != "euler":
            raise UserError(f"--agent.integration=fused makes Euler steps: not --agent.solver={self.solver}; use plain")
        if self.integration == "folded" and (self.use_resnets or not self.layer_norm):
            raise UserError(
                "--agent.integration=folded: it folds the LayerNorms of a plain network, and this has none; use plain"
            )

    @property
    def time(self) -> TimeEmbedding:
        return self.time_embedding or ("cos" if self.embed_time else "raw")
