"""Off-policy evaluation: how good are policies, judged by data alone? Fitted Q evaluation (Le et al. 2019, arXiv
1903.08738) with any critic: TD learning whose targets take the actions of a policy that does not change.

An evaluation is a fleet of runs, one for each policy and seed, in one folder `ope_<time>` with `ope.json` and
`ope.csv`. The actions of each policy in all states are drawn once, so an update has no actor, and policies of any shape
share one program. Each seed learns from its own bootstrap resample of the episodes, the same one for every policy.
"""

import dataclasses
import glob
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from floq.agent.agent import Agent
from floq.agent.config import AgentConfig, settings_type
from floq.agent.policy import Policy
from floq.analysis.off_policy import OffPolicyEvaluation
from floq.analysis.statistics import MIN_RESAMPLES
from floq.critics import CRITICS
from floq.data.dataset import Dataset
from floq.evaluation.fixed_policy import FixedPolicy
from floq.export.exported import Policy as ExportedPolicy
from floq.runs import checkpoint, run_data
from floq.runs.config import Config, configure
from floq.runs.loggers import check_loggers
from floq.runs.run import Run, write_json
from floq.training.fitted_q import DEFAULT, ONE_BY_ONE, RESULT, Evaluation, Request, updates_of
from floq.training.loop import Found
from floq.training.resume import cut_back, newest_common
from floq.training.train import lock_runs, run_records
from floq.utils.errors import UserError
from floq.utils.files import check_writable, user_path
from floq.utils.machine import use_all_cores
from floq.utils.progress import Display
from floq.utils.schema import from_table, hints_of
from floq.utils.untrusted import read_json

FIXED: dict[str, Any] = {"n_step": 1, "q_agg": "mean", "rho": 0.0}
FIXED |= {"actor_climbs": "one_pass", "acting_flow_steps": None, "actor_noise_samples": 1}
"""Settings that every evaluation has, where its critic has them: nothing climbs Q, so no critic is distilled for it."""


def ope(
    policies: Any = (),
    data: Dataset | None = None,
    *,
    steps: Sequence[int] | Literal["all"] | None = None,
    critic: str | None = None,
    seeds: Sequence[int] = range(MIN_RESAMPLES),
    discount: float | None = None,
    dataset: str | None = None,
    starts: Literal["data", "env"] = "data",
    truth: int = 0,
    show: bool = True,
    **settings: Any,
) -> OffPolicyEvaluation:
    """Estimate how good policies are from data, without a simulator; print the result and leave a folder with it.

    Args:
        policies: one or several, or a mapping from names to policies. A policy is a run or its folder, an agent, what
            `floq.exported.load_policy` returns, or a function `(observations, rng) -> actions` of NumPy arrays with a
            row for each state. The policy of a run or an agent is its `act`.
        data: evaluate on this instead of reading a dataset; a part is held out for the TD error.
        steps: checkpoints of the runs, or "all"; by default the newest.
        critic: that learns the values; by default that of the first run.
        seeds: each learns from its own bootstrap resample of the episodes. Intervals need at least five.
        discount: of the values; by default that of the runs.
        dataset: evaluate on this; by default on the data of the first run.
        starts: where values are meant: where the episodes of the data start, or those of the environment.
        truth: also measure the return from this many starts of the environment.
        show: print progress and the result.
        **settings: of the runs (`offline_steps`, `save_dir`, `eval_interval`, ...) and of their agents, by flat names;
            without a run also the `env_name`. By default those of the first run, and 8 / (tau (1 - discount)) updates.

    Raises:
        UserError: there is no such run or checkpoint, the runs differ in what cannot be compared, the data is missing,
            or a policy does not fit it.
        Failed: an environment failed, or a run diverged.
        Interrupted: a signal ended the evaluation; `resume_ope` continues it.
    """
    started, display = time.monotonic(), Display(show)
    wanted = [(name, policy, step) for name, policy in _named(policies) for step in _steps_of(policy, steps)]
    if not wanted:
        raise UserError("which policies? Give the folders of runs: floq ope RUN_DIR")
    if not seeds:
        raise UserError("seeds: give at least one")
    use_all_cores(len(wanted) * len(seeds))  # now: reading a checkpoint starts JAX
    names = [name if step is None else f"{name}_{step}" for name, _, step in wanted]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"two policies are called {twice[0]}: give each once, or names from Python")
    origins = [_run_of(policy) for _, policy, _ in wanted]
    own_data = dataset is None and data is None
    check_comparable([run for run in origins if run], discount, own_data)
    request = Request(
        policies=tuple(names),
        runs=tuple(run and str(run.folder.resolve()) for run in origins),
        steps=tuple(step for *_, step in wanted),
        seeds=tuple(seeds),
        starts="env" if truth else starts,
        truth=truth,
        own_data=own_data,
    )
    origin = next((run for run in origins if run), None)
    config = evaluation_config(origin, critic, discount, dataset, settings)
    if request.starts == "env" and config.env_name is None:
        raise UserError("--starts=env and --truth need an environment, and the run has none: leave them out")
    folder = user_path(config.save_dir) / config.project_name
    check_writable(folder, "choose another --save_dir")
    loaded = [_load(name, policy, step) for name, (_, policy, step) in zip(names, wanted, strict=True)]
    evaluation = Evaluation.prepare(request, loaded, config, origin, data, display)
    configs = [dataclasses.replace(config, run_group=name, seed=seed) for name in names for seed in seeds]
    records = run_records(evaluation.splits)
    runs = [Run.create(each, records) for each in configs]
    write_json(folder / RESULT, {"request": dataclasses.asdict(request)})
    with lock_runs(runs):
        return evaluation.complete(runs, [Found()] * len(runs), folder, display, started)


def resume_ope(
    folder: Path | str, policies: Mapping[str, Any] | None = None, data: Dataset | None = None, *, show: bool = True
) -> OffPolicyEvaluation:
    """Continue a stopped evaluation, exactly as if it had not been; of a finished one, show the result again.

    Args:
        folder: that of the evaluation, which holds `ope.json`.
        policies: those that came from Python, by name.
        data: that it was given from Python, if it was.
        show: print progress and the result.

    Raises:
        UserError: the folder is none of an evaluation, or the policies or the data are not those it began with.
        Failed, Interrupted: see `ope`.
    """
    started, display, folder = time.monotonic(), Display(show), user_path(folder)
    request = _read_request(folder)
    use_all_cores(len(request.policies) * len(request.seeds))
    runs = [_find_run(folder, name, seed) for name in request.policies for seed in request.seeds]
    sources = {
        name: run or (policies or {}).get(name) for name, run in zip(request.policies, request.runs, strict=True)
    }
    if lacking := [name for name, source in sources.items() if source is None]:
        raise UserError(f"the policy {lacking[0]} came from Python: give it again, as in resume_ope(folder, policies)")
    run_data.check_in_memory_data(runs[0], data)
    loaded = [_load(name, sources[name], step) for name, step in zip(request.policies, request.steps, strict=True)]
    origin = next((run for run in map(_run_of, sources.values()) if run), None)
    evaluation = Evaluation.prepare(request, loaded, runs[0].config, origin, data, display)
    run_data.check_fingerprint(runs[0], evaluation.splits)
    with lock_runs(runs):
        found = newest_common(runs, display.note)
        if not all(run.is_finished for run in runs):
            cut_back(runs, [run_records(evaluation.splits)] * len(runs), found[0].step)
            display.note(f"resume  from step {found[0].step}")
        return evaluation.complete(runs, found, folder, display, started)


# --- Policies ---


def _named(policies: Any) -> Iterator[tuple[str, Any]]:
    """Go through policies and their names; a run's is that of its folder."""
    if isinstance(policies, Mapping):
        yield from policies.items()
        return
    for number, policy in enumerate(policies if isinstance(policies, list | tuple) else [policies]):
        run = _run_of(policy)
        yield run.folder.resolve().name if run else f"policy{number}", policy


def _run_of(policy: Any) -> Run | None:
    """Return the run that a policy is given as, None if it is given otherwise."""
    if isinstance(policy, str | Path):
        return Run.open(policy)
    return policy if isinstance(policy, Run) else None


def _steps_of(policy: Any, steps: Sequence[int] | Literal["all"] | None) -> Sequence[int | None]:
    """Return which checkpoints of a run are evaluated; [None] for a policy that is no run's."""
    if (run := _run_of(policy)) is None:
        return [None]
    if not run.config.agent.learns_policy:
        raise UserError(f"{run.folder} is part of an evaluation and has no policy: give the run whose policy it is")
    known = checkpoint.steps(run.folder / "checkpoints")
    if not known:
        raise UserError(f"{run.folder} holds no complete checkpoint: train it further first")
    if isinstance(steps, str) or steps is None:
        return known if steps else known[-1:]
    if missing := [step for step in steps if step not in known]:
        listed = " ".join(map(str, known))
        raise UserError(f"--steps {missing[0]}: {run.folder} has no checkpoint of this step; it has {listed}")
    return steps


def _load(name: str, policy: Any, step: int | None) -> FixedPolicy:
    """Load a policy. Raises UserError if it is none."""
    if run := _run_of(policy):
        agent = checkpoint.load(run.folder / "checkpoints", step).agent
        return FixedPolicy(name, agent.policy, agent)
    if isinstance(policy, Agent):
        return FixedPolicy(name, policy.policy, policy)
    if isinstance(policy, ExportedPolicy):
        return FixedPolicy(name, lambda states, rng: np.stack([policy.act(one, rng) for one in _each(states)]))
    if isinstance(policy, Policy) or callable(policy):
        return FixedPolicy(name, policy)
    raise UserError(f"the policy {name} is of type {type(policy).__name__}: give a run, an agent or a function")


def _each(states: Any) -> Iterator[Any]:
    """Yield the observations, each an array, or a mapping of its parts."""
    if not isinstance(states, Mapping):
        yield from states
        return
    for number in range(len(next(iter(states.values())))):
        yield {name: x[number] for name, x in states.items()}


# --- Settings ---


def check_comparable(runs: Sequence[Run], discount: float | None, own_data: bool) -> None:
    """Raise UserError if runs differ in what the values of their policies, or the shapes of these, depend on."""
    names = ["action_chunk", "reward_scale", "frame_stack", *(["discount"] if discount is None else [])]
    first = runs[0] if runs else None
    for run in runs[1:]:
        assert first is not None
        for name in names:
            settings = ({**one.config.agent.flat(), "frame_stack": one.config.frame_stack} for one in (first, run))
            here, there = (found[name] for found in settings)
            if here != there:
                remedy = "give --discount" if name == "discount" else ONE_BY_ONE
                raise UserError(f"{name} is {here} in {first.folder} and {there} in {run.folder}: {remedy}")
        if own_data and len({str(one.records["data"].get("fingerprint")) for one in (first, run)}) > 1:
            raise UserError(
                f"{first.folder} and {run.folder} were trained on different data: choose by --dataset, or {ONE_BY_ONE}"
            )


def evaluation_config(
    run: Run | None, critic: str | None, discount: float | None, dataset: str | None, settings: Mapping[str, Any]
) -> Config:
    """Return the configuration of an evaluation's runs: that of the run whose policy is evaluated, or the defaults,
    with these settings instead."""
    of_run = {name: value for name, value in settings.items() if name in hints_of(Config)}
    base = run.config if run else configure(of_run.get("env_name"), critic=critic, dataset=dataset or "data")
    of_policy = {name: getattr(base.agent, name) for name in ("action_chunk", "reward_scale") if run}
    for name, value in (FIXED | of_policy).items():
        if settings.get(name, value) != value:
            raise UserError(f"--agent.{name}={settings[name]}: this evaluation has {value}, leave it out")
    of_run |= {} if dataset is None else {"dataset": dataset}
    name = critic or base.agent.critic_name
    known = hints_of(settings_type(name, "fixed"))
    flat = {key: value for key, value in base.agent.flat().items() if key in known}
    if getattr(CRITICS[name][0], "sigma", None) != getattr(type(base.agent.critic), "sigma", None):  # its default
        flat.pop("sigma", None)  # floq smooths its input with it, the categorical critic its target
    flat |= {key: value for key, value in settings.items() if key not in of_run}
    flat |= {"discount": discount} if discount is not None else {}
    agent = AgentConfig.from_flat(name, "fixed", flat | {key: value for key, value in FIXED.items() if key in known})
    steps = of_run.get("offline_steps") or updates_of(agent, DEFAULT)
    own = {"offline_steps": steps, "log_interval": max(1, steps // 30), "eval_interval": max(1, steps // 10)}
    own |= {"save_interval": max(1, steps // 4), "project_name": time.strftime("ope_%Y%m%d_%H%M%S")}
    own |= {"online_steps": 0, "balanced_sampling": 0, "offline_share": None, "offline_share_steps": None}
    own |= {"restore_path": None, "restore_epoch": None, "video_episodes": 0}
    config = dataclasses.replace(base, **(own | of_run), agent=agent)
    check_loggers(config)
    return run_data.resolve_data_paths(config)


# --- The folder ---


def _read_request(folder: Path) -> Request:
    try:
        return from_table(Request, read_json(folder / RESULT)["request"], str(folder / RESULT))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not the folder of an evaluation: {RESULT} cannot be read") from error


def _find_run(folder: Path, name: str, seed: int) -> Run:
    """Return the run of a policy and a seed in the folder of an evaluation."""
    found = sorted(folder.glob(f"{glob.escape(name)}/*/sd{seed:03d}_*"))
    if len(found) != 1:
        raise UserError(f"{folder / name} has {len(found)} runs with seed {seed} instead of one: start it again")
    return Run.open(found[0])
