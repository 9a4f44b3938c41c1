"""How fast things are here: calls, matrix products, evaluation episodes."""

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from floq import envs
from floq.config import Config
from floq.evaluate import Evaluator, on_cpu
from floq.policy import Policy
from floq.precision import Precision

Name = TypeVar("Name")

SQUARE = {"cpu": 2048, "gpu": 8192}  # size of the product that is taken for the peak
OPERATIONS = {"cpu": 5e9, "gpu": 2e13}  # in one try of a product, so that starting it takes no part
TRIES = 5


class Peaks(NamedTuple):
    """Operations per second of one device's products: of large squares, and of the shapes that the critic's hidden
    layers have for one run."""

    square: float
    layers: float


class Episodes(NamedTuple):
    """Evaluation episodes per second."""

    batched: float
    one_by_one: float


def seconds_of(call: Callable[[], Any]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def repetitions_for(call: Callable[[int], Any], seconds: float) -> int:
    """The n for which `call(n)` takes about so long, found by doubling it: a single repetition says little where
    starting is most of its time."""
    n, spent = 1, seconds_of(partial(call, 1))
    while spent < seconds / 4:
        n *= 2
        spent = seconds_of(partial(call, n))
    return max(1, round(n * seconds / spent))


def best_in_turn(
    calls: Mapping[Name, Callable[[int], Any]], repetitions: Mapping[Name, int], tries: int = 3
) -> dict[Name, float]:
    """Seconds per repetition of each `call(n)`: the best of a few tries, in which the calls take turns, so that what
    else the machine does hits all of them alike."""
    best = dict.fromkeys(calls, math.inf)
    for _ in range(tries):
        for name, call in calls.items():
            best[name] = min(best[name], seconds_of(partial(call, repetitions[name])) / repetitions[name])
    return best


def matmul_peaks(config: Config) -> Peaks:
    """How fast a device multiplies matrices in the precision of a configuration with a floq critic."""
    rows = config.agent.batch_size * config.agent.critic.noise_samples
    square, width = square_size(), config.agent.critic.block_width
    return Peaks(product_rate(square, square, config.precision), product_rate(rows, width, config.precision))


def product_rate(rows: int, width: int, precision: Precision) -> float:
    """Operations per second of x W for x of `rows` rows and a square W."""
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    repeat = max(1, int(OPERATIONS[_backend()] // (2 * rows * width * width)))
    weight = jax.random.normal(jax.random.key(0), (width, width), dtype) / width**0.5
    x = jax.random.normal(jax.random.key(1), (rows, width), dtype)
    how = "highest" if precision == "f32" else "default"

    @jax.jit
    def products(x, weight):
        return jax.lax.fori_loop(0, repeat, lambda _, x: jnp.matmul(x, weight, precision=how), x)

    run = lambda: jax.block_until_ready(products(x, weight))  # noqa: E731
    run()  # compiles
    return 2 * rows * width * width * repeat / min(seconds_of(run) for _ in range(TRIES))


def square_size() -> int:
    """The size of the large squares."""
    return SQUARE[_backend()]


def _backend() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def evaluation_rates(config: Config, policy: Policy, env: envs.SeededEnv) -> Episodes:
    """Episodes per second, all at once and one after another, of a policy that has learned nothing: its episodes are
    as long as the task allows."""
    assert config.env_name is not None
    policy = on_cpu(policy)
    chunk = config.agent.action_chunk
    with Evaluator(config.env_name, config.success_timing, config.eval_episodes, action_chunk=chunk) as evaluator:
        evaluator(policy, 0, 0)  # starts the workers and compiles
        batched = config.eval_episodes / seconds_of(lambda: evaluator(policy, 0, 1))
    few = max(1, config.eval_episodes // 10)
    _play(policy, env, 0, chunk)
    one_by_one = few / seconds_of(lambda: [_play(policy, env, episode, chunk) for episode in range(few)])
    return Episodes(batched, one_by_one)


def _play(policy: Policy, env: envs.SeededEnv, episode: int, action_chunk: int) -> None:
    obs, ended, step, plan = env.reset_with((0, episode)), False, 0, []
    while not ended:
        if step % action_chunk == 0:
            key = jax.random.fold_in(jax.random.key(episode), step)
            plan = np.split(np.asarray(policy.act(np.asarray(obs, np.float32), key)), action_chunk)
        obs, _, terminated, truncated, _ = env.step(plan[step % action_chunk])
        ended, step = terminated or truncated, step + 1
