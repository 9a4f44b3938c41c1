"""What a report reads from run folders, which runs it takes together, and what it says they come to."""

import fcntl
import json
import math
import os

import numpy as np
import pytest
from run_folders import TASK, make_run

from floq.analysis.health import run_problems
from floq.analysis.metrics import RETURN, SCORE, SUCCESS, TD_ERROR, primary_metric
from floq.analysis.report import tables
from floq.analysis.report.groups import OF_THE_TASK, WITHOUT_EFFECT, group_runs
from floq.analysis.report.scores import assemble, mean
from floq.analysis.statistics import (
    UNKNOWN,
    iqm,
    iqm_interval,
    mean_interval,
    probability_of_improvement,
    wilson_interval,
)
from floq.runs.config import Config
from floq.runs.loggers import read_csv
from floq.runs.record import DamagedRun, RunRecord, find_runs, read_run, read_runs
from floq.utils.errors import UserError
from floq.utils.files import is_locked, lock_folder
from floq.utils.schema import Mark, marked


def record(folder) -> RunRecord:
    found = read_run(folder)
    assert isinstance(found, RunRecord), found
    return found


def report_of(root, reference=None):
    runs, damaged = read_runs(find_runs([root]))
    return assemble(group_runs(runs), damaged, reference)


# --- reading ---


def test_runs_are_found_below_a_folder_and_once(tmp_path):
    first, second = make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)
    (first / "checkpoints" / "7").mkdir(parents=True)
    (first / "checkpoints" / "7" / "config.json").write_text("{}")  # no run of its own
    assert find_runs([tmp_path, second]) == [first, second]
    assert find_runs([first / ".." / first.name]) == [first]
    with pytest.raises(UserError, match=r"nowhere is not there: give run folders"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match=r"config\.json is a file"):
        find_runs([first / "config.json"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run in .*empty: a run's folder has a config\.json"):
        find_runs([tmp_path / "empty"])


def test_a_run_as_its_files_tell_it(tmp_path):
    run = record(make_run(tmp_path, seed=3, success=[0, 0.5, 1]))
    assert (run.seed, run.task, run.family, run.state) == (3, TASK, "cube-double-play", "finished")
    assert (run.step, run.total_steps, run.seconds, run.steps_per_second) == (200, 200, 60, 100)
    assert run.evaluations["evaluation/success"].tolist() == [0, 0.5, 1]
    assert run.settings["agent.critic"] == "floq"
    assert run.records["protocol"].startswith("50 episodes")
    online = record(make_run(tmp_path, offline_steps=100, online_steps=50))
    assert (online.boundary, online.total_steps) == (100, 150)
    logs = record(make_run(tmp_path, None, dataset="/data/robot.npz"))
    assert (logs.task, logs.family) == ("robot", "robot")
    assert record(make_run(tmp_path, "Hopper-v5", dataset="mujoco/hopper/medium-v0")).task == "Hopper-v5 on medium-v0"


def test_states_and_the_lock(tmp_path):
    """Who holds a folder is not noticed by looking, and looking turns nobody away."""
    folder = make_run(tmp_path, finished=False)
    assert record(folder).state == "stopped"
    with lock_folder(folder, "busy"):
        assert is_locked(folder)
        assert record(folder).state == "running"
        with pytest.raises(UserError, match="busy"), lock_folder(folder, "busy"):
            pass
    assert not is_locked(folder)
    assert not is_locked(folder / "nothing")


def test_who_begins_while_somebody_looks_is_not_turned_away(tmp_path, monkeypatch):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    monkeypatch.setattr("floq.utils.files.time.sleep", lambda _: os.close(handle))  # the look ends
    with lock_folder(tmp_path, "busy"):
        assert is_locked(tmp_path)


def test_a_row_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "eval.csv"
    path.write_text("step,a\n1,0.5\n2,0.25\n3,0.1")
    assert read_csv(path)["step"] == [1, 2]
    path.write_text("step,a\n1,0.5\n2\n")
    assert read_csv(path)["a"] == [0.5]
    for text in ("", "step,a\n", "ste"):
        path.write_text(text)
        assert read_csv(path) == {}


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("eval.csv", "step,a\n1,2\n3\n4,5\n", "eval.csv is damaged (line 3 has 1 cells, the header 2)"),
        ("eval.csv", "step,a\n1,x\n", "eval.csv is damaged (could not convert string to float: 'x')"),
        ("train.csv", "step,a\n5,2\n3,2\n", "train.csv is damaged (its steps do not increase)"),
        ("eval.csv", "a,b\n1,2\n", "eval.csv is damaged (its first column is 'a', not step)"),
        (
            "eval.csv",
            "step,evaluation/success\n1,1.5\n",
            "eval.csv is damaged (evaluation/success lies outside [0",
        ),
        ("eval.csv", "\x00\n\xff", "eval.csv is damaged ("),
        ("summary.json", "{", "summary.json is damaged (no JSON"),
        ("summary.json", "[]", "summary.json is damaged (it holds no JSON object)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, text, complaint):
    folder = make_run(tmp_path)
    (folder / name).write_bytes(text.encode("latin-1"))
    assert record(folder).problems[0].startswith(complaint)
    assert run_problems(record(folder))[0].startswith(complaint)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("{", "no JSON"),
        ("[1]", "it holds no JSON object"),
        ('{"model": "bert"}', "not the configuration of a run: it has no agent"),
        ('{"agent": {"critic": "floq"}, "seed": 0, "offline_steps": 1, "online_steps": 0, "env_name": "x"}', "agent.a"),
        ('{"agent": {"critic": "floq", "actor": "fql"}, "seed": "0"}', "seed = '0': must be a whole number"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_named(tmp_path, config, reason):
    folder = make_run(tmp_path)
    (folder / "config.json").write_text(config)
    found = read_run(folder)
    assert isinstance(found, DamagedRun)
    assert reason in found.reason


# --- groups ---


def test_groups_differ_in_more_than_seed_and_task(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, seed=seed, **({"keep_checkpoints": 2, "env_timeout": 9.0} if seed else {}))
        make_run(tmp_path, seed=seed, task=TASK.replace("-v0", "-task2-v0"))
        make_run(tmp_path, seed=seed, agent={"critic_flow_steps": 16}, save_dir="elsewhere")
    first, second = report_of(tmp_path).groups
    assert (first.name, len(first.runs), len(first.tasks)) == ("K=8", 4, 2)
    assert (second.name, len(second.runs)) == ("K=16", 2)
    assert second.settings == {"agent.critic_flow_steps": "16"}


def test_settings_that_do_not_distinguish_runs_are_not_compared():
    unhashed = set(marked(Config, Mark.NOT_HASHED)) - {"score_range"}  # it changes the scores
    assert unhashed <= {*OF_THE_TASK, *WITHOUT_EFFECT}


def test_names_say_what_differs(tmp_path):
    make_run(tmp_path)
    make_run(tmp_path, agent={"critic": "scalar"})
    assert [g.name for g in report_of(tmp_path).groups] == ["floq critic", "scalar critic"]
    make_run(tmp_path, agent={"critic": "scalar", "actor": "gaussian"})
    make_run(tmp_path, agent={"alpha": 30.0})
    names = [g.name for g in report_of(tmp_path).groups]
    assert names == [
        "floq critic, fql actor, alpha=30",
        "floq critic, fql actor, alpha=300",
        "scalar critic, fql actor",
        "scalar critic, gaussian actor",
    ]
    make_run(tmp_path, run_group="mine")
    assert "mine" in [g.name for g in report_of(tmp_path).groups]


def test_of_several_settings_only_what_is_unusual_is_named(tmp_path):
    for change in ({}, {"critic_flow_steps": 1}, {"critic_flow_steps": 16}, {"alpha": 3.0}, {"alpha": 30.0}):
        make_run(tmp_path, agent=change)
    names = {group.name for group in report_of(tmp_path).groups}
    assert names == {"alpha=300, K=8", "K=1", "K=16", "alpha=3", "alpha=30"}


def test_settings_that_belong_to_the_task_divide_no_group(tmp_path):
    """As published settings do, which differ from family to family. A sweep within a family does divide."""
    maze = "antmaze-large-navigate-singletask-v0"
    make_run(tmp_path)
    make_run(tmp_path, maze, agent={"alpha": 10.0})
    make_run(tmp_path, agent={"critic": "scalar"})
    floq, _ = report_of(tmp_path).groups
    assert floq.tasks == [maze, TASK] or floq.tasks == [TASK, maze]
    assert floq.settings["agent.alpha"] == "10 (antmaze-large-navigate), 300 (cube-double-play)"
    make_run(tmp_path, maze, agent={"alpha": 3.0})
    assert len(report_of(tmp_path).groups) == 4


def test_older_runs_that_lack_a_setting_are_not_apart(tmp_path):
    folder = make_run(tmp_path, seed=0, utd=1.0)
    config = json.loads((folder / "config.json").read_text())
    del config["utd"]
    (folder / "config.json").write_text(json.dumps(config))
    make_run(tmp_path, seed=1, utd=1.0)
    assert len(report_of(tmp_path).groups) == 1
    make_run(tmp_path, seed=2, utd=4.0)
    assert len(report_of(tmp_path).groups) == 3


def test_weights_that_were_taken_over_count_by_their_configuration(tmp_path):
    for seed, origin in enumerate(("sd000_20260101_000000_0123abcd", "sd001_20260101_000000_0123abcd")):
        make_run(tmp_path, seed=seed, restore_path=f"/exp/{origin}")
    assert len(report_of(tmp_path).groups) == 1
    make_run(tmp_path, seed=2, restore_path="/exp/sd002_20260101_000000_ffffffff")
    assert len(report_of(tmp_path).groups) == 2


# --- scores ---


def cell_of(root, task=TASK):
    report = report_of(root)
    return next(t for t in report.tasks if t.name == task).cells[report.groups[0].name]


def test_three_seeds_have_students_interval(tmp_path):
    for seed, last in enumerate((0.4, 0.5, 0.6)):
        make_run(tmp_path, seed=seed, success=[0, last])
    cell = cell_of(tmp_path)
    assert cell.over == "seeds"
    assert cell.estimate == pytest.approx((0.5, *mean_interval([0.4, 0.5, 0.6])))


@pytest.mark.parametrize("last", [(0.4,), (0.4, 0.6), (0.5, 0.5, 0.5)])
def test_few_seeds_or_seeds_that_agree_have_the_interval_of_their_episodes(tmp_path, last):
    for seed, success in enumerate(last):
        make_run(tmp_path, seed=seed, success=[0, success])
    cell = cell_of(tmp_path)
    assert cell.over == "episodes"
    assert cell.estimate[1:] == wilson_interval(round(50 * sum(last)), 50 * len(last))


def test_what_has_not_ended_is_in_no_mean(tmp_path):
    make_run(tmp_path, seed=0, success=[0, 0.2])
    make_run(tmp_path, seed=1, success=[0, 0.8], finished=False, offline_steps=100)
    cell = cell_of(tmp_path)
    assert cell.estimate.value == 0.2
    assert [run.seed for run in cell.unfinished] == [1]


def test_a_seed_counts_once(tmp_path):
    """The newest run that has ended, also if a newer one has not."""
    for number, (last, finished) in enumerate([(0.2, True), (0.8, True), (0.5, False)]):
        folder = make_run(tmp_path, seed=0, success=[0, last], finished=finished, offline_steps=100)
        for file in folder.iterdir():
            os.utime(file, (number, number))
    cell = cell_of(tmp_path)
    assert cell.values.tolist() == [0.8]
    assert len(cell.repeated) == 2
    assert cell.unfinished == ()


def test_what_runs_are_judged_by(tmp_path):
    returns = {"evaluation/success": [math.nan] * 2, "evaluation/episode.return": [1.0, 2.0]}
    ant = make_run(tmp_path, "Ant-v5", evaluation=returns)
    logs = make_run(tmp_path, None, dataset="robot.npz", evaluation={"evaluation/td_error": [2.0, 1.0]})
    assert primary_metric([record(ant)]) is RETURN
    assert primary_metric([record(logs)]) is TD_ERROR
    scores = returns | {"evaluation/episode.normalized_return": [1.0, 2.0]}
    scored = make_run(tmp_path, "Hopper-v5", evaluation=scores)
    assert primary_metric([record(scored)]) is SCORE
    assert primary_metric([record(scored), record(ant)]) is RETURN  # which both have
    assert primary_metric([record(make_run(tmp_path))]) is SUCCESS
    assert cell_of(tmp_path, "Ant-v5").over == "nothing"
    assert report_of(tmp_path).scores(report_of(tmp_path).groups[0].name, []) == []


def test_aggregates_and_comparisons(tmp_path):
    tasks = [TASK, TASK.replace("-v0", "-task2-v0")]
    for seed in range(4):
        for task in tasks:
            make_run(tmp_path, task, seed, success=[0, 0.1 * seed])
            make_run(tmp_path, task, seed, success=[0, 0.5 + 0.1 * seed], agent={"critic": "scalar"})
    make_run(tmp_path, tasks[0], 9, success=[0, 1.0], agent={"critic": "quantile"}, finished=False)
    report = report_of(tmp_path)
    assert set(report.aggregates) == {"floq critic", "scalar critic"}
    floq = report.aggregates["floq critic"]
    assert floq.tasks == 2
    seeds = [0.0, 0.1, 0.2, 0.3]
    assert floq.last == pytest.approx((0.15, 0.0, mean_interval(seeds)[1]))  # clipped: its other end is -0.06
    assert floq.profile.share[0] == 0.75
    assert np.isneginf(floq.profile.low).all()
    (found,) = report.comparisons(SUCCESS)
    assert found[:2] == ("scalar critic", "floq critic")
    assert (found.better, found.tasks) == ((1.0, *UNKNOWN), 2)
    assert found.last.estimate == (pytest.approx(0.5), *UNKNOWN)  # all pairs agree
    assert found.last[1:] == (2 / 16, 4, 0)
    assert report.comparisons(RETURN) == []
    assert report.reference == "floq critic"
    assert report_of(tmp_path, "scalar critic").reference == "scalar critic"
    with pytest.raises(UserError, match=r"choose one of floq critic; .*did you mean 'scalar critic'"):
        report_of(tmp_path, "scalar critc")


def test_ten_seeds_have_interquartile_means_and_bootstrap_intervals(tmp_path):
    """Nine have not, nor has any group where one has nine."""
    for seed in range(10):
        make_run(tmp_path, seed=seed, success=[0, 0.1 * seed])
        make_run(tmp_path, seed=seed, success=[0, 0.5], agent={"critic": "scalar"}, finished=seed < 9)
    report, shown = report_of(tmp_path), lambda report: tables.over_all_tasks(report)
    assert not report.has_many_seeds
    assert report.aggregates["floq critic"].last.value == pytest.approx(0.45)
    assert shown(report).header[1:3] == ["AUC, mean [95% t]", "last success, mean [95% t]"]
    (found,) = report.comparisons(SUCCESS)
    assert found.better[1:] == UNKNOWN
    assert (found.last.pairs, found.last.unpaired) == (9, 1)
    assert tables.paired_differences(report, SUCCESS).rows[0][6].text == "9 x 1, 1 unpaired"

    make_run(tmp_path, seed=9, success=[0, 0.5], agent={"critic": "scalar"})
    report = report_of(tmp_path)
    assert report.has_many_seeds
    scores = [[0.1 * seed for seed in range(10)]]
    assert report.aggregates["floq critic"].last == pytest.approx((iqm(scores), *iqm_interval(scores)))
    assert np.isfinite(report.aggregates["floq critic"].profile.low).all()
    assert shown(report).header[1:3] == ["AUC, IQM [95%]", "last success, IQM [95%]"]
    assert report.comparisons(SUCCESS)[0].better == probability_of_improvement([[0.5] * 10], scores)
    assert tables.paired_differences(report, SUCCESS).header[-1] == "P(better) [95%]"


def test_groups_are_compared_by_each_metric_that_ranks(tmp_path):
    for seed in range(2):
        returns = {"evaluation/success": [math.nan] * 2, "evaluation/episode.return": [1.0, 2.0 + seed]}
        errors = {"evaluation/td_error": [2.0, 1.0]}
        for critic in ("floq", "scalar", "quantile"):
            make_run(tmp_path, seed=seed, agent={"critic": critic})
            make_run(tmp_path, "Ant-v5", seed, evaluation=returns, agent={"critic": critic})
            make_run(tmp_path, None, seed, evaluation=errors, agent={"critic": critic}, dataset="logs.npz")
    report = report_of(tmp_path, "quantile critic")
    pairs = [("floq critic", "quantile critic"), ("scalar critic", "quantile critic"), ("scalar critic", "floq critic")]
    for metric in (SUCCESS, RETURN):
        assert [found[:2] for found in report.comparisons(metric)] == pairs
    assert report.comparisons(TD_ERROR) == []
    titles = [section.title for section in tables.sections(report) if "Paired" in section.title]
    assert titles == ["Paired differences in success rate", "Paired differences in return"]


def test_the_mean_curve_is_over_runs_that_have_ended(tmp_path):
    make_run(tmp_path, seed=0, success=[0, 0.2, 0.4])
    make_run(tmp_path, seed=1, success=[0, 0.4, 0.8])
    make_run(tmp_path, seed=2, success=[1.0, 1.0], finished=False, offline_steps=200)
    found = mean(cell_of(tmp_path), SUCCESS)
    assert found is not None
    assert found.number == 2
    assert found.steps.tolist() == [1, 100, 200]
    np.testing.assert_allclose(found.values, [0, 0.3, 0.6])
    assert ((found.low <= found.values) & (found.values <= found.high)).all()


# --- health ---


def test_a_run_that_diverged(tmp_path):
    assert record(make_run(tmp_path)).diverged_at is None
    sick = record(make_run(tmp_path, diverged=100))
    assert sick.diverged_at == 100
    assert run_problems(sick) == ["diverged at step 100: the loss was not finite"]


def test_values_that_cannot_be(tmp_path):
    maze = "antmaze-large-navigate-singletask-v0"
    assert run_problems(record(make_run(tmp_path, maze, value=-100.0))) == []
    assert run_problems(record(make_run(tmp_path, maze, value=5.0))) == ["Q is 5, and no return is above 0"]
    assert "no return is below -100" in run_problems(record(make_run(tmp_path, maze, value=-150.0)))[0]
    assert run_problems(record(make_run(tmp_path, maze, value=-150.0, agent={"reward_scale": 2.0}))) == []
    assert run_problems(record(make_run(tmp_path, "Ant-v5", value=5.0))) == []
    assert run_problems(record(make_run(tmp_path, maze, value=5.0, dataset="mine.npz"))) == []


# --- published numbers ---


def test_what_may_stand_beside_published_numbers(tmp_path):
    runs = [record(make_run(tmp_path, f"cube-double-play-singletask-task{n}-v0", s, offline_steps=2_000_000))
            for n in range(1, 6) for s in range(3)]  # fmt: skip
    assert all(map(tables.is_comparable, runs))
    assert tables.protocol_differences(runs) == []
    assert tables.protocol_differences(runs[:6]) == ["2 of 5 tasks"]
    few = [record(make_run(tmp_path, seed=8, eval_episodes=5, offline_steps=1_000, data={"provenance": PART}))]
    assert tables.protocol_differences(few) == [
        "1 of 5 tasks", "1 seeds", "5 episodes instead of 50", "1,000 gradient steps",
        "a part of the data, collected here",
    ]  # fmt: skip
    others = [
        record(make_run(tmp_path, dataset="mine.npz")),
        record(make_run(tmp_path, online_steps=10)),
        record(make_run(tmp_path, success_timing="pre")),
    ]
    assert not any(map(tables.is_comparable, others))


PART = "cube-double-play-v0: 2 of the published 1000 episodes, collected here with seed 0"


def test_groups_of_nothing():
    assert group_runs([]) == []
