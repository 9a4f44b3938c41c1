"""Does a trained flow contract? dv/dz over t, beside the -1 / (1 - t) of the ideal flow to one value.

    python benchmarks/flow_slopes.py RUN_DIR [RUN_DIR ...]

For held-out transitions, at points of the straight lines that lead from source noise to where the flow takes it on
average; mean over transitions, source samples and members. `spread` is the standard deviation of the values that the
source samples end at, and `noise` that of the source itself.
"""

import argparse

import jax
import jax.numpy as jnp

from floq.agent.agent import Agent
from floq.critics import FloqCritic
from floq.data.dataset import Batch
from floq.flow import trajectory
from floq.runs import run_data
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.progress import Display

TRANSITIONS, SAMPLES, TIMES = 256, 4, 8


def slopes(agent: Agent, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean dv/dz at each of the times, and the mean spread of the values."""
    critic, scale = agent.params.critic, agent.scale
    if not isinstance(critic, FloqCritic):
        raise UserError("this run has no flow critic")
    config, times = critic.config, jnp.arange(TIMES) / TIMES
    noise = scale.noise((jnp.arange(SAMPLES) + 0.5) / SAMPLES)

    def of_transition(obs, act):
        def of_member(member):
            velocity = member.at(agent.normalize(obs), act, scale)
            paths = jax.vmap(lambda z: trajectory(velocity, z, config.critic_flow_steps, config.solver))(noise)
            points = (1 - times) * noise[:, None] + times * jnp.mean(paths[:, -1])
            return jax.vmap(jax.vmap(jax.grad(velocity)), (0, None))(points, times), jnp.std(paths[:, -1])

        return jax.vmap(of_member)(critic.velocity)

    slopes, spread = jax.vmap(of_transition)(batch["observations"], batch["actions"])
    return jnp.mean(slopes, axis=(0, 1, 2)), jnp.mean(spread)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR")
    names = parser.parse_args().runs
    print(f"{'t':<14}" + "".join(f"{i / TIMES:>7.3f}" for i in range(TIMES)) + "  spread  noise")
    print(f"{'ideal':<14}" + "".join(f"{-1 / (1 - i / TIMES):>7.2f}" for i in range(TIMES)))
    for name in names:
        run = Run.open(name)
        agent = run.load_agent()
        data = run_data.load_data(run.config, Display(False)).validation
        static = agent.static
        batch = data.sample(jax.random.key(0), TRANSITIONS, action_chunk=static.action_chunk)
        found, spread = jax.jit(slopes)(agent, batch)
        noise = jnp.std(agent.scale.noise((jnp.arange(SAMPLES) + 0.5) / SAMPLES))
        settings = f"K {static.flat()['critic_flow_steps']}, c {float(agent.hypers.noise_coverage):.3g}"
        print(f"{settings:<14}" + "".join(f"{slope:>7.2f}" for slope in found) + f"{spread:>8.2f}{noise:>7.2f}")


if __name__ == "__main__":
    main()
