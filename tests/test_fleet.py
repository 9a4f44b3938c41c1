"""A fleet equals its runs one by one, however it is laid out; and evaluations go on beside it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from conftest import MAZE_DATA, TINY, undrawn
from helpers import ACTOR, FLOQ, SCALAR, agent_config

import floq
from floq import cli
from floq.agent.agent import Agent
from floq.agent.state import Keys
from floq.data.dataset import Dataset
from floq.envs.environments import EnvFactory
from floq.envs.vector import EnvSlots
from floq.evaluation import rollouts
from floq.evaluation.rollouts import RESTARTS, BackgroundEvaluator, EvaluationRequest, Evaluator
from floq.runs.config import Config, configure
from floq.runs.run import Run, make_agent
from floq.training.fleet import Fleet, FleetData, Layout, sample_batch
from floq.training.train import fleets, train_fleet
from floq.utils.errors import Failed, Interrupted, UserError

ROWS = 60
TASK = MAZE_DATA.replace("-v0", "-singletask-v0")


@pytest.fixture(scope="module")
def tasks():
    """Two tasks over the same trajectories, with other rewards and masks."""
    rng = np.random.default_rng(0)
    ends = np.arange(1, ROWS + 1) % 20 == 0
    first = Dataset.from_rows(
        rng.normal(5.0, 2.0, (ROWS, 3)), rng.uniform(-1, 1, (ROWS, 2)), -np.ones(ROWS), np.ones(ROWS), ends
    )
    return [first, first.relabelled(rng.uniform(-3, 0, ROWS), rng.integers(0, 2, ROWS))]


def loggers(critic, **common):
    """Three runs that differ in seed, task and traced settings."""
    for seed, task, settings in ((0, 0, {}), (1, 1, {"discount": 0.9}), (1, 0, {"alpha": 3.0, "lr": 1e-3})):
        actor = dataclasses.replace(ACTOR, **{k: v for k, v in settings.items() if k == "alpha"})
        shared = {k: v for k, v in settings.items() if k != "alpha"}
        yield task, Config(agent=agent_config(critic, actor, n_step=2, **shared, **common), seed=seed)


def trained(tasks, chosen, steps, layout=None):
    data = FleetData.of(tasks)
    agents = [make_agent(config, tasks[task]) for task, config in chosen]
    keys = [Keys.of(config.seed) for _, config in chosen]
    batches, validations = [k.batches for k in keys], [k.validation for k in keys]
    fleet = Fleet(agents, [task for task, _ in chosen], data, data, batches, validations, layout)
    infos = [fleet.advance(n) for n in steps][-1]
    return fleet, infos


@pytest.mark.parametrize(
    ("critic", "batched"),
    [
        pytest.param(FLOQ, True, id="floq vmapped", marks=pytest.mark.slow),
        pytest.param(SCALAR, True, id="scalar vmapped"),
        pytest.param(SCALAR, False, id="scalar mapped", marks=pytest.mark.slow),
    ],
)
def test_a_fleet_equals_its_runs_one_by_one(tasks, critic, batched):
    runs = list(loggers(critic))
    layout = Layout((jax.devices()[0],), batched)
    together, infos = trained(tasks, runs, [1, 9], layout)
    held_out = together.validate()
    assert together.step == 10
    for number, run in enumerate(runs):
        alone, (info,) = trained(tasks, [run], [10])
        one, other = alone.agent(0), together.agent(number)
        np.testing.assert_array_equal(jax.random.key_data(one.key), jax.random.key_data(other.key))
        for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert infos[number] == pytest.approx(info, rel=1e-3, abs=1e-4)
        assert held_out[number] == pytest.approx(alone.validate()[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("settings", [{}, {"action_chunk": 3}], ids=["plain", "chunks"])
def test_a_fleet_draws_the_batches_of_its_runs(tasks, settings):
    """Bit for bit: keys are folded by the step, whatever else is in the program. Chunks start in other rows of each
    task, since they may where it terminates."""
    runs = list(loggers(SCALAR, **settings))
    tasks = [task.for_chunks(settings.get("action_chunk", 1)) for task in tasks]
    assert (len(tasks[0]) == len(tasks[1])) == (not settings)
    agents = [make_agent(config, tasks[task]) for task, config in runs]
    data = FleetData.of(tasks)
    numbers = jax.numpy.array([task for task, _ in runs])
    stacked = jax.tree.map(lambda *x: jax.numpy.stack(x), *agents)
    keys = jax.numpy.stack([Keys.of(config.seed).batches for _, config in runs])
    drawn = jax.jit(lambda agent, data, task, key: sample_batch(agent, data.task(task), key))
    together = jax.vmap(drawn, (0, None, 0, 0))(stacked, data, numbers, keys)
    for number, ((task, config), agent) in enumerate(zip(runs, agents, strict=True)):
        alone = jax.jit(sample_batch)(agent, tasks[task], Keys.of(config.seed).batches)
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][number], values)


@pytest.mark.slow
def test_several_devices_an_idle_place_and_going_on_in_another_process(dataset_dir, tmp_path):
    """Three runs over two devices: the end is the same, bit by bit, whether the fleet was stopped or not."""
    code = """
import sys, jax
from floq import cli
from floq.analysis import pictures
pictures.draw = lambda *_: None
for words in {commands}:
    assert cli.run(["train", *words]) == 0
assert len(jax.devices()) == 2
"""
    flags = [*TINY, "--agent=fql", f"--dataset_dir={dataset_dir}", "--seeds", "0", "1", "2", "--eval_episodes=1"]

    def in_a_process(*commands):
        script = code.format(commands=[list(words) for words in commands])
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr

    in_a_process(
        [*flags, f"--save_dir={tmp_path}/whole"], [*flags, f"--save_dir={tmp_path}/parts", "--offline_steps=3"]
    )
    whole, parts = (sorted(tmp_path.glob(f"{name}/floq/debug/*/*")) for name in ("whole", "parts"))
    in_a_process(["--resume", *map(str, parts), "--offline_steps=6"])
    for one, other in zip(whole, parts, strict=True):
        states = [run / "checkpoints" / "6" / "state.safetensors" for run in (one, other)]
        assert states[0].read_bytes() == states[1].read_bytes()
    assert len({(run / "checkpoints" / "6" / "state.safetensors").read_bytes() for run in whole}) == 3


@pytest.mark.slow
def test_a_run_is_read_and_replaced_on_several_devices():
    """Three runs over two devices; the third goes on as the first, as after a rewind."""
    code = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
from floq.runs.config import configure
from floq.training.bench import fleet_of, synthetic_data

config = configure("pointmaze-medium-navigate-singletask-v0", "fql", value_hidden_dims=(8,), actor_hidden_dims=(8,))
fleet = fleet_of(config, 3, synthetic_data(2, 2))
weights = lambda run: [np.asarray(x) for x in jax.tree.leaves(fleet.agent(run).params)]
before = [weights(run) for run in range(3)]
fleet.replace(2, fleet.agent(0))
after = [weights(run) for run in range(3)]
same = lambda one, other: all(np.array_equal(x, y) for x, y in zip(one, other))
print(len(jax.devices()), same(after[2], before[0]), same(after[1], before[1]), same(before[2], before[0]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "2 True True False\n", done.stderr


def test_what_one_program_can_train_together():
    base = configure(TASK)
    agent = base.agent
    other_task = dataclasses.replace(base, env_name=TASK.replace("-v0", "-task3-v0"))
    traced = dataclasses.replace(base, agent=dataclasses.replace(agent, lr=1.0, critic=agent.critic))
    larger = dataclasses.replace(base, agent=dataclasses.replace(agent, batch_size=7))
    elsewhere = configure("pointmaze-large-navigate-singletask-v0")
    seeded = dataclasses.replace(base, seed=4)
    assert fleets([base, larger, other_task, traced, elsewhere, seeded]) == [[0, 2, 3, 5], [1], [4]]


# --- as a user types it ---


@pytest.fixture(scope="module")
def fleet_dirs(dataset_dir, tmp_path_factory):
    """A fleet of four: two tasks, two alphas; and the run among them that has been trained alone as well."""
    save_dir = tmp_path_factory.mktemp("fleet")
    names = [TASK, TASK.replace("-v0", "-task3-v0")]
    flags = [*TINY, "--agent=fql", f"--dataset_dir={dataset_dir}", "--seed=3"]
    with undrawn():
        together = ["--env_name", *names, "--agent.alpha", "3", "30", f"--save_dir={save_dir}/together"]
        assert cli.run(["train", *flags, *together]) == 0
        assert (
            cli.run(["train", *flags, f"--env_name={names[1]}", "--agent.alpha=30", f"--save_dir={save_dir}/alone"])
            == 0
        )
    return save_dir


def test_every_run_of_a_fleet_has_its_own_folder_as_if_alone(fleet_dirs):
    folders = sorted((fleet_dirs / "together").glob("floq/debug/*/*"))
    assert len(folders) == 4
    runs = [floq.Run.open(folder) for folder in folders]
    chosen = {(run.config.env_name, run.config.agent.flat()["alpha"]) for run in runs}
    assert len(chosen) == 4
    (alone,) = (floq.Run.open(folder) for folder in (fleet_dirs / "alone").glob("floq/debug/*/*"))
    (twin,) = (run for run in runs if run.config.agent == alone.config.agent
               and run.config.env_name == alone.config.env_name)  # fmt: skip
    assert twin.summary["runs_in_fleet"] == 4
    assert twin.evaluations()["step"] == alone.evaluations()["step"] == [1, 4, 6]
    for name in ("evaluation/episode.return", "evaluation/episode.length", "evaluation/success"):
        assert twin.evaluations()[name] == pytest.approx(alone.evaluations()[name], rel=0.2, abs=1.0)
    for a, b in zip(jax.tree.leaves(twin.load_agent().params), jax.tree.leaves(alone.load_agent().params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_fleet_goes_on_as_a_fleet_and_each_run_alone(fleet_dirs, capsys, no_pictures):
    folders = sorted(str(folder) for folder in (fleet_dirs / "together").glob("floq/debug/*/*"))
    assert cli.run(["train", "--resume", *folders, "--offline_steps=8"]) == 0
    printed = capsys.readouterr().out
    assert "resume  from step 6" in printed
    for label in ("4 runs of", "alpha=3, pointmaze-medium-navigate ", "alpha=30, pointmaze-medium-navigate-task3"):
        assert label in printed
    assert [floq.Run.open(folder).summary["steps"] for folder in folders] == [8] * 4
    shutil.rmtree(f"{folders[1]}/checkpoints/8")  # as if killed while the fleet was saved: all have step 6
    assert cli.run(["train", "--resume", *folders, folders[0], "--offline_steps=8"]) == 0
    assert "resume  from step 6" in capsys.readouterr().out
    assert cli.run(["train", f"--resume={folders[0]}", "--offline_steps=14"]) == 0
    assert floq.Run.open(folders[0]).summary["runs_in_fleet"] == 1
    capsys.readouterr()
    assert cli.run(["train", "--resume", *folders, "--offline_steps=20"]) == 2
    assert "these runs stopped at different steps (14, 8, 8, 8): resume them one by one" in capsys.readouterr().err


def test_a_dry_run_lists_what_differs(capsys):
    flags = ["--seeds", "0", "1", "--agent.alpha", "1", "2", "--agent.critic_flow_steps=4"]
    assert cli.run(["train", "--dry_run", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["seeds"] == [0, 1, 0, 1]
    assert shown["agent"]["alpha"] == [1.0, 1.0, 2.0, 2.0]
    assert shown["agent"]["critic_flow_steps"] == 4
    assert shown["agent"]["value_hidden_dims"] == [64, 64, 64]
    flags = ["--agent=fql", "--agent.flow_steps", "5", "10", "--agent.alpha=3,3.0", "--agent.lr", "1", "--agent.lr=2"]
    assert cli.run(["train", "--dry_run", *flags]) == 0
    shown = json.loads(capsys.readouterr().out)["agent"]
    assert (shown["actor_flow_steps"], shown["alpha"], shown["lr"]) == ([5, 10], 3.0, 2.0)


# --- evaluation beside the training ---


@pytest.fixture(scope="module")
def policy():
    return floq.Agent.init(jax.random.key(0), 3, 1, agent_config(SCALAR)).policy


def returns(evaluation):
    return [episode.episode_return for episode in evaluation.episodes]


def test_evaluations_in_the_background_are_those_in_the_foreground(policy):
    with Evaluator(EnvFactory("Pendulum-v1"), 3, 2) as evaluate:
        wanted = [evaluate(policy, seed, step) for seed, step in ((5, 1), (6, 1), (5, 2))]
        with BackgroundEvaluator(evaluate, [5, 6], ["Pendulum-v1"] * 2) as background:
            background.submit([EvaluationRequest(run, 1, policy, 1.0) for run in (0, 1)])
            background.submit([EvaluationRequest(0, 2, policy, 2.0)])
            assert [(r.run, r.step) for r in background.pending] == [(0, 1), (1, 1), (0, 2)]
            found = []
            while background.pending:
                found += list(background.finished(wait=1.0))
        assert [(request.run, request.step) for request, _ in found] == [(0, 1), (1, 1), (0, 2)]
        assert [returns(evaluation) for _, evaluation in found] == [returns(evaluation) for evaluation in wanted]


def test_what_an_evaluation_raises_reaches_the_training(policy):
    with (
        Evaluator(EnvFactory("Pendulum-v1"), 2, 1) as evaluate,
        BackgroundEvaluator(evaluate, [0], ["Nothing-v0"]) as background,
    ):
        background.submit([EvaluationRequest(0, 1, policy, 0.0)])
        with pytest.raises(UserError, match="unknown environment 'Nothing-v0'"):
            list(background.finished(wait=60.0))


@pytest.mark.processes
def test_an_environment_that_hangs_keeps_nobody_from_leaving(monkeypatch):
    monkeypatch.setattr(rollouts, "STOP_TIMEOUT_S", 0.5)
    policy = Agent.init(jax.random.key(0), 1, 1, agent_config(SCALAR, ACTOR)).policy
    name = "probe_envs:Fragile-hangs-v0"
    with Evaluator(EnvFactory(name), 1, 1) as evaluate:
        with BackgroundEvaluator(evaluate, [0], [name]) as beside:
            beside.submit(
                [EvaluationRequest(0, step, policy, 0.0) for step in (1, 2, 3)]
            )  # two steps of the environment each
            while len(beside.pending) > 1:
                list(beside.finished(wait=1.0))
            time.sleep(0.5)
            left = time.monotonic()
        assert time.monotonic() - left < 10
        assert [request.step for request in beside.pending] == [3]


@pytest.mark.processes
def test_a_worker_that_dies_is_replaced_and_its_episodes_begin_again(policy):
    """Within an episode that is not its slot's first, before the start, and again and again."""
    with Evaluator(EnvFactory("Pendulum-v1"), 13, 2) as evaluate:
        wanted = returns(evaluate(policy, 0, 1))
        calls = []

        def kill():
            os.kill(evaluate._workers._processes[0].pid, signal.SIGKILL)
            evaluate._workers._processes[0].join()

        def kill_late():
            calls.append(0)
            if len(calls) == 250:  # an episode of the pendulum has 200 steps
                kill()
            return False

        assert returns(evaluate(policy, 0, 1, should_stop=kill_late)) == wanted
        assert len(calls) > 400  # the second episodes of that worker's slots began anew
        kill()
        assert returns(evaluate(policy, 0, 1)) == wanted
        restart, restarts = evaluate._workers.restart, []

        def stillborn(worker):
            restart(worker)
            restarts.append(worker)
            kill()

        evaluate._workers.restart = stillborn  # type: ignore[method-assign]
        kill()
        with pytest.raises(Failed, match="died with exit code -9"):
            evaluate(policy, 0, 1)
        assert restarts == [0] * RESTARTS


@pytest.mark.parametrize("family", ["pointmaze-medium-navigate", "cube-single-play"])
def test_one_environment_serves_all_tasks_as_fresh_ones_do(family):
    names = [f"{family}-singletask{task}-v0" for task in ("", "-task1", "-task4")]
    fresh = {name: EnvSlots(EnvFactory(name, "post"), [(0, 0)], 1).start([(name, (0, 1))], 1) for name in names}
    assert len({obs.tobytes() for obs in fresh.values()}) > 1
    slots = EnvSlots(EnvFactory(names[0], "post"), [(0, 0)], 1)
    env = slots._envs[0, 0]
    for name in (names[1], names[2], names[0], names[1]):
        np.testing.assert_array_equal(slots.start([(name, (0, 1))], 1), fresh[name])
        assert slots._envs[0, 0] is env


def test_a_program_that_fails_does_not_keep_others_from_being_trained(monkeypatch, tmp_path, capsys):
    own = {"env_name": "Pendulum-v1", "dataset": "nowhere.npz", "save_dir": str(tmp_path)}
    configs = [Config(**own, agent=agent_config(SCALAR, ACTOR, batch_size=size)) for size in (8, 16, 32)]
    begun = []

    def train_one(group, *_):
        begun.append(group[0].agent.batch_size)
        if begun[-1] == 8:
            raise Failed("a joint broke")
        if begun[-1] == 32:
            raise Interrupted("stopped", 15)
        return [Run(tmp_path, config) for config in group]

    monkeypatch.setattr(sys.modules["floq.training.train"], "_train_group", train_one)
    with pytest.raises(Failed, match=r"^a joint broke$"):
        train_fleet(configs[:2])
    assert begun == [8, 16]
    assert "failed  a joint broke; the other programs go on" in capsys.readouterr().out
    with pytest.raises(Interrupted, match=r"^stopped; 1 runs of other programs were not begun; a joint broke$"):
        train_fleet([configs[0], configs[2], configs[1]], show=False)


def test_two_runs_of_the_same_name_are_refused():
    config = configure(TASK)
    with pytest.raises(UserError, match="two of these runs have the same settings and the same seed"):
        train_fleet([config, config])
