"""Interface of critics, and the scale of returns that is passed to them."""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from floq.utils.errors import UserError
from floq.utils.obs_spec import ObsSpec
from floq.utils.schema import NonNegativeFloat, Settings

Aggregation: TypeAlias = Literal["mean", "min", "lcb", "min_pair"]
Ranking: TypeAlias = Literal["distilled", "one_pass", "flow"]
Obs: TypeAlias = Float[Array, " obs"]
Act: TypeAlias = Float[Array, " act"]
PolicyFn: TypeAlias = Callable[[Obs, PRNGKeyArray], Act]
Info: TypeAlias = dict[str, Float[Array, ""]]


@dataclass(frozen=True)
class AggregationSettings(Settings):
    """Settings of how an ensemble is combined."""

    q_agg: Aggregation = "mean"
    """How the TD target combines the members: their mean, min, or mean less rho standard deviations (lcb), or the
    minimum of two members drawn for each transition (min_pair, as REDQ, arXiv 2101.05982)."""
    rho: NonNegativeFloat = 0.0
    """Standard deviations that q_agg=lcb subtracts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rho and self.q_agg != "lcb":
            raise UserError(f"rho={self.rho}: only q_agg=lcb subtracts deviations, give that too")
        if self.q_agg == "min_pair" and self.num_members < 2:
            raise UserError("q_agg=min_pair: an ensemble of one has no pairs; give it more members")

    @property
    def num_members(self) -> int:
        """Members that the TD target combines."""
        raise NotImplementedError

    @property
    def hidden_width(self) -> int:
        """Width of the hidden layers in which an update spends most of its time; 0 if a critic does not say it, and
        then --precision=auto stays with the published one."""
        return 0

    def random_pair(self, key: PRNGKeyArray) -> tuple[PRNGKeyArray, Int[Array, " 2"] | None]:
        """Draw two different members for q_agg=min_pair. Returns a key for what follows, and the pair; otherwise `key`
        itself and None. Consumes `key`."""
        if self.q_agg != "min_pair":
            return key, None
        key, pair_key = jax.random.split(key)
        return key, jax.random.choice(pair_key, self.num_members, (2,), replace=False)


class ReturnScale(NamedTuple):
    """Scale of returns. It comes from the data and the hyperparameters, so it is an argument and never a module field:
    a field would be trained, and could not vary within a fleet.

    r_min, r_max: smallest and largest reward, both widened to contain 0, since returns near the end of an
    episode are near 0. discount: per step.
    noise_coverage: share of the return range that source noise covers.
    """

    r_min: Float[Array, ""]
    r_max: Float[Array, ""]
    discount: Float[Array, ""]
    noise_coverage: Float[Array, ""]

    def noise(self, unit: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Map points of [0, 1] to the noise interval [c r_min / (1 - g), c r_max / (1 - g)]."""
        low, high = (self.noise_coverage * r / (1 - self.discount) for r in (self.r_min, self.r_max))
        return low + (high - low) * unit

    def support(self, offset: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Return the ends of the histogram: [(r_min - offset) / (1 - g), (r_max + offset) / (1 - g)]."""
        return (self.r_min - offset) / (1 - self.discount), (self.r_max + offset) / (1 - self.discount)


class Critic(eqx.Module):
    """A Q-function, written for one transition; the caller vmaps it. The methods after `actor_value` are optional: they
    are what a critic can show of itself.

    A critic is independent of the actor: the caller of `target` passes the policy to be evaluated.
    """

    bounded: ClassVar[bool] = False
    """Whether values are restricted to the range that follows from the range of rewards."""

    @classmethod
    @abc.abstractmethod
    def init(cls, key: PRNGKeyArray, obs_spec: ObsSpec, action_dim: int, config: Any = None) -> "Critic":
        """Initialise networks for such observations and actions of `action_dim` numbers. `config` holds this critic's
        settings, a frozen dataclass. Consumes `key`."""

    @abc.abstractmethod
    def target_network(self) -> "Critic":
        """Return the part that a target network follows, as a critic that supports only `target` and `read_out`."""

    @abc.abstractmethod
    def target(
        self,
        reward: Float[Array, ""],
        bootstrap: Float[Array, ""],
        next_obs: Obs,
        policy: PolicyFn,
        scale: ReturnScale,
        key: PRNGKeyArray,
    ) -> Float[Array, "*y"]:
        """Compute the TD target `reward + bootstrap * V(next_obs)`, V under `policy`. Called on the target network.

        `bootstrap` is discount * mask: 0 at a true termination. Consumes `key`.
        """

    @abc.abstractmethod
    def loss(
        self, obs: Obs, act: Act, target: Float[Array, "*y"], scale: ReturnScale, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Info]:
        """Compute the loss and the scalars to log: at least `critic_loss`, `q` and those of `td_errors`. No gradient
        flows to `target`. Consumes `key`."""

    @abc.abstractmethod
    def read_out(
        self, obs: Obs, act: Act, scale: ReturnScale, key: PRNGKeyArray, num_steps: int | None = None
    ) -> Float[Array, ""]:
        """Return Q(obs, act), in units of return. A flow critic integrates it in `num_steps` steps (default: as
        trained). Consumes `key`."""

    @abc.abstractmethod
    def actor_value(self, obs: Obs, act: Act, scale: ReturnScale, key: PRNGKeyArray) -> Float[Array, "*values"]:
        """Return the Q that an actor maximises, differentiable with respect to `act`: one number, or several (such as
        quantiles) whose mean it maximises and by whose mean magnitude `normalize_q_loss` divides. Consumes `key`."""

    def ranking_value(self, obs: Obs, act: Act, scale: ReturnScale, key: PRNGKeyArray) -> Float[Array, ""]:
        """Return the Q that candidate actions are ranked by; by default what an actor maximises. Consumes `key`."""
        return jnp.mean(self.actor_value(obs, act, scale, key))

    def diagnose(self, obs: Obs, act: Act, scale: ReturnScale, key: PRNGKeyArray) -> Info:
        """Return diagnostics at one state-action pair, to be averaged and logged. Consumes `key`."""
        return {}

    def features(self, obs: Obs, act: Act, scale: ReturnScale) -> Float[Array, "members features"] | None:
        """Return the input of each member's last layer, from which its rank is computed; None if there is none."""
        return None

    def member_values(self, obs: Obs, act: Act, scale: ReturnScale, key: PRNGKeyArray) -> Float[Array, " members"]:
        """Return Q(obs, act) by each member of an ensemble; by default of one, the critic. Consumes `key`."""
        return self.read_out(obs, act, scale, key)[None]

    def histograms(
        self, obs: Obs, act: Act, scale: ReturnScale
    ) -> tuple[Float[Array, " bins"], Float[Array, "members bins"]] | None:
        """Return the centres of the bins and each member's masses on them; None without a histogram of returns."""
        return None

    def quantiles(
        self, obs: Obs, act: Act, scale: ReturnScale, taus: Float[Array, " taus"]
    ) -> Float[Array, "members taus"] | None:
        """Return each member's tau-quantiles of the return; None if it has none."""
        return None

    @property
    def flow_steps(self) -> int | None:
        """The K that a flow was trained with; None for a critic without `trajectories` and `velocities`."""
        return None

    def trajectories(
        self, z_0: Float[Array, " samples"], obs: Obs, act: Act, scale: ReturnScale, num_steps: int | None = None
    ) -> Float[Array, "members samples steps"]:
        """Return z(0), ..., z(1) of every member from every source sample, integrated in `num_steps` steps (default: as
        trained)."""
        raise NotImplementedError("this critic has no flow")

    def velocities(
        self, z: Float[Array, ""], t: Float[Array, ""], obs: Obs, act: Act, scale: ReturnScale
    ) -> Float[Array, " members"]:
        """Return each member's velocity at z and time t."""
        raise NotImplementedError("this critic has no flow")

    def ranking_by(self, rank_by: Ranking | None, acting_flow_steps: int | None) -> "Critic":
        """Return this critic with another `ranking_value`, that of a flow critic with these settings; None leaves one
        as it is. Raises UserError if it has no such value."""
        raise UserError("only a flow critic has several values to rank by: leave --rank_by and --acting_flow_steps out")


def td_errors(target: Float[Array, ""], q: Float[Array, ""]) -> Info:
    """Return `td_error`, the squared difference of target and value as published, and `abs_td_error`, the absolute."""
    return {"td_error": jnp.square(target - q), "abs_td_error": jnp.abs(target - q)}


def aggregate(
    values: Float[Array, " members"], how: str, rho: float = 0.0, pair: Int[Array, " 2"] | None = None
) -> Float[Array, ""]:
    """Reduce an ensemble to one number, as `AggregationSettings` says: the published mean or min; lcb, the mean less
    `rho` standard deviations (lower confidence bound, as in arXiv 2110.01548); min_pair, the minimum of the two members
    `pair`.

    Raises:
        ValueError: `how` is none of these, or lacks the pair.
    """
    reductions: dict[str, Any] = {
        "mean": lambda v: v.mean(),
        "min": lambda v: v.min(),
        "lcb": lambda v: v.mean() - rho * v.std(),
        "min_pair": lambda v: v[pair].min(),
    }
    if how not in reductions:
        raise ValueError(f"q_agg {how!r}: choose {', '.join(reductions)}")
    if how == "min_pair" and pair is None:
        raise ValueError("q_agg 'min_pair': give the pair")
    return reductions[how](values)
