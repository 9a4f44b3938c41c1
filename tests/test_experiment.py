"""Experiment files: what they resolve to, and what is said about wrong ones."""

import dataclasses
from pathlib import Path

import pytest

from floq.agent.config import LearningSettings
from floq.critics import FloqConfig, ScalarConfig
from floq.sweep.experiment import read_experiment, resolve
from floq.utils.errors import UserError

MEDIUM, GIANT = (f"pointmaze-{size}-navigate-singletask-v0" for size in ("medium", "giant"))
BUDGET = f"""
tasks = ["{MEDIUM}", "{GIANT}"]
seeds = [0, 1]
data = {{ pointmaze-giant-navigate-v0 = 5 }}
[settings]
offline_steps = 7
eval_episodes = 3
"agent.lr" = 1
"agent.value_hidden_dims" = [8, 8]
"agent.num_bins" = 21
"agent.tau" = 0.1
"agent.discount" = 0.9
"agent.alpha" = 1.0
[critics.floq]
"agent.tau" = 0.2
"agent.discount" = 0.91
"agent.alpha" = 2.0
"""
FILE = """
title = "Two"
question = "Which?"
reference = "one"
[laptop]
seeds = [3]
settings = { "agent.alpha" = 4.0 }
[[groups]]
name = "one"
[[groups]]
name = "two"
agent = "fql"
settings = { "agent.batch_size" = 16, "agent.flow_steps" = 3 }
match = "flops"
match_to = "one"
[[groups]]
name = "three"
settings = { "agent.alpha" = 5.0, "agent.time_embedding" = "fourier" }
"""


@pytest.fixture
def write(tmp_path):
    """Writes an experiment and its budget, and reads them."""

    def write(file=FILE, budget=BUDGET, name="laptop", grid=False):
        (tmp_path / "budgets").mkdir(exist_ok=True)
        for known in ("laptop", "gpu"):
            (tmp_path / "budgets" / f"{known}.toml").write_text(budget)
        (tmp_path / "mine.toml").write_text(file)
        return read_experiment(tmp_path / "mine.toml", name, grid)

    return write


def test_what_is_read(write):
    experiment = write()
    assert (experiment.name, experiment.title, experiment.reference) == ("mine", "Two", "one")
    assert experiment.curves
    assert (experiment.seeds, experiment.tasks) == ((3,), (MEDIUM, GIANT))
    assert write(name="gpu").seeds == (0, 1)
    assert experiment.budget.data == {"pointmaze-giant-navigate-v0": 5}
    assert [group.name for group in experiment.groups] == ["one", "two", "three"]
    two = experiment.groups[1]
    assert (two.agent, two.match, two.match_to, two.match_by) == ("fql", "flops", "one", None)
    assert (experiment.score, two.against) == ("success", None)
    named = FILE.replace('name = "three"', 'name = "three"\nagainst = "two"')
    other = write(named.replace('reference = "one"', 'reference = "one"\nscore = "return"'))
    assert (other.score, other.groups[2].against) == ("return", "two")


def test_precedence(write):
    """Each setting of the budget is overridden one layer further up than the one before."""

    def settings(name, group, task):
        agent = resolve(experiment := write(name=name), experiment.groups[group], task).agent
        return agent.tau, agent.discount, agent.actor.alpha

    assert settings("gpu", 1, MEDIUM) == (0.1, 0.9, 1.0)  # [settings]
    assert settings("gpu", 0, MEDIUM) == (0.2, 0.91, 2.0)  # [critics.floq]
    assert settings("laptop", 0, GIANT) == (0.2, 0.91, 4.0)  # [laptop.settings]
    assert settings("laptop", 2, GIANT) == (0.2, 0.91, 5.0)  # the group


def test_a_grid_is_every_group_with_each_combination(write):
    grid = """
[grid]
seeds = [8, 9]
values = { "agent.lr" = [0.1, 0.2], "agent.tau" = [0.3, 0.4] }
settings = { offline_steps = 2 }
"""
    assert write(FILE + grid).groups == write().groups
    tried = write(FILE + grid, grid=True)
    assert (tried.name, tried.seeds, len(tried.groups)) == ("mine-grid", (8, 9), 12)
    two = [group for group in tried.groups if group.name.startswith("two")]
    assert [group.name for group in two] == [f"two, lr {lr}, tau {tau}" for lr in (0.1, 0.2) for tau in (0.3, 0.4)]
    assert {group.match_to for group in two} == {tried.reference} == {"one, lr 0.1, tau 0.3"}
    config = resolve(tried, two[2], MEDIUM)
    assert (config.agent.lr, config.agent.tau, config.offline_steps, config.agent.batch_size) == (0.2, 0.3, 2, 16)
    some = write(FILE + grid + 'names = ["one", "two"]\n', grid=True)
    assert [group.name for group in some.groups] == [group.name for group in tried.groups[:8]]
    for wrong, said in [
        ("values = {}", "values"),
        ("values = { nonsense = [1] }", "nonsense: no such setting"),
        ('values = { "agent.lr" = [0.1] }\nnames = ["onne"]', "'onne' is not a group; did you mean 'one'"),
    ]:
        with pytest.raises(UserError, match=said):
            write(FILE + f"[grid]\nseeds = [8]\n{wrong}\n", grid=True)
    with pytest.raises(UserError, match=r"no \[grid\]"):
        write(grid=True)


def test_the_family_preset_is_beneath_all(write):
    experiment = write()
    on_medium, on_giant = (resolve(experiment, experiment.groups[0], task) for task in (MEDIUM, GIANT))
    assert (on_medium.agent.n_step, on_giant.agent.n_step) == (10, 1)
    assert on_medium.offline_steps == on_giant.offline_steps == 7
    assert on_medium.eval_interval == 2_500
    assert (on_medium.project_name, on_medium.run_group) == ("sweep", "laptop")


def test_settings_that_an_agent_lacks_are_dropped_and_types_are_made_one(write):
    experiment = write()
    floq, fql = (resolve(experiment, group, MEDIUM).agent for group in experiment.groups[:2])
    assert isinstance(floq.critic, FloqConfig)
    assert floq.critic.num_bins == 21
    assert isinstance(fql.critic, ScalarConfig)
    assert "num_bins" not in fql.flat()
    assert (fql.batch_size, fql.actor.actor_flow_steps) == (16, 3)
    assert fql.critic.value_hidden_dims == (8, 8)
    assert isinstance(fql.lr, float)


def test_critic_and_actor_of_a_group(write):
    experiment = write(FILE.replace('agent = "fql"', 'critic = "scalar"'))
    agent = resolve(experiment, experiment.groups[1], MEDIUM).agent
    assert (agent.critic_name, agent.actor_name) == ("scalar", "fql")


def test_a_dotted_name_without_quotation_marks_means_the_same(write):
    experiment = write(budget=BUDGET.replace('"agent.lr" = 1', "agent.lr = 1.0"))
    assert resolve(experiment, experiment.groups[0], MEDIUM).agent.lr == 1.0


def test_a_removed_setting_may_have_its_default(write):
    file = FILE.replace('"agent.batch_size" = 16', '"agent.td_lambda" = 1.0, "agent.batch_size" = 16')
    assert write(file).groups == write().groups


def resolve_all(read):
    experiment = read()
    return [resolve(experiment, group, MEDIUM) for group in experiment.groups]


FIRST = 'name = "one"'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('title = "Two"', "title = ", "mine.toml: not TOML"),
        ('title = "Two"', "", "mine.toml: title is missing"),
        ('title = "Two"', "title = 3", "title = 3: must be a text"),
        ('title = "Two"', 'titel = "Two"', "unknown key 'titel'.*did you mean 'title'"),
        ('title = "Two"', 'title = "Two"\ncurves = "no"', "curves = 'no': must be true or false"),
        ('reference = "one"', 'reference = "ones"', "reference = 'ones' is not a group; did you mean 'one'"),
        ('reference = "one"', "", "reference is missing"),
        (
            'reference = "one"',
            'reference = "one"\nscore = "retrun"',
            "score: 'retrun' is none; choose success or normalized or return",
        ),
        (
            'name = "two"',
            'name = "two"\nagainst = "tree"',
            "group 'two': against = 'tree' is not a group",
        ),
        ('name = "three"', 'name = "two"', "two groups are called 'two'"),
        (FILE[FILE.index("[[groups]]") :], "", "no groups to compare"),
        (FIRST, "", "group 1: name is missing"),
        (FIRST, FIRST + '\nagnet = "fql"', "group 'one': unknown key 'agnet'.*did you mean 'agent'"),
        (FIRST, FIRST + '\nagent = "flock"', "group 'one': --agent=flock: unknown agent"),
        (FIRST, FIRST + '\ncritic = "scalr"', "group 'one': --agent.critic=scalr.*did you mean 'scalar'"),
        (FIRST, FIRST + "\nsettings = 3", "settings = 3: must be a table"),
        (
            FIRST,
            FIRST + '\nsettings = { "agent.alfa" = 3.0 }',
            "group 'one': settings: agent.alfa: no such setting.*did you mean 'agent.alpha'",
        ),
        (FIRST, FIRST + "\nsettings = { seed = 3 }", "group 'one': settings: seed: the plan decides this"),
        ('"agent.flow_steps"', '"agent.num_bins"', "group 'two': agent.num_bins: no such setting of agent 'fql'"),
        ('"agent.batch_size" = 16', '"agent.batch_size" = "16"', "agent.batch_size = '16': must be a whole number"),
        (
            '"agent.batch_size" = 16',
            '"agent.td_lambda" = 0.5',
            "group 'two'.*agent.td_lambda=0.5: this setting was removed",
        ),
        ('"agent.batch_size" = 16', '"agent.batch_size" = 0', "batch_size=0: must be greater than 0"),
        ('"agent.batch_size" = 16', '"agent.batch_size" = true', "agent.batch_size = True: must be a whole number"),
        ('"agent.batch_size" = 16', '"agent.layer_norm" = 1', "agent.layer_norm = 1: must be true or false"),
        ('"agent.batch_size" = 16', '"agent.lr" = "0.1"', "agent.lr = '0.1': must be a number"),
        ('"agent.batch_size" = 16', '"agent.value_hidden_dims" = 8', "value_hidden_dims = 8: must be a list"),
        ('"agent.batch_size" = 16', '"agent.value_hidden_dims" = [8.5]', r"= 8\.5: must be a whole number"),
        (
            '"agent.batch_size" = 16',
            'precision = "f16"',
            "precision = 'f16': must be one of 'auto', 'tf32', 'f32', 'bf16'",
        ),
        ('match_to = "one"', "", "match needs match_to"),
        ('match_to = "one"', 'match_to = "on"', "match_to = 'on' is not a group; did you mean 'one'"),
        ('match_to = "one"', 'match_to = "two"', "is matched itself"),
        ('match = "flops"', 'match = "flop"', "match = 'flop': must be one of 'flops', 'params'"),
        ('match = "flops"', "", "need match = 'flops' or 'params'"),
        ("seeds = [3]", "seeds = []", "seeds: give at least 1"),
        ("seeds = [3]", 'seeds = ["3"]', "seeds = '3': must be a whole number"),
        ("seeds = [3]", "tasks = []", "tasks: give at least 1"),
        ("seeds = [3]", "seed = [3]", r"\[laptop\]: unknown key 'seed'.*did you mean 'seeds'"),
        ('"agent.alpha" = 4.0', '"agent.alhpa" = 4.0', r"\[laptop\]: settings: agent.alhpa: no such setting"),
    ],
)
def test_wrong_experiments(write, old, new, said):
    assert old in FILE
    with pytest.raises(UserError, match=said) as caught:
        resolve_all(lambda: write(FILE.replace(old, new, 1)))
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds = [0, 1]", "", "seeds is missing"),
        ("seeds = [0, 1]", "seeds = [-1]", "seeds=-1: must be at least 0"),
        ("navigate-v0 = 5", "navigate-v0 = 0", "navigate-v0=0: must be greater than 0"),
        ('"agent.lr" = 1', '"agent.lrr" = 1', "settings: agent.lrr: no such setting of any agent; did you mean"),
        ('"agent.lr" = 1', '"agent.lr" = "x"', "settings: agent.lr = 'x': must be a number"),
        ("[critics.floq]", "[critics.flock]", "critics are .*did you mean 'floq'"),
        ("[critics.floq]", "[critic.floq]", "did you mean 'critics'"),
    ],
)
def test_wrong_budgets(write, old, new, said):
    assert old in BUDGET
    with pytest.raises(UserError, match=said) as caught:
        resolve(experiment := write(budget=BUDGET.replace(old, new, 1)), experiment.groups[0], GIANT)
    assert str(Path("budgets") / "laptop.toml") in str(caught.value)


def test_missing_files(write, tmp_path):
    with pytest.raises(UserError, match=r"nothing\.toml: cannot read it"):
        read_experiment(tmp_path / "nothing.toml", "laptop")
    with pytest.raises(UserError, match="choose gpu or laptop"):
        write(name="phone")


LEARNING = dataclasses.fields(LearningSettings)
COMPARED = {
    "precision.toml": {"precision"},
    "online.toml": {"utd", "lr", "tau"},
    "online_maze.toml": {"utd"},
    "best_of_n.toml": {"num_candidates"},
    "boundary.toml": {"offline_share", "warmup_steps"},
    "chunks.toml": {"action_chunk", "n_step"},
    "noise.toml": {"target_noise_magnitude"},
    "ope.toml": {"offline_steps", "save_interval"},
    "ope_cube.toml": {"offline_steps", "save_interval"},
    "utd.toml": {"lr", "tau"},
    "utd_cheetah.toml": {"lr", "tau"},
}
"""What the groups of an experiment differ in, beside critics, actors and their own settings."""


@pytest.mark.parametrize("budget", ["laptop", "gpu"])
def test_the_experiments_that_come_with_floq(budget):
    """Every one resolves on each of its tasks, and its groups learn alike: with the same actor they weigh it alike."""
    folder = Path(__file__).parents[1] / "experiments"
    files = sorted(folder.glob("*.toml"))
    assert files
    for file in files:
        experiment, compared = read_experiment(file, budget), COMPARED.get(file.name, set())
        alike = lambda values: {name: x for name, x in values.items() if name not in compared}  # noqa: B023, E731
        for task in experiment.tasks:
            configs = [resolve(experiment, group, task) for group in experiment.groups]
            assert {config.run_group for config in configs} == {budget}
            shared = [{f.name: getattr(config.agent, f.name) for f in LEARNING} for config in configs]
            learning = [config.to_json() | own | {"agent": None} for config, own in zip(configs, shared, strict=True)]
            assert all(alike(values) == alike(learning[0]) for values in learning)
            actors = {config.agent.actor_name: config.agent.actor for config in configs}
            pairs = ((config.agent.actor, actors[config.agent.actor_name]) for config in configs)
            assert all(alike(vars(actor)) == alike(vars(other)) for actor, other in pairs)


def test_a_group_may_have_settings_for_one_budget(write):
    experiment = write(file=FILE + 'laptop = { "agent.alpha" = 6.0 }\ngpu = { "agent.alpha" = 7.0 }\n')
    assert resolve(experiment, experiment.groups[2], MEDIUM).agent.actor.alpha == 6.0
