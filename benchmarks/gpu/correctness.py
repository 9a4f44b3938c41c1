"""Every way to compute an update, against float32 with the plain integration.

    python benchmarks/gpu/correctness.py --out correctness.csv [--env_name TASK] [any setting of floq train]

One update from the same parameters on the same batch. Prints, for each precision and integration: the relative error of
the TD targets and of the value, how far the gradients (Adam's first moments) of the flow critic, of the distilled
critic and of the actor turn away, and whether a second try gives the same bits. A way that this machine cannot go is
named with its reason. Exit code 1 if one is further from float32 than rounding explains.
"""

import argparse
import csv
import dataclasses
import sys
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.cli.train import parse_train
from floq.data.dataset import Batch
from floq.networks.precision import matmul_precision
from floq.runs.config import Config
from floq.runs.run import make_agent
from floq.training.bench import synthetic_data
from floq.training.fleet import sample_batch
from floq.utils.errors import UserError

HEAD = 30.0
MOST = {"f32": 1e-5, "tf32": 5e-3, "bf16": 3e-2}  # error that is put down to rounding
WAYS = (("f32", "plain"), ("tf32", "plain"), ("f32", "folded"), ("bf16", "plain"), ("bf16", "fused"))


class Outcome(NamedTuple):
    """What one update came to."""

    targets: np.ndarray
    value: float
    gradients: dict[str, np.ndarray]
    agent: Agent


def outcome(agent: Agent, batch: Batch) -> Outcome:
    critic, actor = agent.target, agent.params.actor

    def target(reward, mask, next_obs, key):
        return critic.target(reward, agent.hypers.discount * mask, next_obs, actor.act, agent.scale, key)

    keys = jax.random.split(jax.random.key(7), batch["rewards"].shape[0])
    with matmul_precision(agent.precision):
        targets = jax.jit(jax.vmap(target))(batch["rewards"], batch["masks"], batch["next_observations"], keys)
    after, info = agent.update(batch)
    critic_moments: Any = after.opt_state.critic
    actor_moments: Any = after.opt_state.actor
    parts = {
        "velocity": critic_moments.mu.velocity,
        "distilled": critic_moments.mu.distilled,
        "actor": actor_moments.mu,
    }
    flat = {name: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(part)]) for name, part in parts.items()}
    return Outcome(np.asarray(targets), float(info["critic/q"]), flat, after)


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """1 - cosine."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1 - a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs=2, default=(37, 5), help="numbers in an observation and an action")
    options, settings = parser.parse_known_args()
    (base,) = parse_train(settings).configs
    data = synthetic_data(*options.sizes)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {options.sizes[0]} + {options.sizes[1]} numbers")
    names = "precision", "integration", "targets", "value", "velocity", "distilled", "actor", "same bits"
    print(f"{names[0]:<10} {names[1]:<12} " + " ".join(f"{name:>10}" for name in names[2:]))
    reference, rows = None, []
    for precision, integration in WAYS:
        try:
            found, again = (outcome(*prepared(base, precision, integration, data)) for _ in range(2))
        except UserError as error:
            print(f"{precision:<10} {integration:<12} not here: {error}", flush=True)
            continue
        reference = reference or found
        spread = np.linalg.norm(reference.targets)
        same = all(np.array_equal(a, b) for a, b in zip(*map(leaves, (found, again)), strict=True))
        errors = [
            float(np.linalg.norm(found.targets - reference.targets) / spread),
            abs(found.value - reference.value) / float(np.abs(reference.targets).mean()),
            *(angle(found.gradients[part], reference.gradients[part]) for part in found.gradients),
        ]
        rows.append([precision, integration, *errors, same])
        print(
            f"{precision:<10} {integration:<12} " + " ".join(f"{e:>10.2e}" for e in errors) + f" {same!s:>10}",
            flush=True,
        )
        with open(options.out, "w", newline="") as file:
            csv.writer(file).writerows([names, *rows])
    wrong = [row for row in rows if not all(error < MOST[row[0]] for error in row[2:-1])]  # NaN is wrong as well
    if wrong:
        sys.exit("too far from float32: " + ", ".join(f"{row[0]} {row[1]}" for row in wrong))


def prepared(base: Config, precision: Any, integration: Any, data: Any) -> tuple[Agent, Batch]:
    critic = dataclasses.replace(base.agent.critic, integration=integration)
    config = dataclasses.replace(base, precision=precision, agent=dataclasses.replace(base.agent, critic=critic))
    agent = make_agent(config, data)
    # Fresh networks put out almost nothing: a larger last layer carries z as far as it goes in training.
    head = lambda agent: [c.velocity.body.linears[-1].weight for c in (agent.target, agent.params.critic)]  # noqa: E731
    agent = eqx.tree_at(head, agent, replace_fn=lambda weight: HEAD * weight)
    return agent, sample_batch(agent, data, Keys.of(0).batches)


def leaves(found: Outcome) -> list[Any]:
    return [*jax.tree.leaves(jax.device_get(found.agent.params)), found.targets]


if __name__ == "__main__":
    main()
