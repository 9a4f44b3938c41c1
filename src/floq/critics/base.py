"""What every critic offers, and what every critic is told about returns."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Aggregation: TypeAlias = Literal["mean", "min", "lcb"]
Policy: TypeAlias = Callable[[Float[Array, " obs"], PRNGKeyArray], Float[Array, " act"]]
Info: TypeAlias = dict[str, Float[Array, ""]]


class ReturnScale(NamedTuple):
    """Where returns live. Comes from the data and the hyperparameters, so it is an argument and never a module field:
    a field would be trained, and a fleet could not vary it.

    r_min, r_max: smallest and largest reward, both widened to contain 0 (METHOD.md says why). discount: per step.
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
        """Ends of the histogram: [(r_min - offset) / (1 - g), (r_max + offset) / (1 - g)]."""
        return (self.r_min - offset) / (1 - self.discount), (self.r_max + offset) / (1 - self.discount)


class Critic(eqx.Module):
    """A Q-function with four verbs, each written for one transition; the caller vmaps over the batch. Two more, for
    diagnosis, have defaults.

    A critic knows no actor: whoever calls `target` passes the policy to be evaluated.
    """

    bounded: ClassVar[bool] = False
    """Whether it looks for values in the range that follows from that of the rewards, and nowhere else."""

    @classmethod
    @abc.abstractmethod
    def init(cls, key: PRNGKeyArray, obs_size: int, act_size: int, config: Any = None) -> "Critic":
        """Fresh networks for observations and actions of these sizes; `config` is this critic's own settings, a frozen
        dataclass whose `traced_settings` names those that are traced. Consumes `key`."""

    @abc.abstractmethod
    def target_network(self) -> "Critic":
        """The part that a target network follows, as a critic that can only `target` and `read_out`."""

    @abc.abstractmethod
    def target(
        self,
        reward: Float[Array, ""],
        bootstrap: Float[Array, ""],
        next_obs: Float[Array, " obs"],
        policy: Policy,
        scale: ReturnScale,
        key: PRNGKeyArray,
    ) -> Float[Array, "*y"]:
        """What to regress on: `reward + bootstrap * V(next_obs)` with V under `policy`. Called on the target critic.

        `bootstrap` is discount * mask: 0 at a true termination. Consumes `key`.
        """

    @abc.abstractmethod
    def loss(
        self,
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        target: Float[Array, "*y"],
        scale: ReturnScale,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, ""], Info]:
        """The loss to descend and what to log: `critic_loss`, `q` and `td_errors` at least. Nothing reaches `target`.
        Consumes `key`."""

    @abc.abstractmethod
    def read_out(
        self,
        obs: Float[Array, " obs"],
        act: Float[Array, " act"],
        scale: ReturnScale,
        key: PRNGKeyArray,
        num_steps: int | None = None,
    ) -> Float[Array, ""]:
        """Q(obs, act), a return. A flow critic integrates it in `num_steps` steps (default: as trained)."""

    @abc.abstractmethod
    def actor_value(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale, key: PRNGKeyArray
    ) -> Float[Array, "*values"]:
        """The Q that an actor climbs, differentiable with respect to `act`: one number, or several (such as quantiles)
        whose mean it climbs and by whose mean magnitude `normalize_q_loss` divides. Consumes `key`."""

    def diagnose(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale, key: PRNGKeyArray
    ) -> Info:
        """What the critic shows about itself at one state-action, to be averaged and logged. Consumes `key`."""
        return {}

    def features(
        self, obs: Float[Array, " obs"], act: Float[Array, " act"], scale: ReturnScale
    ) -> Float[Array, "members features"] | None:
        """What the last layer of each member reads, from which its rank is judged; None if there is no such thing."""
        return None


def td_errors(target: Float[Array, ""], q: Float[Array, ""]) -> Info:
    """`td_error`: the squared distance of the TD target from the value, as published; `abs_td_error`: the distance."""
    return {"td_error": jnp.square(target - q), "abs_td_error": jnp.abs(target - q)}


def aggregate(values: Float[Array, " members"], how: str, rho: float = 0.0) -> Float[Array, ""]:
    """One number for an ensemble: the published `q_agg`, mean or min; or their mean less `rho` standard deviations
    (lower confidence bound, as in arXiv 2110.01548).

    Raises:
        ValueError: `how` is none of mean, min and lcb.
    """
    reductions: dict[str, Any] = {
        "mean": lambda v: v.mean(),
        "min": lambda v: v.min(),
        "lcb": lambda v: v.mean() - rho * v.std(),
    }
    if how not in reductions:
        raise ValueError(f"q_agg {how!r}: choose mean, min or lcb")
    return reductions[how](values)
