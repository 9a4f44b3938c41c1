"""`floq eval`: evaluate a checkpoint of a run again."""

import dataclasses
from typing import Any

from floq.analysis.results import summary_rows
from floq.data.dataset import Dataset
from floq.envs.environments import probe
from floq.envs.ogbench import is_dataset
from floq.envs.spaces import check_same_parts
from floq.evaluation.held_out import HeldOutEvaluation, HeldOutEvaluator
from floq.evaluation.rollouts import Evaluation, Evaluator, on_cpu
from floq.runs import checkpoint, run_data
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.machine import device
from floq.utils.progress import Display


def evaluate_run(
    run_dir: str,
    step: int | None = None,
    eval_episodes: int = 50,
    seed: int | None = None,
    success_timing: str | None = None,
    workers: int | None = None,
    num_candidates: int | None = None,
    rank_by: Any = None,
    acting_flow_steps: int | None = None,
    data: Dataset | None = None,
    dataset: str | None = None,
    show: bool = True,
) -> Evaluation | HeldOutEvaluation:
    """Evaluate a checkpoint of a run again, and print the result.

    With the run's own seed and number of episodes it repeats the evaluation that training made at that step. Without
    an environment it evaluates on the held-out data, which must be unchanged; `data` is that data if the run was given
    it from Python, and `dataset` where it lies now if it was moved. The policy takes the best of `num_candidates`
    samples of its actor, ranked by the value of a flow critic that `rank_by` and `acting_flow_steps` name; each is by
    default as in training.

    Raises:
        UserError: there is no such run or checkpoint, the data differs, an option is out of range, or does not apply
            to this policy.
        Failed: an environment raised, or hangs repeatedly.
    """
    run, display = Run.open(run_dir), Display(show)
    seed = run.config.seed if seed is None else seed
    changes: dict[str, Any] = {"eval_episodes": eval_episodes, "seed": seed}
    config = dataclasses.replace(run.config, **changes, success_timing=success_timing or run.config.success_timing)
    here, saved = device(), checkpoint.load(run.folder / "checkpoints", step)
    policy = saved.agent.best_of(num_candidates, rank_by, acting_flow_steps)
    display.note(f"device  {here}")
    if config.env_name is None:
        if num_candidates or rank_by or acting_flow_steps:
            given = "--num_candidates, --rank_by and --acting_flow_steps"
            raise UserError(f"{given} are about acting, and without an environment nothing acts: leave them out")
        splits = run_data.load_own_data([run], display, data, dataset)[run_data.data_key(run.config)]
        evaluation = HeldOutEvaluator(splits.validation)(saved.agent, seed, saved.step)
    else:
        if dataset is not None:
            display.note(f"note    --dataset={dataset} is not read: this run is evaluated in episodes")
        if not is_dataset(config.env_name):
            probe(env := config.make_env())
            before = run.records["data"].get("observation_parts", ())
            check_same_parts(env.parts, before, config.env_name, f"the data of {run.folder}")
        with (
            Evaluator(
                config.make_env, eval_episodes, workers, config.agent.action_chunk, timeout=config.env_timeout
            ) as evaluator,
            display.bar("evaluate", eval_episodes) as update,
        ):
            evaluation = evaluator(on_cpu(policy), seed, saved.step, on_progress=update)
    assert evaluation is not None
    rows = summary_rows(config, evaluation.summary())
    display.table(f"{config.task}, checkpoint of step {evaluation.step}, seed {seed}", rows)
    return evaluation
