"""`floq export`: write the policy of a checkpoint as a folder that runs without floq, and compare it with the agent."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
from annotated_types import Interval
from jaxtyping import PRNGKeyArray
from tyro.conf import Positional

from floq.agent.policy import Policy
from floq.analysis import critic_outputs
from floq.critics.base import Ranking
from floq.export import exported
from floq.export.formats import ActFunction, Exportable, Format, check_packages, load_exported, write_exported
from floq.export.operations import translate
from floq.export.trace import TracedPolicy
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.utils import files
from floq.utils.errors import Failed, UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import device, version
from floq.utils.progress import Display
from floq.utils.schema import Settings
from floq.utils.untrusted import read_json

DEFAULT_FOLDERS = {"numpy": "export", "stablehlo": "export-stablehlo", "onnx": "export-onnx"}  # in the run's folder
OBSERVATIONS, TOLERANCE, CALLS = 200, 1e-5, 300


@dataclass(frozen=True)
class ExportOptions(Settings):
    """Write the policy of a run as a folder that runs without floq: operations and arrays, with a reader of one file
    that needs NumPy alone. Its actions are compared with the agent's before the folder appears, and the time of an
    action is printed."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    out: str | None = None
    """The folder to write; by default export in the run's, or export-stablehlo, export-onnx."""
    format: Format = "numpy"
    """numpy: JSON, safetensors and a reader. stablehlo: for jax.export. onnx: for ONNX runtimes. The latter two need
    the extra floq[export]."""
    num_candidates: int | None = None
    """Actions that the policy samples, of which it takes the one with the highest Q; by default as in training."""
    rank_by: Ranking | None = None
    """The value of a flow critic by which it chooses: the distilled critic, the flow, or its one-pass read-out; by
    default as in training."""
    acting_flow_steps: int | None = None
    """Integration steps (K) of the flow, where it ranks; by default as in training."""
    explore: bool = False
    """Export the exploration policy (a Gaussian's samples, noise on a deterministic action) instead of the one that is
    evaluated."""
    tolerance: Annotated[float, Interval(ge=0, lt=1)] = TOLERANCE
    """Largest difference of an action from the agent's; rounding errors grow where a policy is very steep."""
    overwrite: bool = False
    """Replace an earlier export in that folder."""


def export_run(options: ExportOptions) -> Path:
    """Write the policy of a checkpoint as a folder, compare it with the agent, and print the time of an action.

    Returns:
        The folder. It appears only when it is complete and its actions are those of the agent.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged or diverged, the folder is there already or cannot
            be written, a package is missing, or the policy computes what cannot be exported.
        Failed: the exported actions are not the agent's.
    """
    run, format, explore = Run.open(options.run_dir, makes_env=False), options.format, options.explore
    folder = (run.folder / DEFAULT_FOLDERS[format] if options.out is None else user_path(options.out)).absolute()
    _check_free(folder, options.overwrite)
    check_packages(format)
    here, display = device(), Display()
    saved = checkpoint.load(run.folder / "checkpoints", options.step)
    critic_outputs.check_finite(saved.agent, options.run_dir, saved.step)
    display.note(f"device  {here}")
    policy = saved.agent.best_of(options.num_candidates, options.rank_by, options.acting_flow_steps)
    config = saved.config
    traced = TracedPolicy.of(policy, saved.agent.obs_spec, explore)
    about = {"task": run.config.task, "step": saved.step, "seed": config.seed, "explores": explore}
    about |= {"critic": config.agent.critic_name, "actor": config.agent.actor_name}
    description: dict[str, Any] = {"about": about | {"floq": version("floq"), "jax": version("jax")}}
    description["observation_size"] = traced.obs_shape[0]
    if saved.agent.obs_spec.frames > 1:
        description["frames"] = saved.agent.obs_spec.frames
    if not saved.agent.obs_spec.is_vector:
        description["observation_parts"] = {name: list(shape) for name, shape in saved.agent.obs_spec.shapes.items()}
    description["action_size"] = saved.agent.action_dim // config.agent.action_chunk
    description["action_chunk"] = config.agent.action_chunk
    expected = samples(policy, traced, explore)
    with _appearing(folder) as partial:
        write_exported(format, Exportable(traced, translate(traced), description), partial)
        acting = load_exported(format, partial)
        agreement = compare_with_agent(policy, acting, expected, options.tolerance)
        speed = milliseconds(lambda sample: acting(sample.obs, sample.noise), expected)
        sizes = {file.name: f"{file.stat().st_size / 1000:,.1f} kB" for file in sorted(partial.iterdir())}
    actions = f"the agent's, within {agreement.largest:.1g}, for {agreement.count} observations"
    if agreement.ties:
        actions += f", but for {agreement.ties} where the critic likes two candidates equally well up to rounding"
    measured = {"actions": actions, "one action": f"{speed:.3g} ms here, median of {CALLS}"}
    display.table(f"{run.config.task}, policy of step {saved.step}", sizes | measured)
    display.note(f"  policy      {folder}")
    return folder


# --- The folder ---


def _check_free(folder: Path, overwrite: bool) -> None:
    """Raise UserError if the folder must not or cannot be written."""
    check_writable(folder.parent, "give another --out")
    if not os.path.lexists(folder):
        return
    if not overwrite:
        raise UserError(f"{folder} exists: give another --out, or --overwrite to replace what was exported there")
    known = {*("policy.json", "policy.safetensors", "policy.stablehlo", "policy.onnx", "read_policy.py", "README.txt")}
    try:
        written = read_json(folder / exported.PROGRAM).get("format") == exported.FORMAT
        written = written and {path.name for path in folder.iterdir()} <= known | {"__pycache__"}
    except (OSError, ValueError):
        written = False
    if not written:
        raise UserError(f"{folder} was not written by floq export, and is left as it is: give another --out")


@contextlib.contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder, and rename it to `folder`, replacing an earlier one, if no exception is raised."""
    partial, old = (folder.with_name(f".{folder.name}.{end}") for end in ("partial", "old"))
    try:
        if old.exists() and not folder.exists():  # the process was killed between the two renames below
            old.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in partial.iterdir():
            files.sync(file)
        files.replace_folder(folder, partial, old)
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): give another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


# --- Verification ---


class Sample(NamedTuple):
    """An observation, the agent's own noise, and its action."""

    obs: np.ndarray
    key: PRNGKeyArray
    noise: list[np.ndarray]
    action: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """Largest distance of exported actions from the agent's, except for `ties`: in these, another action was chosen
    among candidates whose values are equal up to rounding."""

    largest: float
    ties: int
    count: int


def samples(policy: Policy, traced: TracedPolicy, explore: bool = False, count: int = OBSERVATIONS) -> list[Sample]:
    """Return the agent's actions for random observations, drawn with the mean and spread of the data if known."""
    rng, draw = np.random.default_rng(0), jax.jit(traced.draw)
    act, found = policy.explore if explore else policy.act, []
    for number in range(count):
        obs = _random_observation(policy, rng)
        key = jax.random.key(number)
        noise = [np.asarray(x) for x in draw(jax.random.clone(key))]
        found.append(Sample(obs, jax.random.clone(key), noise, np.asarray(act(policy.obs_spec.of_numbers(obs), key))))
    return found


def _random_observation(policy: Policy, rng: np.random.Generator) -> np.ndarray:
    """Draw an observation as numbers: vectors with the mean and spread of the data, pixels from 0 to 255."""
    spec, stats = policy.obs_spec, policy.obs_stats
    if spec.is_vector:
        return (np.asarray(stats.mean) + np.asarray(stats.std) * rng.standard_normal(spec.shape)).astype(np.float32)
    draw = lambda name, shape: (  # noqa: E731
        rng.integers(0, 256, shape)
        if name in spec.images
        else np.asarray(stats.mean[name]) + np.asarray(stats.std[name]) * rng.standard_normal(shape)
    )
    return np.concatenate([np.ravel(draw(name, shape)) for name, shape in spec.shapes.items()]).astype(np.float32)


def compare_with_agent(
    policy: Policy, acting: ActFunction, expected: Sequence[Sample], tolerance: float = TOLERANCE
) -> Agreement:
    """Compare the exported policy's actions with the agent's.

    Raises:
        Failed: one is further than `tolerance` from the agent's, and is no tie.
    """
    largest, ties = 0.0, 0
    for sample in expected:
        action = acting(sample.obs, sample.noise)
        distance = float(np.max(np.abs(action - sample.action)))
        if distance <= tolerance:
            largest = max(largest, distance)
        elif policy.critic is not None and _equally_good(policy, sample, action):
            ties += 1
        else:
            raise Failed(
                f"an exported action is {distance:.2g} from the agent's, more than {tolerance:g}, nothing was written: "
                "give --tolerance if that is near enough; if it cannot be rounding, please report it"
            )
    return Agreement(largest, ties, len(expected))


def _equally_good(policy: Policy, sample: Sample, action: np.ndarray) -> bool:
    obs = policy.obs_spec.of_numbers(sample.obs)
    values = [float(policy.rank(obs, act, jax.random.clone(sample.key))) for act in (action, sample.action)]
    return abs(values[0] - values[1]) <= TOLERANCE * max(1.0, *map(abs, values))


def milliseconds(act: Callable[[Sample], object], expected: Sequence[Sample], calls: int = CALLS) -> float:
    """Measure the median time of sequential actions in milliseconds, after ten that are not counted."""
    times = []
    for number in range(-10, calls):
        sample = expected[number % len(expected)]
        begin = time.perf_counter()
        act(sample)
        times.append(time.perf_counter() - begin)
    return 1000 * float(np.median(times[10:]))
