"""Does a flow critic recover from a stale field? The first 0, 2, 4 and 8 of K = 8 steps of the TD target's integration
use a field that is only renewed every 500 updates; and so for K = 1, whose only step may be stale.

    python experiments/stale.py --save_dir DIR --out DIR [--dataset_dir DIR] [--seeds 12 13 14 15 16 17]

Decided before the runs. Primary comparison: 4 of 8 steps stale against none; metric: success on average over training
(AUC), paired by seed. If later steps repair what earlier ones do wrong (arXiv 2603.04333), 2 and 4 of 8 cost little,
and less than a stale step costs K = 1.

A critic of one's own in an experiment: it is registered here, and the fleet renews its stale field.
"""

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import floq.training.train
from floq import UserError
from floq.critics import CRITICS
from floq.critics.floq import FloqConfig, FloqCritic, VelocityField
from floq.flow import integrate
from floq.sweep.sweep import SweepOptions, sweep
from floq.training.fleet import Fleet

RENEWED_EVERY = 500  # updates
EXPERIMENT = """
title = "A stale field in the first steps"
question = "The first steps of a target's integration use a field renewed every 500 updates. Do later ones repair it?"
reference = "K = 8"
""" + "".join(
    f"""
[[groups]]
name = "{f"K = {steps}" + (f", {stale} stale" if stale else "")}"
critic = "stale"
against = "K = {steps}"
laptop = {{ "agent.critic_flow_steps" = {steps}, "agent.stale_steps" = {stale} }}
"""
    for steps, stale in ((8, 0), (8, 2), (8, 4), (8, 8), (1, 0), (1, 1))
)
EXPERIMENT += """
[laptop]
seeds = [0, 1, 2, 3, 4, 5]

[laptop.settings]  # the others are those of floq in the budget
eval_interval = 500
log_interval = 500
"agent.block_width" = 64
"agent.block_depth" = 2
"agent.noise_samples" = 4
"agent.target_noise_samples" = 2
"agent.distill_noise_samples" = 2
"agent.noise_scheme" = "stratified"
"""


@dataclass(frozen=True)
class StaleConfig(FloqConfig):
    """Settings of the critic with a stale field."""

    stale_steps: int = 0
    """The first steps of the TD target's integration, which use the stale field."""


class StaleCritic(FloqCritic):
    """A floq critic with a copy of its target field, which has no gradient."""

    settings = StaleConfig
    stale: VelocityField | None = None
    stale_steps: int = eqx.field(static=True, default=0)  # in effect, within a target

    @classmethod
    def init(cls, key, obs_spec, action_dim, config=None):
        critic = super().init(key, obs_spec, action_dim, config)
        return replace(critic, stale=critic.velocity)

    def target_at(self, reward, bootstrap, next_obs, next_acts, scale, z_0, pair=None):
        stale_first = replace(self, stale_steps=self.config.stale_steps)
        return FloqCritic.target_at(stale_first, reward, bootstrap, next_obs, next_acts, scale, z_0, pair)

    def _ends(self, z_0, obs, act, scale, steps, solver, folded):
        if not self.stale_steps:
            return super()._ends(z_0, obs, act, scale, steps, solver, folded)
        border = (self.stale_steps - 0.5) / steps

        def end(member, stale):
            fresh, old = (field.at(obs, act, scale, folded) for field in (member, stale))
            return integrate(lambda z, t: jnp.where(t < border, old(z, t), fresh(z, t)), z_0, steps)

        return jax.vmap(end)(self.velocity, self.stale)


class RenewingFleet(Fleet):
    """A fleet that renews the stale fields."""

    def advance(self, num_steps):
        infos = super().advance(num_steps)
        if self.step % RENEWED_EVERY == 0:
            agents: Any = self.agents
            copies = [jax.tree.map(jnp.copy, agents.target.velocity) for _ in range(2)]
            self.agents = eqx.tree_at(lambda agents: (agents.params.critic.stale, agents.target.stale), agents, copies)
        return infos


def main() -> None:
    """Train the groups and write the table and the figure, as `floq sweep` does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save_dir", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--dataset_dir", default="~/.ogbench/data")
    parser.add_argument("--seeds", type=int, nargs="+", default=(), help="instead of those of the experiment")
    given = vars(parser.parse_args())
    seeds = given.pop("seeds")
    CRITICS["stale"] = (StaleConfig, StaleCritic)
    floq.training.train.Fleet = RenewingFleet
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "budgets").symlink_to(Path(__file__).parent / "budgets")
        (Path(folder) / "stale.toml").write_text(EXPERIMENT)
        try:
            sweep([f"{folder}/stale.toml"], SweepOptions(**given), seeds)
        except UserError as error:
            raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
