"""The looped critic, the control for floq's flow: the same network applied K times, without noise and without a flow.

It starts at the middle z_0 of floq's noise interval, and z_{i+1} = z_i + f(z_i, i/K, s, a). Each iterate is regressed
on the TD target, and no gradient passes from one to the next. So it iterates as the flow does, with the same parameters
and target actions, and the actor climbs the same distilled critic: if it does what the flow does, iteration is what
matters.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from floq.critics.base import Info, Ranking, ReturnScale
from floq.critics.floq import FloqCritic, IteratedConfig, VelocityField
from floq.flow import Solver
from floq.utils.errors import UserError


@dataclass(frozen=True)
class LoopedConfig(IteratedConfig):
    """Settings of the looped critic: those of floq that are not about noise, times and solvers. `critic_flow_steps` are
    its iterations, `target_noise_samples` the actions of the TD target."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.integration == "fused":
            raise UserError("--agent.integration=fused: it integrates a flow, and a looped critic has none; use plain")


class LoopedCritic(FloqCritic):
    """Ensemble of networks that are applied K times, and the distilled critic that the actor maximises."""

    settings: ClassVar[type[IteratedConfig]] = LoopedConfig

    def loss(self, obs, act, target, scale: ReturnScale, key) -> tuple[Float[Array, ""], Info]:
        """Compute sum_i (z_{i+1} - y)^2, averaged over members, plus the distilled critic's loss."""
        values = self._iterates(self._middle(scale), obs, act, scale, detached=True)  # (members, iterations)
        loss = jnp.mean(jnp.sum(jnp.square(values - target), axis=1))
        in_one_pass = self.distilled is None or self.config.distill_target == "one_pass"
        value = jax.lax.stop_gradient(jnp.mean(values[:, 0 if in_one_pass else -1]))
        return self._with_distilled(loss, obs, act, target, value, jnp.zeros(()))

    def read_out(self, obs, act, scale: ReturnScale, key, num_steps=None):
        """Return the mean over members of the last iterate."""
        return jnp.mean(self._members_from(self._middle(scale), obs, act, scale, num_steps))

    def trajectories(self, z_0: Float[Array, " samples"], obs, act, scale: ReturnScale, num_steps: int | None = None):
        """Return z_0 and every iterate of every member, of which there are `num_steps` (default: as trained)."""
        after = jax.vmap(lambda z: self._iterates(z, obs, act, scale, num_steps), out_axes=1)(z_0)
        return jnp.concatenate([jnp.broadcast_to(z_0[:, None], (*after.shape[:2], 1)), after], axis=2)

    def _value_by(self, how: Ranking, obs, act, scale: ReturnScale, key: PRNGKeyArray) -> Float[Array, ""]:
        if how == "distilled":
            return jnp.mean(self._distilled_members(obs, act))
        return self.read_out(obs, act, scale, key, 1 if how == "one_pass" else self.config.acting_flow_steps)

    def _middle(self, scale: ReturnScale) -> Float[Array, ""]:
        return scale.noise(jnp.float32(0.5))

    def _source(self, key, samples: int, scale: ReturnScale) -> Float[Array, " samples"]:
        return jnp.full(samples, self._middle(scale))

    def _ends(
        self, z_0: Float[Array, ""], obs, act, scale: ReturnScale, steps: int, solver: Solver | None, folded: bool
    ):
        return self._iterates(z_0, obs, act, scale, steps, folded)[:, -1]

    def _iterates(
        self,
        z_0: Float[Array, ""],
        obs,
        act,
        scale: ReturnScale,
        num_steps: int | None = None,
        folded: bool = False,
        detached: bool = False,
    ) -> Float[Array, "members iterations"]:
        """Return z_1, ..., z_n of each member for n = `num_steps`. Beyond K, further iterations are like the last.
        `detached`: the gradient of each is that of its own application of the network."""
        trained = self.config.critic_flow_steps
        steps = trained if num_steps is None else num_steps
        times = jnp.minimum(jnp.arange(steps), trained - 1) / trained

        def of_member(member: VelocityField):
            step_from = member.at(obs, act, scale, folded)

            def iterate(z: Float[Array, ""], t: Float[Array, ""]):
                after = z + step_from(z, t)
                return jax.lax.stop_gradient(after) if detached else after, after

            return jax.lax.scan(iterate, z_0, times)[1]

        return jax.vmap(of_member)(self.velocity)
