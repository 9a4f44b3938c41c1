"""The command `floq eval`."""

from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from floq.cli.flags import parse_options
from floq.utils.schema import NO_ARGUMENTS


@dataclass(frozen=True)
class Eval:
    """Evaluate a checkpoint of a run. The same command gives the same number, whatever the number of workers."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    dataset: str | None = None
    """Where the data of the run lie now, if they were moved."""
    eval_episodes: int = 50
    """Episodes."""
    seed: int | None = None
    """Episodes are drawn with this seed; by default the run's, which repeats the evaluation of its training."""
    success_timing: Literal["post", "pre"] | None = None
    """post or pre; by default as in training."""
    workers: int | None = None
    """Processes; by default one per core."""
    num_candidates: int | None = None
    """Actions that the policy samples, of which it takes the one with the highest Q; by default as in training."""
    rank_by: Literal["distilled", "one_pass", "flow"] | None = None
    """The value of a flow critic by which it chooses: the distilled critic, the flow, or its one-pass read-out; by
    default as in training."""
    acting_flow_steps: int | None = None
    """Integration steps (K) of the flow, where it ranks; by default as in training."""
    eval_temperature: float = 1.0
    """Scale of the noise from which the actor makes its samples; 0 leaves none. It changes nothing for an actor that
    takes its mode: the deterministic one, and the Gaussian with one candidate."""
    env_name: str | None = None
    """Another environment to evaluate in, with the same observations and actions; or its own, if that is a module:Id
    whose module may be imported."""
    env_kwargs: dict[str, Any] = NO_ARGUMENTS
    """Arguments of that other environment's constructor."""
    score_range: tuple[float, float] | None = None
    """LOW HIGH: returns that stand for the scores 0 and 100; by default as in training."""


def eval_command(argv: list[str]) -> None:
    """Run `floq eval`."""
    options = parse_options(Eval, argv, "floq eval")
    from floq.analysis.evaluate_run import evaluate_run
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    evaluate_run(**vars(options))
