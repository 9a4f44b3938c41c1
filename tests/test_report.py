"""`floq report` as a user types it, on run folders made up for the purpose."""

import csv
import math
import re
from urllib.parse import unquote

import matplotlib.pyplot as plt
import pytest
from run_folders import TASK, make_run

from floq import cli


@pytest.fixture(scope="module")
def exp(tmp_path_factory):
    """Two critics on two tasks with three seeds, of which one still has to end; one run online with returns, one
    without an environment; one that diverged, one that is damaged; and a name that would break out of a page."""
    root = tmp_path_factory.mktemp("exp")
    for task in (TASK, TASK.replace("-v0", "-task2-v0")):
        for seed in range(3):
            success = [0.0, 0.2 + 0.1 * seed, 0.4 + 0.1 * seed]
            make_run(root, task, seed, success)
            ends = seed < 2 or task == TASK
            make_run(root, task, seed, success[::-1], agent={"critic": "scalar"}, finished=ends, offline_steps=200)
    returns = {"evaluation/success": [math.nan] * 3, "evaluation/episode.return": [-1.0, 20.0, 30.0]}
    make_run(root, "Ant-v5", evaluation=returns, offline_steps=0, online_steps=200, run_group=NASTY)
    make_run(
        root, None, evaluation={"evaluation/td_error": [3.0, 2.0, 1.0]}, dataset="/data/robot.npz", run_group="logs"
    )
    make_run(root, seed=7, diverged=100, run_group="logs")
    (make_run(root, seed=9) / "config.json").write_text("{")
    return root


NASTY = "<b>x, %{y} | `_*[a]"


@pytest.fixture(scope="module")
def page(exp, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "report.html"
    assert cli.run(["report", str(exp), f"--out={path}"]) == 0
    return path


def test_the_page_says_what_was_run(page):
    text = page.read_text()
    for words in (
        "16 runs of Ant-v5, cube-double-play, robot",
        "14 finished, 1 stopped, 1 damaged",
        "floq, scalar",
        "50 episodes, success_timing=post, label_timing=pre",
        "jax 0.10.2",
        "0.50 [0.25, 0.75] (3)",
        "second-hand",
        "74 (VINE)",
        "held-out TD error",
        "diverged at step 100: the loss was not finite",
        "config.json: no JSON",
        "1 not ended",
    ):
        assert words in text, words


def test_the_page_needs_nothing_else(page):
    text = page.read_text()
    assert not re.search(r'(src|href)="(https?:)?//', text)
    assert "<script" not in text
    assert len(page.read_bytes()) < 200_000


def test_the_page_draws_each_task_and_all_together(page):
    figures = re.findall(r'<div class="figures">.*?\n</div>', page.read_text(), re.DOTALL)
    assert [figure.count("<svg") for figure in figures] == [2, 1, 1, 2]  # by metric; averages and profiles
    assert figures[0].count("<path") > 2 * figures[1].count("<path") > 0
    for words in ("cube-double-play-task2", "success rate", "gradient steps", "100%"):
        assert f">{words}</text>" in figures[0]
    assert ">performance profiles</text>" in figures[3]


def test_names_are_text_and_not_code(page):
    assert "<b>x" not in page.read_text()
    assert "&lt;b&gt;x, %{y}" in page.read_text()


def test_links_lead_to_the_runs(page):
    links = set(re.findall(r'href="(\.\./[^"]*)"', page.read_text()))
    assert len(links) == 16
    assert all((page.parent / unquote(link) / "config.json").exists() for link in links)


def test_one_run_alone(tmp_path, capsys):
    folder = make_run(tmp_path, success=[0.3])
    assert cli.run(["report", str(folder), f"--out={tmp_path / 'one.html'}"]) == 0
    assert "read    1 runs in 1 groups: 1 finished" in capsys.readouterr().out
    text = (tmp_path / "one.html").read_text()
    assert "nothing about how other seeds would do" in text
    assert "interquartile" not in text.lower()


def test_a_run_that_has_only_begun(tmp_path):
    folder = make_run(tmp_path, finished=False)
    for name in ("eval.csv", "train.csv"):
        (folder / name).unlink()
    for suffix in ("html", "md", "csv", "png"):
        assert cli.run(["report", str(folder), f"--out={tmp_path / f'r.{suffix}'}"]) == 0
    assert "no evaluation yet (1 run)" in (tmp_path / "r.html").read_text()


def test_markdown(exp, tmp_path):
    assert cli.run(["report", str(exp), f"--out={tmp_path / 'r.md'}"]) == 0
    text = (tmp_path / "r.md").read_text()
    assert r"floq critic, fql actor" not in text
    assert "0.50 [0.25, 0.75] (3)" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) > 8
    for table in tables:  # a bar in a name ends no cell
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_tidy_csv(exp, tmp_path):
    assert cli.run(["report", str(exp), f"--out={tmp_path / 'r.csv'}"]) == 0
    with open(tmp_path / "r.csv", newline="") as file:
        runs = list(csv.DictReader(file))
    with open(tmp_path / "r-evaluations.csv", newline="") as file:
        evaluations = list(csv.DictReader(file))
    assert (len(runs), len(evaluations)) == (15, 45)
    (diverged,) = [run for run in runs if run["diverged_at_step"]]
    assert diverged["seed"] == "7"
    assert {run["state"] for run in runs} == {"finished", "stopped"}
    (ant,) = [run for run in runs if run["task"] == "Ant-v5"]
    assert (ant["success"], ant["episode_return"], ant["agent.critic"]) == ("", "30.0", "floq")
    assert [row["td_error"] for row in evaluations if row["task"] == "robot"] == ["3.0", "2.0", "1.0"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_figures_at_the_width_of_a_paper(exp, tmp_path, suffix):
    assert cli.run(["report", str(exp), f"--out={tmp_path / f'r.{suffix}'}"]) == 0
    files = [tmp_path / f"r-{end}.{suffix}" for end in ("column", "page")]
    if suffix == "png":
        assert [round(plt.imread(file).shape[1] / 300, 1) for file in files] == [3.3, 6.8]
    else:
        widths = [float(re.search(rb"/MediaBox \[ ?0 0 ([\d.]+)", file.read_bytes())[1]) / 72 for file in files]  # type: ignore
        assert widths == pytest.approx([3.3, 6.8], abs=0.01)


def test_of_many_groups_only_the_averages_are_drawn(tmp_path, capsys):
    for alpha in range(10):
        for seed in range(2):
            make_run(tmp_path, seed=seed, agent={"alpha": float(alpha)})
    assert cli.run(["report", str(tmp_path), f"--out={tmp_path / 'r.png'}"]) == 0
    assert "left out curves and profiles of 10 groups, for which there are 8 colours" in capsys.readouterr().out
    assert cli.run(["report", str(tmp_path), f"--out={tmp_path / 'r.md'}", "--reference=alpha=3"]) == 0
    table = (tmp_path / "r.md").read_text().split("## Paired differences in success rate")[1].split("## ")[0]
    assert table.count("| alpha=3 |") == 9
    assert "| alpha=0 | alpha=3 | 0.00 | 1 | 0.00 | 1 | 2 x 1 | 0.50 |" in table


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "which runs? Give their folders, or one above them, before the flags: floq report exp"),
        (["{exp}", "--out=r.docx"], "--out=r.docx: end it in .html, .md, .csv, .png, .pdf"),
        (["{exp}", "--out=r.png", "--format=md"], "--out=r.png with --format=md: give one of them, or let them agree"),
        (["{exp}", "--out={exp}", "--format=md"], None),
        (["{exp}", "--reference=nobody"], "--reference=nobody: choose one of "),
        (["{exp}", "--outt=r.md"], "unknown flag --outt"),
        (["{exp}", "--out=/proc/none/r.md"], "cannot write to /proc/none: give another --out"),
        (["{exp}/nothing"], "nothing is not there: give run folders"),
    ],
)
def test_wrong_input_is_one_line(exp, tmp_path, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exp.md").mkdir()
    words = [word.replace("{exp}", "exp.md" if word.startswith("--out") else str(exp)) for word in words]
    assert cli.run(["report", *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (complaint or "--out=exp.md is a folder: name a file in it") in said
    assert [path.name for path in tmp_path.iterdir()] == ["exp.md"]


def test_no_file_of_a_run_is_overwritten(tmp_path, capsys):
    folder = make_run(tmp_path)
    before = (folder / "train.csv").read_text()
    assert cli.run(["report", str(tmp_path), f"--out={folder / 'train.csv'}"]) == 2
    assert "lies in the folder of a run" in capsys.readouterr().err
    assert (folder / "train.csv").read_text() == before


def test_only_damaged_runs(tmp_path, capsys):
    (make_run(tmp_path) / "config.json").write_text("{")
    assert cli.run(["report", str(tmp_path), f"--out={tmp_path / 'r.html'}"]) == 2
    assert re.search(r"none of 1 runs can be read; .*config\.json: no JSON", capsys.readouterr().err)
