"""`floq bench`: what K and a fleet cost on this machine, in one table, against the monolithic critic.

Random data of the task's sizes, the settings of the task. All agents of one fleet size are measured alternately, and
the peak that they are compared with is measured in the same process.
"""

import csv
import dataclasses
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Len

from floq.agent.config import AgentConfig, settings_type
from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.analysis.cost import cost_of
from floq.data.dataset import Dataset
from floq.envs import environments
from floq.envs.environments import probe
from floq.evaluation.rollouts import Evaluator, on_cpu, play_episode
from floq.networks.precision import Precision
from floq.runs.config import Config
from floq.runs.presets import configure
from floq.runs.weights import make_agent
from floq.training.fleet import Fleet, FleetData
from floq.training.sharding import Layout
from floq.training.train import check_built
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import cores, device, use_all_cores
from floq.utils.obs_spec import ObsSpec
from floq.utils.progress import Display
from floq.utils.schema import Positive, PositiveFloat, Settings, Size

# --- How fast things are here ---

Name = TypeVar("Name")

SQUARE = {"cpu": 2048, "gpu": 8192}  # size of the product that is taken for the peak
OPERATIONS = {"cpu": 5e9, "gpu": 2e13}  # in one try of a product, so that starting it takes no part
TRIES = 5


class Peaks(NamedTuple):
    """Operations per second of one device's products: of large squares, and of the shapes that the critic's hidden
    layers have for one run."""

    square: float
    layers: float


class EpisodeRates(NamedTuple):
    """Evaluation episodes per second."""

    batched: float
    one_by_one: float


def seconds_of(call: Callable[[], Any]) -> float:
    """Return the seconds that one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def repetitions_for(call: Callable[[int], Any], seconds: float) -> int:
    """Find the n for which `call(n)` takes about `seconds`, by doubling it: one repetition would mostly time the
    start."""
    n, spent = 1, seconds_of(partial(call, 1))
    while spent < seconds / 4:
        n *= 2
        spent = seconds_of(partial(call, n))
    return max(1, round(n * seconds / spent))


def best_in_turn(
    calls: Mapping[Name, Callable[[int], Any]], repetitions: Mapping[Name, int], tries: int = 3
) -> dict[Name, float]:
    """Measure the seconds per repetition of each `call(n)`: the best of a few tries, in which the calls take turns, so
    that what else the machine does hits all of them alike."""
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
    """Return the size of the large square matrices."""
    return SQUARE[_backend()]


def _backend() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def evaluation_rates(config: Config, policy: Policy, env: environments.SeededEnv) -> EpisodeRates:
    """Measure episodes per second, all at once and one after another, of an untrained policy, whose episodes are as
    long as the task allows."""
    assert config.env_name is not None
    policy = on_cpu(policy)
    chunk = config.agent.action_chunk
    with Evaluator(config.make_env, config.eval_episodes, action_chunk=chunk) as evaluator:
        evaluator(policy, 0, 0)  # starts the workers and compiles
        batched = config.eval_episodes / seconds_of(lambda: evaluator(policy, 0, 1))
    few = max(1, config.eval_episodes // 10)
    _play(policy, env, 0, chunk)
    one_by_one = few / seconds_of(lambda: [_play(policy, env, episode, chunk) for episode in range(few)])
    return EpisodeRates(batched, one_by_one)


def _play(policy: Policy, env: environments.SeededEnv, episode: int, action_chunk: int) -> None:
    key = jax.random.key(episode)
    decide = lambda obs, elapsed: policy.act(obs, jax.random.fold_in(key, elapsed))  # noqa: E731
    for _ in play_episode(env, (0, episode), decide, action_chunk):
        pass


ROWS = 100_000  # of random data


class Measured(NamedTuple):
    """One row of the table: a fleet of `runs` agents with the same K. Rates are per second, sizes in bytes, of all
    devices together. `flops` are those of one update of one run."""

    agent: str
    k: int | None
    runs: int
    updates: float
    run_updates: float
    to_fql: float
    flops: int
    share_of_peak: float
    memory: int
    compile_seconds: float
    job_seconds: float


@dataclass(frozen=True)
class BenchOptions(Settings):
    """Measure what K and the size of a fleet cost on this machine, against the monolithic critic, on random data of a
    task's sizes. The flags of floq train say what is measured: --env_name, --precision, --preset, --agent.block_width
    and the others that floq train --help explains."""

    ks: Annotated[tuple[Size, ...], Len(1)] = (1, 4, 8, 16)
    """Numbers of integration steps."""
    fleets: Annotated[tuple[Positive, ...], Len(1)] = (1, 4, 8, 16)
    """Numbers of runs."""
    seconds: PositiveFloat = 2.0
    """Each of the three tries of a row takes about this long."""
    evaluate: bool = True
    """Measure evaluation as well."""
    out: str | None = None
    """Write the rows to this CSV file."""


def bench(config: Config, options: BenchOptions, show: bool = True) -> list[Measured]:
    """Measure, and print the table.

    Args:
        config: of a floq agent; its task gives the sizes of observations and actions.
        options: what to measure.
        show: print.

    Raises:
        UserError: the agent's critic has no K, the environment is missing, or the file cannot be written.
    """
    ks, fleets, out = options.ks, options.fleets, options.out
    display, path = Display(show), user_path(out) if out else None
    if config.agent.critic_name != "floq":
        raise UserError(f"floq bench varies K, and critic {config.agent.critic_name!r} has none: leave out --agent")
    if config.env_name is None:
        raise UserError("floq bench takes its sizes from a task: give --env_name")
    if path:
        if path.is_dir():
            raise UserError(f"--out={out}: this is a folder, name a file")
        check_writable(path.parent, "choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
    use_all_cores(max(fleets) * config.batch_devices)
    display.note(f"device  {device()}")
    Layout.for_runs(max(fleets), config.batch_devices)  # complains early if there are too few devices
    check_built(config)
    env = environments.make(config.env_name, config.success_timing)
    obs_spec, action_dim = probe(env)
    data = synthetic_data(obs_spec, action_dim)
    devices = jax.local_devices()
    machine = f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, {cores()} cores"
    display.note(f"{date.today()}, {machine}")
    display.note(f"{config.env_name}: {obs_spec.dim} observations, {action_dim} actions")
    peaks = matmul_peaks(config)
    square, precision = square_size(), _precision(config)
    display.note(
        f"matrix products in {precision}, one device: {_rate(peaks.square)} at {square} x {square}, "
        f"{_rate(peaks.layers)} at the shape of a hidden layer"
    )
    episodes = None
    if options.evaluate:
        episodes = evaluation_rates(config, make_agent(config, data).policy, env)
        ratio = episodes.batched / episodes.one_by_one
        display.note(
            f"evaluation: {episodes.batched:.2f} episodes/s, {episodes.one_by_one:.2f} one after another: {ratio:.1f}x"
        )
    env.close()
    rows: list[Measured] = []
    total = len(fleets) * (len(ks) + 1)
    with display.bar("bench", total) as update_bar:
        for runs in fleets:
            done = len(rows)
            prepared = lambda count, done=done, runs=runs: update_bar(done + count // 2, runs=runs)  # noqa: E731
            rows += measure(config, ks, runs, data, peaks, episodes, options.seconds, prepared)
            update_bar(len(rows), runs=runs)
            if path:
                _write(path, rows)
    steps = f"job: {config.offline_steps:,} updates"
    if options.evaluate:
        steps += f", {config.eval_episodes} episodes every {config.eval_interval:,}"
    display.columns(f"{config.env_name}, {precision}; {steps}", HEADER, [_cells(row) for row in rows])
    return rows


def synthetic_data(obs_spec: ObsSpec | int, action_dim: int) -> Dataset:
    """Random transitions; what they are does not matter for speed."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 1000 == 0
    obs, act = rng.normal(size=(ROWS, *ObsSpec.of(obs_spec).shape)), rng.uniform(-1, 1, (ROWS, action_dim))
    return Dataset.from_rows(obs, act, -np.ones(ROWS), np.ones(ROWS), ends)


def contenders(config: Config, ks: Sequence[int]) -> dict[tuple[str, int | None], Config]:
    """Return the configurations to compare: floq with each K, and FQL with the same actor and the same widths."""
    found: dict[tuple[str, int | None], Config] = {}
    for k in ks:
        critic = dataclasses.replace(config.agent.critic, critic_flow_steps=k)
        found["floq", k] = dataclasses.replace(config, agent=dataclasses.replace(config.agent, critic=critic))
    fields = {f.name for f in dataclasses.fields(settings_type("scalar", "fql"))}
    shared = {name: value for name, value in config.agent.flat().items() if name in fields}
    fql = configure(config.env_name, "fql").agent.flat() | shared
    found["fql", None] = dataclasses.replace(config, agent=AgentConfig.from_flat("scalar", "fql", fql))
    return found


def fleet_of(config: Config, runs: int, data: Dataset, layout: Layout | None = None) -> Fleet:
    """Make a fleet of fresh agents that differ in their seeds."""
    layout, data = layout or Layout.for_runs(runs, config.batch_devices), data.for_chunks(config.agent.action_chunk)
    both, seeds = FleetData.of([data]), range(runs)
    agents = [make_agent(dataclasses.replace(config, seed=seed), data) for seed in seeds]
    batches, validations = [Keys.of(seed).batches for seed in seeds], [Keys.of(seed).validation for seed in seeds]
    return Fleet(agents, [0] * runs, both, both, batches, validations, layout)


def measure(
    config: Config,
    ks: Sequence[int],
    runs: int,
    data: Dataset,
    peaks: Peaks,
    episodes: EpisodeRates | None,
    seconds: float,
    prepared: Callable[[int], object] = lambda count: None,
) -> list[Measured]:
    """All rows of one fleet size, measured alternately; the best of a few tries. Their fleets are in memory together;
    `prepared` is called with the number of those that are."""
    configs, data = contenders(config, ks), data.for_chunks(config.agent.action_chunk)
    fleets: dict[Any, Fleet] = {}
    compiling: dict[Any, float] = {}
    memory: dict[Any, int] = {}
    steps: dict[Any, int] = {}
    for name, one in configs.items():
        fleet = fleets[name] = fleet_of(one, runs, data)
        started = time.perf_counter()
        used = fleet.compile().memory_analysis()
        compiling[name] = time.perf_counter() - started
        memory[name] = 0
        if used is not None:
            memory[name] = used.argument_size_in_bytes + used.temp_size_in_bytes + used.output_size_in_bytes
            memory[name] = fleet.devices * (memory[name] - used.alias_size_in_bytes)  # it is said of one device
        fleet.advance(1)
        steps[name] = repetitions_for(fleet.advance, seconds)
        prepared(len(fleets))
    best = best_in_turn({name: fleet.advance for name, fleet in fleets.items()}, steps)
    # The cores that pose as devices of a CPU share one peak; accelerators have one each.
    peak = max(peaks) * (1 if jax.default_backend() == "cpu" else fleets["fql", None].devices)
    rows = []
    for (agent, k), one in configs.items():
        per_update = best[agent, k]
        flops = cost_of(one.agent, *data.dims).update_flops
        rows.append(
            Measured(
                agent,
                k,
                runs,
                1 / per_update,
                runs / per_update,
                per_update / best["fql", None],
                flops,
                runs * flops / per_update / peak,
                memory[agent, k],
                compiling[agent, k],
                _job_seconds(one, runs, per_update, episodes),
            )
        )
    return rows


def _job_seconds(config: Config, runs: int, per_update: float, episodes: EpisodeRates | None) -> float:
    """Of a whole training of all runs. Evaluation goes on beside an accelerator, and takes turns with it on a CPU."""
    training = config.offline_steps * per_update
    if episodes is None:
        return training
    evaluations = runs * (1 + config.offline_steps // config.eval_interval) if config.eval_interval else 0
    evaluating = evaluations * config.eval_episodes / episodes.batched
    return training + evaluating if jax.default_backend() == "cpu" else max(training, evaluating)


HEADER = "agent", "K", "runs", "updates/s", "run-upd/s", "to fql", "GFLOP", "% peak", "MB", "comp. s", "job h"


def _cells(row: Measured) -> list[str]:
    return [
        row.agent,
        "-" if row.k is None else str(row.k),
        str(row.runs),
        f"{row.updates:.4g}",
        f"{row.run_updates:.4g}",
        f"{row.to_fql:.2f}",
        f"{row.flops / 1e9:.3g}",
        f"{100 * row.share_of_peak:.0f}",
        f"{row.memory / 1e6:.0f}",
        f"{row.compile_seconds:.1f}",
        f"{row.job_seconds / 3600:.2f}",
    ]


def _precision(config: Config) -> str:
    """Return the name of the precision; a CPU has no TF32."""
    return "f32" if config.precision == "tf32" and jax.default_backend() == "cpu" else config.precision


def _rate(flops: float) -> str:
    return f"{flops / 1e12:.0f} TFLOP/s" if flops > 5e12 else f"{flops / 1e9:.0f} GFLOP/s"


def _write(path: Path, rows: Sequence[Measured]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Measured._fields)
        writer.writerows(rows)
