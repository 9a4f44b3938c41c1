"""`floq eval`: evaluate a checkpoint of a run again."""

import dataclasses
from typing import Any

from floq import run_data
from floq.data.transitions import Dataset
from floq.evaluate import Evaluation, Evaluator, on_cpu
from floq.held_out import HeldOut, HeldOutEvaluator
from floq.progress import Display
from floq.results import described
from floq.run import Run


def evaluate_run(
    run_dir: str,
    step: int | None = None,
    eval_episodes: int = 50,
    seed: int | None = None,
    success_timing: str | None = None,
    workers: int | None = None,
    data: Dataset | None = None,
    show: bool = True,
) -> Evaluation | HeldOut:
    """Evaluate a checkpoint of a run again, and print the result.

    With the run's own seed and number of episodes it repeats the evaluation that training made at that step. Without
    an environment it looks at the held-out data again, which must be what it was; `data` is that data if the run was
    given it from Python.

    Raises:
        UserError: there is no such run or checkpoint, the data is another, or an option is out of range.
    """
    run = Run.open(run_dir)
    seed = run.config.seed if seed is None else seed
    changes: dict[str, Any] = {"eval_episodes": eval_episodes, "seed": seed}
    config = dataclasses.replace(run.config, **changes, success_timing=success_timing or run.config.success_timing)
    agent, display = run.load_agent(step), Display(show)
    if config.env_name is None:
        run_data.check_given(run, data)
        splits = run_data.load_data(config, display, data)
        run_data.check_same(run, splits)
        evaluation = HeldOutEvaluator(splits.validation)(agent, seed, int(agent.step))
    else:
        with (
            Evaluator(
                config.env_name, config.success_timing, eval_episodes, workers, config.agent.action_chunk
            ) as evaluator,
            display.bar("evaluate", eval_episodes) as update,
        ):
            policy = on_cpu(agent.policy)
            evaluation = evaluator(policy, seed, int(agent.step), on_progress=lambda done, _: update(done))
    assert evaluation is not None
    rows = described(config, evaluation.summary())
    display.table(f"{config.task}, checkpoint of step {evaluation.step}, seed {seed}", rows)
    return evaluation
