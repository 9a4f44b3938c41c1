"""How long the K-step integrations of an update take alone, plain and fused, and with which plan of the kernel.

    python benchmarks/gpu/kernel_variants.py --out kernels.csv [--runs 1 16] [any setting of floq train]

Times the TD target's integration for all rows of a batch and all runs, best of a few tries. For the fused kernel it
goes through the numbers of rows that a block may have. Prints milliseconds, TFLOP/s and the share of a large product's
speed in bfloat16, measured here.
"""

import argparse
import csv
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from floq.cli.train import parse_train
from floq.critics import FloqCritic, ReturnScale
from floq.networks.kernels import fused
from floq.networks.kernels.plan import Plan
from floq.networks.precision import matmul_precision
from floq.training.bench import best_in_turn, product_rate, repetitions_for
from floq.utils.errors import UserError

TRIES = 4


def integration(config: Any, runs: int, sizes: tuple[int, int], way: str) -> Callable[[], jax.Array]:
    """A call that integrates for every run, row of the batch, source sample and member."""
    c = dataclasses.replace(config.agent.critic, integration=way)
    keys = jax.random.split(jax.random.key(0), runs)
    critics = jax.vmap(lambda key: FloqCritic.init(key, *sizes, c))(keys)
    scale = ReturnScale(*(jnp.float32(x) for x in (-1.0, 0.0, 0.99, 0.1)))
    batch = config.agent.batch_size
    obs, acts, z_0 = (
        jax.random.normal(jax.random.key(1), (runs, batch, sizes[0])),
        jax.random.normal(jax.random.key(2), (runs, batch, c.noise_samples, sizes[1])),
        scale.noise(jax.random.uniform(jax.random.key(3), (runs, batch, c.noise_samples))),
    )

    def target(critic: FloqCritic, obs: Any, acts: Any, z_0: Any) -> Any:
        zero = jnp.zeros(())
        return critic.target_at(zero, zero + 1, obs, acts, scale, z_0)

    @jax.jit
    def every(*arguments: Any) -> Any:
        with matmul_precision("bf16"):
            return jax.vmap(jax.vmap(target, (None, 0, 0, 0)))(*arguments)

    return lambda: jax.block_until_ready(every(critics, obs, acts, z_0))


def best_seconds(call: Callable[[], Any], least: float) -> float:
    call()  # compile
    repeat = lambda n: [call() for _ in range(n)]  # noqa: E731
    return best_in_turn({"": repeat}, {"": repetitions_for(repeat, least)}, TRIES)[""]


def with_plan(warpgroups: int, stages: int) -> Callable[..., Any]:
    """`Plan.of` with another number of consumer warpgroups (64 rows each) and of stages in the ring of weights."""
    original = Plan.of

    @functools.wraps(original)
    def of(*args: Any, **settings: Any) -> Plan:
        return dataclasses.replace(original(*args, **settings), warpgroups=warpgroups, stages=stages)

    return of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--sizes", type=int, nargs=2, default=(37, 5), help="numbers in an observation and an action")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each try")
    parser.add_argument("--square", type=int, default=8192, help="size of the product taken for the peak")
    options, settings = parser.parse_known_args()
    (config,) = parse_train(settings).configs
    critic = config.agent.critic
    peak = product_rate(options.square, options.square, "bf16")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, peak {peak / 1e12:.3g} TFLOP/s in bfloat16")
    ways: list[tuple[str, str, Any]] = [("plain", "plain", None), ("fused", "fused", None)]
    for warpgroups, stages in ((1, 2), (1, 4), (1, 6), (2, 2), (2, 3)):
        ways.append((f"fused, {64 * warpgroups} rows, {stages} stages", "fused", with_plan(warpgroups, stages)))
    header = ["integration", "runs", "milliseconds", "tflops", "share_of_peak"]
    rows: list[list[Any]] = []
    print(f"{header[0]:<28} {'runs':>4} {'ms':>9} {'TFLOP/s':>9} {'% of peak':>9}")
    for runs in options.runs:
        inner = (critic.num_bins + sum(options.sizes)) * critic.block_width
        inner += (critic.block_depth - 1) * critic.block_width**2 + critic.block_width
        evaluations = runs * config.agent.batch_size * critic.noise_samples * critic.flow_num_ensembles
        flops = 2 * inner * evaluations * critic.critic_flow_steps
        for name, way, plan in ways:
            usual = fused.Plan
            try:
                if plan is not None:
                    fused.Plan = SimpleNamespace(of=plan)  # pyright: ignore[reportAttributeAccessIssue]
                seconds = best_seconds(integration(config, runs, tuple(options.sizes), way), options.seconds)
            except UserError as error:
                print(f"{name:<28} {runs:>4}  not here: {error}", flush=True)
                continue
            except Exception as error:  # a plan that the compiler refuses should not end the others
                print(f"{name:<28} {runs:>4}  failed: {str(error).splitlines()[0][:100]}", flush=True)
                continue
            finally:
                fused.Plan = usual
            rate = flops / seconds
            rows.append([name, runs, 1e3 * seconds, rate / 1e12, rate / peak])
            print(
                f"{name:<28} {runs:>4} {1e3 * seconds:>9.3f} {rate / 1e12:>9.3g} {100 * rate / peak:>9.1f}", flush=True
            )
            with open(options.out, "w", newline="") as file:
                csv.writer(file).writerows([header, *rows])


if __name__ == "__main__":
    main()
