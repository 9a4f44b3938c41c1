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
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Len

from floq.agent.config import AgentConfig, settings_type
from floq.agent.policy import Policy
from floq.agent.state import Keys
from floq.analysis.cost import cost_of
from floq.data.dataset import Dataset
from floq.envs.environments import task_dims
from floq.evaluation.rollouts import Evaluator, on_cpu
from floq.networks.precision import Precision
from floq.runs.config import Config, configure
from floq.runs.run import make_agent
from floq.training.fleet import Fleet, FleetData, Layout
from floq.training.train import check_built
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import cores, device, use_all_cores
from floq.utils.obs_spec import ObsSpec
from floq.utils.progress import Display
from floq.utils.schema import Positive, PositiveFloat, Settings, Size

Name = TypeVar("Name")

SQUARE = {"cpu": 2048, "gpu": 8192}  # size of the product that is taken for the peak
OPERATIONS = {"cpu": 5e9, "gpu": 2e13}  # in one try of a product, so that starting it takes no part
TRIES = 5
ROWS = 100_000  # of random data

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "agent": ("agent", str),
    "k": ("K", lambda k: "-" if k is None else str(k)),
    "runs": ("runs", str),
    "updates": ("updates/s", "{:.4g}".format),
    "run_updates": ("run-upd/s", "{:.4g}".format),
    "to_fql": ("to fql", "{:.2f}".format),
    "flops": ("GFLOP", lambda flops: f"{flops / 1e9:.3g}"),
    "share_of_peak": ("% peak", lambda share: f"{100 * share:.0f}"),
    "memory": ("MB", lambda size: f"{size / 1e6:.0f}"),
    "compile_seconds": ("comp. s", "{:.1f}".format),
    "job_seconds": ("job h", lambda seconds: f"{seconds / 3600:.2f}"),
}
"""By name in the CSV file, the column's header in the table and how its values are shown there. Rates are per second,
sizes in bytes, of all devices together; `flops` are those of one update of one run."""


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


def bench(config: Config, options: BenchOptions, show: bool = True) -> list[dict[str, Any]]:
    """Measure agents with the settings of a floq agent on its task, and print the table. Returns its rows by `COLUMNS`.
    Raises UserError if the agent's critic has no K, the environment is missing, or the file cannot be written."""
    agent, fleets, display = config.agent, options.fleets, Display(show)
    if agent.critic_name != "floq":
        raise UserError(f"floq bench varies K, and critic {agent.critic_name!r} has none: leave out --agent")
    if config.env_name is None:
        raise UserError("floq bench takes its sizes from a task: give --env_name")
    if path := user_path(options.out) if options.out else None:
        if path.is_dir():
            raise UserError(f"--out={options.out}: this is a folder, name a file")
        check_writable(path.parent, "choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
    use_all_cores(max(fleets) * config.batch_devices)
    display.note(f"device  {device()}{config.precision_note}")
    config = config.on_this_machine()
    Layout.for_runs(max(fleets), config.batch_devices)  # complains early if there are too few devices
    check_built(config)
    obs_spec, action_dim = task_dims(config.make_env)
    data, devices, square = synthetic_data(obs_spec, action_dim), jax.local_devices(), SQUARE[_backend()]
    data = data.seen_as(config.frame_stack or 1, config.p_aug or 0.0)
    machine = f"{len(devices)} x {devices[0].device_kind}, {platform.machine()}, {cores()} cores"
    display.note(f"{date.today()}, {machine}")
    display.note(
        f"{config.env_name}: {obs_spec.dim if obs_spec.is_vector else obs_spec} observations, {action_dim} actions"
    )
    precision = "f32" if config.precision == "tf32" and _backend() == "cpu" else config.precision  # a CPU has no TF32
    shapes = (square, square), (agent.batch_size * agent.critic.noise_samples, agent.critic.block_width)
    peaks = [product_rate(*shape, config.precision_here) for shape in shapes]
    shown = [f"{rate / 1e12:.0f} TFLOP/s" if rate > 5e12 else f"{rate / 1e9:.0f} GFLOP/s" for rate in peaks]
    display.note(
        f"matrix products in {precision}, one device: {shown[0]} at {square} x {square}, {shown[1]} at the shape of a "
        "hidden layer"
    )
    job, at_once = f"job: {config.offline_steps:,} updates", math.inf
    if options.evaluate:
        policy, count = make_agent(config, data).policy, config.eval_episodes
        at_once, single = (evaluation_rate(config, policy, *how) for how in ((count,), (1, max(1, count // 10))))
        display.note(f"evaluation: {at_once:.2f} episodes/s, {single:.2f} one after another: {at_once / single:.1f}x")
        job += f", {count} episodes every {config.eval_interval:,}"
    rows: list[dict[str, Any]] = []
    with display.bar("bench", len(fleets) * (len(options.ks) + 1)) as update_bar:
        for runs in fleets:
            rows += measure(config, options, runs, data, max(peaks), at_once)
            update_bar(len(rows), runs=runs)
            if path:
                with open(path, "w", newline="") as file:
                    writer = csv.DictWriter(file, COLUMNS)
                    writer.writeheader()
                    writer.writerows(rows)
    header, shows = zip(*COLUMNS.values(), strict=True)
    cells = [[show_value(row[name]) for name, show_value in zip(COLUMNS, shows, strict=True)] for row in rows]
    display.columns(f"{config.env_name}, {precision}; {job}", header, cells)
    return rows


def synthetic_data(obs_spec: ObsSpec | int, action_dim: int) -> Dataset:
    """Make random transitions."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 1000 == 0
    spec, act = ObsSpec.of(obs_spec).stacked(1), rng.uniform(-1, 1, (ROWS, action_dim))
    obs: Any = rng.normal(size=(ROWS, *spec.shape))
    if not spec.is_vector:
        obs = np.zeros(ROWS, spec.record)
        for name, shape in spec.parts:
            obs[name] = rng.integers(0, 256, (ROWS, *shape)) if name in spec.images else rng.normal(size=(ROWS, *shape))
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
    both, keys = FleetData.of([data]), [Keys.of(seed) for seed in range(runs)]
    agents = [make_agent(dataclasses.replace(config, seed=seed), data) for seed in range(runs)]
    tasks, batches, validations = [0] * runs, [own.batches for own in keys], [own.validation for own in keys]
    return Fleet(agents, tasks, both, both, batches, validations, layout)


def measure(
    config: Config, options: BenchOptions, runs: int, data: Dataset, peak: float, episodes: float
) -> list[dict[str, Any]]:
    """Return all rows of one fleet size, measured alternately; the best of a few tries. Their fleets are in memory
    together. `peak` is operations per second of one device, `episodes` those of evaluation per second, infinite without
    it."""
    rows, fleets, steps = [], {}, {}
    for (agent, k), one in contenders(config, options.ks).items():
        fleet = fleets[agent, k] = fleet_of(one, runs, data)
        started = time.perf_counter()
        used, size = fleet.compile().memory_analysis(), 0
        compiling = time.perf_counter() - started
        if used is not None:  # it is said of one device
            size = used.argument_size_in_bytes + used.temp_size_in_bytes + used.output_size_in_bytes
            size = len(fleet.layout.devices) * (size - used.alias_size_in_bytes)
        fleet.advance(1)
        steps[agent, k] = repetitions_for(fleet.advance, options.seconds)
        flops = cost_of(one.agent, *data.dims).update_flops
        own = {"agent": agent, "k": k, "runs": runs, "flops": flops, "memory": size}
        rows.append(own | {"compile_seconds": compiling})
    best = best_in_turn({name: fleet.advance for name, fleet in fleets.items()}, steps)
    # The cores that pose as devices of a CPU share one peak; accelerators have one each.
    peak *= 1 if _backend() == "cpu" else len(fleets["fql", None].layout.devices)
    evaluations = runs * (1 + config.offline_steps // config.eval_interval) if config.eval_interval else 0
    evaluating = evaluations * config.eval_episodes / episodes
    for row in rows:
        seconds = best[row["agent"], row["k"]]
        training = config.offline_steps * seconds  # on a CPU, evaluation takes turns with it
        job = training + evaluating if _backend() == "cpu" else max(training, evaluating)
        row |= {"updates": 1 / seconds, "run_updates": runs / seconds, "to_fql": seconds / best["fql", None]}
        row |= {"share_of_peak": runs * row["flops"] / seconds / peak, "job_seconds": job}
    return rows


# --- How fast things are here ---


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


def product_rate(rows: int, width: int, precision: Precision) -> float:
    """Measure the operations per second of x W for x of `rows` rows and a square W."""
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float32
    repeat = max(1, int(OPERATIONS[_backend()] // (2 * rows * width * width)))
    weight = jax.random.normal(jax.random.key(0), (width, width), dtype) / width**0.5
    x = jax.random.normal(jax.random.key(1), (rows, width), dtype)
    how = "highest" if precision == "f32" else "default"

    @jax.jit
    def products(x, weight):
        form = {"precision": how, "preferred_element_type": jnp.float32}
        return jax.lax.fori_loop(0, repeat, lambda _, x: jnp.matmul(x, weight, **form).astype(dtype), x)

    run = lambda: jax.block_until_ready(products(x, weight))  # noqa: E731
    run()  # compiles
    return 2 * rows * width * width * repeat / min(seconds_of(run) for _ in range(TRIES))


def _backend() -> str:
    return "cpu" if jax.default_backend() == "cpu" else "gpu"


def evaluation_rate(config: Config, policy: Policy, episodes: int, times: int = 1) -> float:
    """Measure evaluation episodes per second, so many at once, of an untrained policy, whose episodes are as long as
    the task allows."""
    policy = on_cpu(policy)
    with Evaluator(config.make_env, episodes, action_chunk=config.agent.action_chunk) as evaluator:
        evaluator(policy, 0, 0)  # starts the workers and compiles
        return times * episodes / seconds_of(lambda: [evaluator(policy, 0, step) for step in range(1, times + 1)])
