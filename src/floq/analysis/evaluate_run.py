"""`floq eval`: evaluate a checkpoint of a run again."""

import dataclasses
from typing import Any

from floq.analysis.metrics import with_score
from floq.analysis.results import summary_rows
from floq.data.dataset import Dataset
from floq.envs.environments import probe
from floq.envs.ogbench import is_dataset
from floq.envs.spaces import check_same_parts
from floq.evaluation.held_out import HeldOutEvaluation, HeldOutEvaluator
from floq.evaluation.rollouts import Evaluation, Evaluator, on_cpu
from floq.runs import checkpoint, run_data
from floq.runs.config import Config
from floq.runs.run import Run
from floq.utils.errors import UserError
from floq.utils.machine import device
from floq.utils.obs_spec import ObsSpec
from floq.utils.progress import Display
from floq.utils.schema import NO_ARGUMENTS, NonNegativeFloat, convert
from floq.utils.untrusted import consent


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
    eval_temperature: float = 1.0,
    data: Dataset | None = None,
    dataset: str | None = None,
    env_name: str | None = None,
    env_kwargs: dict[str, Any] = NO_ARGUMENTS,
    score_range: tuple[float, float] | None = None,
    show: bool = True,
) -> Evaluation | HeldOutEvaluation:
    """Evaluate a checkpoint of a run again, and print the result.

    With the run's own seed and number of episodes it repeats the evaluation that training made at that step. Without
    an environment it evaluates on the held-out data, which must be unchanged; `data` is that data if the run was given
    it from Python, and `dataset` where it lies now if it was moved. The policy takes the best of `num_candidates`
    samples of its actor, ranked by the value of a flow critic that `rank_by` and `acting_flow_steps` name; each is by
    default as in training. `eval_temperature` scales the noise of these samples. `env_name` is another environment to
    evaluate in, made with `env_kwargs`, also for a run without one; `score_range` are the returns that stand for the
    scores 0 and 100.

    Raises:
        UserError: there is no such run or checkpoint, the data differs, an option is out of range or does not apply to
            this policy, or the other environment has other observations or actions.
        Failed: an environment raised, or hangs repeatedly.
    """
    consent(env_name or "")
    run, display = Run.open(run_dir, makes_env=env_name is None), Display(show)
    elsewhere = env_name is not None and env_name != run.config.env_name
    if env_kwargs and not elsewhere:
        raise UserError("--env_kwargs are the arguments of another environment, which --env_name names: leave them out")
    seed = run.config.seed if seed is None else seed
    changes: dict[str, Any] = {"eval_episodes": eval_episodes, "seed": seed}
    changes |= {"success_timing": success_timing} if success_timing else {}
    if elsewhere:
        changes |= {"env_name": env_name, "env_kwargs": dict(env_kwargs), "score_range": None}
    changes |= {"score_range": score_range} if score_range else {}
    config = dataclasses.replace(run.config, **changes)
    here, saved = device(), checkpoint.load(run.folder / "checkpoints", step)
    policy = saved.agent.best_of(num_candidates, rank_by, acting_flow_steps)
    if (temperature := convert("eval_temperature", eval_temperature, NonNegativeFloat)) != 1:
        policy = dataclasses.replace(policy, actor=policy.actor.at_temperature(temperature))
    display.note(f"device  {here}")
    if config.env_name is None:
        if num_candidates or rank_by or acting_flow_steps or temperature != 1:
            given = "--num_candidates, --rank_by, --acting_flow_steps and --eval_temperature"
            raise UserError(f"{given} are about acting, and without an environment nothing acts: leave them out")
        splits = run_data.load_own_data([run], display, data, dataset)[run_data.data_key(run.config)]
        evaluation = HeldOutEvaluator(splits.validation)(saved.agent, seed, saved.step)
    else:
        if dataset is not None:
            display.note(f"note    --dataset={dataset} is not read: this run is evaluated in episodes")
        if elsewhere or not is_dataset(config.env_name):
            _check_env(config, run, (saved.agent.obs_spec, saved.agent.action_dim // config.agent.action_chunk))
        with (
            Evaluator(
                config.make_env, eval_episodes, workers, config.agent.action_chunk, timeout=config.env_timeout
            ) as evaluator,
            display.bar("evaluate", eval_episodes) as update,
        ):
            evaluation = evaluator(on_cpu(policy), seed, saved.step, on_progress=update)
    assert evaluation is not None
    rows = summary_rows(config, with_score(evaluation.summary(), config.score_range))
    display.table(f"{config.task}, checkpoint of step {evaluation.step}, seed {seed}", rows)
    return evaluation


def _check_env(config: Config, run: Run, dims: tuple[ObsSpec, int]) -> None:
    """Raise UserError if the environment cannot be made, or is not one for the policy of the run."""
    env = config.make_env()
    obs_spec, action_dim = probe(env)
    own = dims[0].encoded_by(None), f"{dims[1]} numbers"
    for what, here, wanted in zip(("observation", "action"), (obs_spec, f"{action_dim} numbers"), own, strict=True):
        if here != wanted:
            raise UserError(
                f"--env_name={config.env_name}: its {what} has {here}, that of the policy in {run.folder} has "
                f"{wanted}: name an environment with the same spaces"
            )
    before = run.records["data"].get("observation_parts", ())
    check_same_parts(env.parts, before, str(config.env_name), f"the data of {run.folder}")
    env.close()
