"""Cells of a sweep: how runs are divided, how begun ones go on, and how a sweep of flags looks. No Ray in here."""

import contextlib
import importlib.util
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import benchmark

from floq import cli
from floq.cli.train import parse_train
from floq.runs import checkpoint
from floq.runs.run import Run
from floq.sweep import jobs
from floq.sweep.jobs import Board, Job, Outcome, jobs_of, train_job, unfinished
from floq.training.train import resolve_paths
from floq.utils.progress import Display

KILLS = benchmark("ray_kills")
SLOW = pytest.mark.slow
STEPS = 40  # a row each, a checkpoint every second, an evaluation every tenth


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Flags of three programs of two runs."""
    return KILLS.flags(KILLS.make_data(tmp_path_factory.mktemp("data") / "data.npz"), STEPS)


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    """A folder below which a sweep of the first of these programs has left its runs, undisturbed, in `exp`."""
    place = tmp_path_factory.mktemp("finished")
    with contextlib.chdir(place):
        assert cli.run(["sweep", *only_first(words)]) == 0
    return place


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of that folder, in which the test is at work."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_first(words):
    return [word for word in words if word not in ("3", "4")]


def configs_of(words):
    return [resolve_paths(config) for config in parse_train(words).configs]


def folders(place: Path) -> list[Path]:
    return sorted(place.glob("exp/floq/debug/*/sd*"))


def stop(place: Path, steps) -> None:
    """Make finished runs such as they were when their newest checkpoints were of these steps."""
    for folder, newest in zip(folders(place), steps, strict=True):
        (folder / "summary.json").unlink()
        for step in checkpoint.steps(folder / "checkpoints"):
            if step > newest:
                shutil.rmtree(folder / "checkpoints" / str(step))


def test_cells_are_programs_divided_evenly(words):
    configs = configs_of([*only_first(words[:-3]), "--seeds", "0", "1", "2", "3", "4"])
    labels = {config: f"run {config.seed // 3}" for config in configs}
    assert [len(job.configs) for job in jobs_of(labels)] == [5]
    jobs = jobs_of(labels, 2)
    assert [[config.seed for config in job.configs] for job in jobs] == [[0], [1, 2], [3, 4]]
    assert [job.label for job in jobs] == ["run 0", "run 0", "run 1"]
    assert len(jobs_of(dict.fromkeys(configs_of(words), "x"))) == 3
    assert jobs_of({}) == []


@pytest.mark.parametrize(
    "steps", [(20, 18), *(pytest.param(steps, marks=SLOW) for steps in ((20, 20), (2, 0), (0, 0), (30, 10)))]
)
def test_what_was_begun_goes_on_in_its_folders(words, finished, copy, steps, monkeypatch):
    """Also where a fleet was killed while it saved, before its first checkpoint, or where runs are far apart."""
    together, resume_fleet = [], jobs.resume_fleet
    monkeypatch.setattr(
        jobs, "resume_fleet", lambda runs, **how: together.append(len(runs)) or resume_fleet(runs, **how)
    )
    stop(copy, steps)
    train_job(configs_of(only_first(words)), show=False)
    assert all(Run.open(folder).is_finished for folder in folders(copy))
    if steps == (30, 10):  # two programs of one run each: the last bits are not those of one program of two
        assert together == [1, 1]
        assert [folder.name for folder in folders(copy)] == [folder.name for folder in folders(finished)]
        for one, other in zip(folders(copy), folders(finished), strict=True):
            ends = [jax.tree.leaves(checkpoint.load(run / "checkpoints").agent.params) for run in (one, other)]
            for ours, theirs in zip(*ends, strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-5)
    else:
        assert together == [2]
        assert KILLS.difference(finished / "exp", copy / "exp") is None


def test_what_has_ended_or_diverged_is_left_alone(words, copy, monkeypatch):
    stop(copy, (STEPS, 20))
    first, second = folders(copy)
    (second / "diverged.json").write_text('{"step": 20}')
    configs = configs_of(only_first(words))
    assert unfinished(configs) == configs[:1]
    resumed = []
    monkeypatch.setattr(jobs, "resume_fleet", lambda runs, **_: resumed.append([run.name for run in runs]))
    train_job(configs, show=False)
    assert resumed == [[first.name]]


def test_a_sweep_of_flags_is_shown_and_not_trained_again(words, copy, capsys):
    own = only_first(words)
    assert cli.run(["sweep", *own]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 0 to train" in said
    assert "2 runs of data" in said
    assert re.search(r"page +floq report exp/floq/debug --out report.html", said)
    newer = folders(copy)[0].with_name("sd000_20991231_000000_" + folders(copy)[0].name[-8:])
    shutil.copytree(folders(copy)[0], newer)
    (newer / "summary.json").unlink()  # killed: the older one counts
    assert cli.run(["sweep", *own]) == 0
    assert "2 runs of data" in capsys.readouterr().out
    shutil.rmtree(newer)
    assert len(folders(copy)) == 2
    assert cli.run(["sweep", *own[:-2], "0", "7", "--dry_run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "plan 1 jobs, 1 at once, on this machine" in said
    assert " 1 1 40 plan" in said  # job 1, one run, its steps
    assert len(folders(copy)) == 2


def test_the_board(words, copy, capsys):
    """A job that waits, one that is tried for the second time, one that is done, one that failed."""
    ended = Job("flow steps 2", tuple(configs_of(only_first(words))))
    fresh = configs_of([*words[:-2], "5", "6"])
    others = [Job(f"job {n}", tuple(fresh[2 * n : 2 * n + 2])) for n in range(3)]
    (copy / "cell-1.jsonl").write_text(
        '{"node": "one 12ab", "pid": 1, "time": 100}\n{"node": "two 34cd", "pid": 2, "time": 200}\n{"node": "thr'
    )
    (copy / "cell-2.jsonl").write_text('{"node": "one 12ab", "pid": 3, "time": 100}\n')
    board = Board([others[0], others[1], ended, others[2]], copy, Display())
    board.summarise()
    board.ended(2, Outcome("done"))
    board.ended(3, Outcome("failed", "no such file"))
    board.summarise()
    text = capsys.readouterr().out
    assert "jobs   2 waiting, 2 running; 1 retry; 25% of all steps" in text
    assert "begun   job 2 on two 34cd, try 2: job 1, 2 runs" in text
    assert re.search(r"done +job 3: flow steps 2, TD error [0-9.]+", text)
    assert re.search(r"failed +job 4: job 2, no such file", text)
    assert "jobs   1 waiting, 1 running, 1 done, 1 failed; 1 retry; 25% of all steps" in text


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["--seeds", "0", "--cores_per_cell=2"], "about a Ray cluster: give --address"),
        (["--seeds", "0", "--address=ray://x"], "give auto, local or HOST:PORT"),
        (["--budget=gpu", "--seeds", "0"], "--budget is about experiment files"),
        (["--dry_run", "steps.toml"], "needs its files before the flags: floq sweep steps.toml"),
        (["--agent.alhpa=3"], "did you mean"),
        (["--env_name=pointmaze-mediun-navigate-singletask-v0"], "unknown environment"),
        (["--address=local", "--fleet_size=0"], "fleet_size=0: must be greater than 0"),
        (["--address=local", "--gpus_per_cell=1.5"], "a part of one GPU"),
    ],
)
def test_wrong_flags(own, said, capsys):
    assert cli.run(["sweep", *own]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_without_ray_the_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.run(["sweep", "--seeds", "0", "--address=local"]) == 2
    assert "pip install 'floq[ray]'" in capsys.readouterr().err
