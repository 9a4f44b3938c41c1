"""`floq sweep` as a user types it: tiny networks, six updates, two groups and two seeds."""

import csv
import re
import shutil
from pathlib import Path

import pytest
from conftest import MAZE_DATA

from floq import cli
from floq.analysis.metrics import RETURN, SUCCESS, area, last
from floq.analysis.report.csv_files import read_tables, write_csv
from floq.analysis.report.figures import draw_figure
from floq.analysis.report.groups import RunGroup
from floq.analysis.report.page import comparison_markdown
from floq.analysis.report.scores import assemble
from floq.analysis.statistics import UNKNOWN, area_under_curve, iqm, mean_interval, probability_of_improvement
from floq.runs.run import Run
from floq.sweep import jobs, sweep
from floq.utils.errors import Interrupted

ROOT = Path(__file__).parents[1]
TASK = MAZE_DATA.replace("-v0", "-singletask-v0")
BUDGET = f"""
tasks = ["{TASK}"]
seeds = [0, 1]
data = {{ {MAZE_DATA} = 2 }}
[settings]
offline_steps = 6
log_interval = 3
eval_interval = 3
save_interval = 3
eval_episodes = 1
"agent.batch_size" = 8
"agent.value_hidden_dims" = [8]
"agent.actor_hidden_dims" = [8]
"""
FILE = """
title = "Two critics"
question = "Which is better?"
reference = "mean"
[[groups]]
name = "mean"
agent = "fql"
settings = { "agent.q_agg" = "mean" }
[[groups]]
name = "minimum"
agent = "fql"
settings = { "agent.q_agg" = "min" }
"""
MATCHED = """
title = "Two critics of one size"
question = "Which is better?"
reference = "flow"
[[groups]]
name = "flow"
[[groups]]
name = "monolithic"
agent = "fql"
match = "params"
match_to = "flow"
match_by = "members"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an experiment, named after what it is about."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "budgets").mkdir()
    (folder / "budgets" / "laptop.toml").write_text(BUDGET)
    (folder / "critics.toml").write_text(FILE)
    return folder


@pytest.fixture(scope="module")
def words(place, dataset_dir):
    return [
        *("sweep", str(place / "critics.toml"), "--budget=laptop"),
        *(f"--save_dir={place / 'exp'}", f"--dataset_dir={dataset_dir}"),
    ]


@pytest.fixture(scope="module")
def out(place, words):
    """Where a sweep has left its tables."""
    assert cli.run(words) == 0
    return place / "exp" / "sweep" / "laptop"


@pytest.fixture
def trained(monkeypatch):
    """The jobs that are trained from here on, as lists of (critic, seed)."""
    trained, train_job = [], jobs.train_job

    def train(configs):
        trained.append([(config.agent.critic.q_agg, config.seed) for config in configs])
        return train_job(configs)

    monkeypatch.setattr(jobs, "train_job", train)
    return trained


def folders(out: Path) -> list[Path]:
    return sorted(out.glob(f"{TASK}/sd*"))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_what_a_sweep_leaves_behind(out):
    runs = [Run.open(folder) for folder in folders(out)]
    assert len(runs) == 4
    assert not any(list((run.folder / "plots").iterdir()) for run in runs)
    evaluations = rows(out / "critics.csv")
    first = {"experiment": "critics", "budget": "laptop", "group": "mean", "task": TASK, "seed": "0", "step": "1"}
    assert {name: evaluations[0][name] for name in first} == first
    assert [int(row["step"]) for row in evaluations] == [1, 3, 6] * 4
    by_run = {
        ({"mean": "mean", "min": "minimum"}[run.config.agent.critic.q_agg], str(run.config.seed)): run for run in runs
    }
    summaries = rows(out / "critics-runs.csv")
    assert len(summaries) == 4
    for row in summaries:
        run = by_run[row["group"], row["seed"]]
        columns = run.evaluations()
        success = columns["evaluation/success"]
        own = [e for e in evaluations if (e["group"], e["seed"]) == (row["group"], row["seed"])]
        assert [float(e["success"]) for e in own] == success
        assert [float(e["episode_return"]) for e in own] == columns["evaluation/episode.return"]
        assert [float(e["episode_length"]) for e in own] == columns["evaluation/episode.length"]
        assert float(row["final"]) == success[-1]
        assert float(row["auc"]) == area_under_curve(columns["step"][1:], success[1:])
        assert (row["steps"], row["runs_in_fleet"]) == ("6", "2")
        assert int(row["parameters"]) > 100
        assert float(row["update_gflop"]) > float(row["action_mflop"]) / 1e3 > 0
        assert (row["eval_episodes"], row["success_timing"]) == ("1", "post")
        assert float(row["validation/critic/td_error"]) > 0
    table = (out / "critics.md").read_text()
    assert "## Two critics\n\nWhich is better?\n" in table
    assert re.search(r"\| mean \(reference\) \| [0-9,]+ \| [0-9.e-]+ \| 0.00 \| 0.00 \| 2 x 1 \|", table)
    assert (out / "critics.png").stat().st_size > 10_000


def test_a_second_run_trains_nothing_and_a_deleted_one_is_trained_alone(out, words, trained, place, capsys):
    before = {name: (out / name).read_bytes() for name in ("critics.csv", "critics-runs.csv", "critics.md")}
    assert cli.run(words) == 0
    assert trained == []
    assert {name: (out / name).read_bytes() for name in before} == before
    (gone,) = (f for f in folders(out) if (c := Run.open(f).config).seed == 1 and c.agent.critic.q_agg == "min")
    shutil.rmtree(gone)
    capsys.readouterr()
    assert cli.run([*words, "--dry_run"]) == 0
    shown = capsys.readouterr().out
    assert "4 different runs, 3 finished, 1 to train in 1 programs: 6 updates" in shown
    assert trained == []
    assert cli.run(words) == 0
    assert trained == [[("min", 1)]]
    assert len(folders(out)) == 4
    assert (out / "critics.csv").read_bytes() == before["critics.csv"]


def test_an_unfinished_fleet_goes_on(out, words, trained, monkeypatch):
    """From its checkpoint at step 3, to the same result."""
    before = (out / "critics.csv").read_bytes()
    left = [folder for folder in folders(out) if Run.open(folder).config.agent.critic.q_agg == "min"]
    for folder in left:
        (folder / "summary.json").unlink()
        shutil.rmtree(folder / "checkpoints" / "6")
    resumed, resume_fleet = [], jobs.resume_fleet
    monkeypatch.setattr(jobs, "resume_fleet", lambda runs, **how: resumed.append(runs) or resume_fleet(runs, **how))
    assert cli.run(words) == 0
    assert trained == [[("min", 0), ("min", 1)]]
    assert [sorted(runs) for runs in resumed] == [left]
    assert len(folders(out)) == 4
    assert (out / "critics.csv").read_bytes() == before


def test_redraw_needs_the_two_files_alone(out, place, tmp_path):
    for name in ("critics.csv", "critics-runs.csv"):
        shutil.copy(out / name, tmp_path)
    assert cli.run(["sweep", str(place / "critics.toml"), f"--out={tmp_path}", "--redraw"]) == 0
    assert (tmp_path / "critics.md").read_text() == (out / "critics.md").read_text()
    assert (tmp_path / "critics.png").exists()


def test_redraw_without_or_with_damaged_files(place, tmp_path, capsys):
    words = ["sweep", str(place / "critics.toml"), f"--out={tmp_path}", "--redraw"]
    assert cli.run(words) == 2
    assert "critics.csv: cannot read it" in capsys.readouterr().err
    (tmp_path / "critics.csv").write_text("group\n")
    (tmp_path / "critics-runs.csv").write_text("group,seed\nmean,1\n")
    assert cli.run(words) == 2
    assert "damaged" in capsys.readouterr().err


def test_one_failing_cell_does_not_lose_the_others(place, words, monkeypatch, capsys, tmp_path):
    """The first of two programs fails; the second is trained, and drawn."""
    train_fleet, seen = jobs.train_fleet, []

    def fails_first(configs, **how):
        seen.append(configs[0].agent.critic.q_agg)
        if len(seen) == 1:
            raise MemoryError("too\nlarge")
        return train_fleet(configs, **how)

    monkeypatch.setattr(jobs, "train_fleet", fails_first)
    own = [f"--save_dir={tmp_path}", f"--out={tmp_path / 'out'}", "--seeds", "5"]
    assert cli.run([*words, *own]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert errors == [f"floq: 'mean' on {TASK} failed: MemoryError('too\\nlarge')"]
    assert seen == ["mean", "min"]
    assert {(row["group"], row["seed"]) for row in rows(tmp_path / "out" / "critics.csv")} == {("minimum", "5")}
    assert "| mean |  |  |  |  | none finished |" in (tmp_path / "out" / "critics.md").read_text()
    assert "Traceback" in (tmp_path / "out" / "failures.txt").read_text()


def test_a_signal_ends_the_sweep(words, monkeypatch, capsys, tmp_path):
    def stopped(configs, **how):
        raise Interrupted("stopped by SIGINT at step 1", 2)

    monkeypatch.setattr(jobs, "train_fleet", stopped)
    assert cli.run([*words, f"--save_dir={tmp_path}"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_missing_data_is_collected_as_the_budget_says(place, words, monkeypatch, tmp_path):
    collected = []
    collect = lambda name, folder, episodes, _: collected.append((name, episodes))  # noqa: E731
    monkeypatch.setattr(sweep, "collect_with_progress", collect)
    monkeypatch.setattr(jobs, "train_job", lambda configs: None)
    own = [f"--dataset_dir={tmp_path / 'data'}", f"--save_dir={tmp_path}", f"--out={tmp_path}"]
    assert cli.run([*words, *own, "--dry_run"]) == 0
    assert collected == []
    assert cli.run([*words, *own]) == 0
    assert collected == [(MAZE_DATA, 2)]


def test_a_matched_group_costs_what_the_other_one_costs(place, dataset_dir):
    (place / "matched.toml").write_text(MATCHED)
    experiment = sweep.read_experiment(place / "matched.toml", "laptop")
    flow, monolithic = sweep.plan(experiment, "exp", str(dataset_dir))
    members = monolithic.configs[0].agent.critic.value_num_ensembles
    assert members > 2
    one = monolithic.cost.critic_parameters / members
    assert abs(monolithic.cost.critic_parameters - flow.cost.critic_parameters) <= one / 2
    assert [config.seed for config in flow.configs] == [0, 1]


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ([], "needs an experiment file"),
        (["nothing.toml"], "nothing.toml: cannot read it"),
        (["FILE", "FILE"], "two files are called critics.toml"),
        (["FILE", "--budget=phone"], "choose laptop"),
        (["FILE", "--redraw", "--dry_run"], "give one of them"),
        (["FILE", "--dry-rum"], "did you mean '--dry_run'"),
        (["FILE", "--out=/dev/null/x"], "choose another --out"),
    ],
)
def test_wrong_commands(place, own, said, capsys):
    assert cli.run(["sweep", *(str(place / "critics.toml") if word == "FILE" else word for word in own)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_an_unknown_task_is_found_before_anything_is_trained(place, words, trained, capsys):
    (place / "wrong.toml").write_text(FILE + f'[laptop]\ntasks = ["{TASK}", "pointmaze-mediun-navigate-singletask-v0"]')
    assert cli.run(["sweep", str(place / "wrong.toml"), *words[2:]]) == 2
    assert "unknown environment" in capsys.readouterr().err
    assert trained == []


# --- the comparison ---


def made_up(folder: Path, groups: dict[str, list[list[float]]], metric: str = "success"):
    """The runs of the two files of a sweep, of an older version, with scores by group, task and seed."""
    evaluations, runs = [], []
    for group, by_task in groups.items():
        for task, values in enumerate(by_task):
            for seed, value in enumerate(values):
                own = {"group": group, "task": f"maze{task}-navigate-singletask-v0", "seed": seed}
                evaluations += [own | {"step": step, metric: value * last} for step, last in ((1, 0), (5, 1), (9, 0.5))]
                costs = {"critic_parameters": 10, "update_gflop": 0.5, "eval_episodes": 25, "success_timing": "post"}
                runs.append(own | costs | {"steps": 9})
    write_csv(folder / "runs.csv", runs)
    write_csv(folder / "evaluations.csv", evaluations)
    return read_tables(folder / "runs.csv", folder / "evaluations.csv")


def report(found, against, reference="one", metric=SUCCESS):
    groups = [RunGroup(name, tuple(found.get(name, ())), against=other) for name, other in against.items()]
    return assemble(groups, reference=reference, metric=metric)


def test_compare(tmp_path):
    one, two = [[0.1, 0.2, 0.3], [0.5, 0.6, 0.9]], [[0.3, 0.2], [0.8, 0.9]]
    found = report(made_up(tmp_path, {"one": one, "two": two}), {"one": None, "two": "one", "three": "one"})
    assert found.aggregates["one"].last.value == pytest.approx((0.2 + 2 / 3) / 4)
    assert found.aggregates["one"].area == pytest.approx((0.325, *mean_interval([0.225, 0.3, 0.45])))
    assert set(found.aggregates) == {"one", "two"}
    (compared,) = found.comparisons(SUCCESS)
    assert (compared.first, compared.second, compared.tasks) == ("two", "one", 2)
    better = probability_of_improvement(two, one).value
    assert compared.better == (better, *UNKNOWN)
    differences = [0.75 * (0.2 + 0.3) / 2, 0.75 * (0.0 + 0.3) / 2]
    assert compared.area.estimate == pytest.approx((sum(differences) / 2, *mean_interval(differences)))
    assert compared.area[1:] == (0.5, 2, 1)
    shown = comparison_markdown(found, "Title")
    assert "| one (reference) | 10 | 0.5 | 0.33 [0.04, 0.61] |" in shown
    assert "| two | 10 | 0.5 | 0.41 |" in shown  # seeds that agree
    assert "| 2 x 2 |" in shown
    assert "| three |  |  |  |  | none finished |" in shown
    assert "3 seeds, 2 tasks; 25 episodes, success_timing=post. Tasks: maze0-navigate-singletask-v0" in shown
    assert "| two | one | 0.15 [-0.33, 0.63] | 0.5 | 0.10 [-0.22, 0.42] | 0.5 | 2 x 2, 1 unpaired |" in shown
    assert "bootstrap interval" not in shown.replace("Interquartile means with bootstrap intervals", "")


def test_groups_are_compared_with_those_that_they_name_and_returns_are_no_rates(tmp_path):
    groups = {"one": [[100.0, 300.0]], "two": [[1000.0, 1200.0]], "three": [[500.0, 1300.0]]}
    runs = made_up(tmp_path, groups, "episode_return")
    found = report(runs, {"one": None, "two": "one", "three": "two"}, metric=RETURN)
    compared = found.comparisons(RETURN)
    assert [each[:2] for each in compared] == [("two", "one"), ("three", "two")]
    assert compared[1].better.value == probability_of_improvement(groups["three"], groups["two"]).value
    shown = comparison_markdown(found, "Title")
    assert "| two | 10 | 0.5 | 825 [-128, 1,778] | 550 [-85.31, 1,185] |" in shown
    assert "| three | two | -150 [" in shown
    assert "last return" in shown


def test_ten_seeds_have_interquartile_means(tmp_path):
    groups = {"one": [[n / 10 for n in range(10)]], "two": [[n / 20 for n in range(10)]]}
    found = report(made_up(tmp_path, groups), {"one": None, "two": "one"})
    assert found.aggregates["one"].last.value == pytest.approx(iqm(groups["one"]) / 2)
    shown = comparison_markdown(found, "Title")
    for words in ("| AUC, IQM [95%] |", "P(better) [95%]", "95% percentile bootstrap"):
        assert words in shown


def test_older_files_have_the_absolute_error_under_another_name(tmp_path):
    made_up(tmp_path, {"one": [[0.1]]})
    for name, value in (("td_error", 5.0), ("abs_td_error", 2.0)):
        written = rows(tmp_path / "runs.csv")
        write_csv(tmp_path / "runs.csv", [row | {f"validation/critic/{name}": value} for row in written])
        ((run,),) = read_tables(tmp_path / "runs.csv", tmp_path / "evaluations.csv").values()
        assert run.last("validation/critic/abs_td_error") == value


@pytest.mark.parametrize("metric", [SUCCESS, RETURN])
@pytest.mark.parametrize("count", [0, 2, 9])
def test_figures_of_few_and_many_groups(count, metric, tmp_path):
    groups = {f"group {number} & co_{number}": [[0.1 * number, 0.05], [0.0, 0.3]] for number in range(count)}
    runs = made_up(tmp_path, groups, "success" if metric is SUCCESS else "episode_return")
    found = report(runs, dict.fromkeys(groups), next(iter(groups), None), metric)
    for curves in (True, False):
        draw_figure(tmp_path / "figure.png", found, title="Title", curves=curves)
        assert (tmp_path / "figure.png").stat().st_size > 5_000


def test_published_results_are_read():
    """The files of older versions that docs/results holds: their scores are those that were written beside them."""
    for path in sorted((ROOT / "docs" / "results").glob("**/*-runs.csv")):
        metric = RETURN if path.name.startswith(("online-", "utd")) else SUCCESS
        written = {(row["group"], row["task"], int(row["seed"])): row for row in rows(path)}
        found = read_tables(path, path.with_name(path.name.replace("-runs", "")))
        assert sum(map(len, found.values())) == len(written)
        for group, runs in found.items():
            for run in runs:
                row = written[group, run.task, run.seed]
                assert last(run, metric) == float(row["final"])
                assert area(run, metric) == pytest.approx(float(row["auc"]))
