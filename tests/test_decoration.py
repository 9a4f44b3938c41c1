"""The record before the decoration: pictures and reports that fail at the end of a training cost nothing else."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from online_runs import FLAGS, write_data
from run_folders import make_run

from floq import cli
from floq.analysis import critic_outputs, pictures
from floq.analysis.figures.style import figure
from floq.analysis.report import figures
from floq.evaluation import rollouts
from floq.runs.run import Run

TRAIN = [*FLAGS, "--offline_steps=4", "--eval_interval=2"]


def fail(*_, **__):
    raise ValueError("it cannot be drawn,\nfor $reasons")


CAUSE = "it cannot be drawn, for $reasons"


def one_run(folder):
    (found,) = folder.glob("exp/floq/debug/*/*")
    return found


def test_a_picture_that_fails_is_a_note_and_resume_draws_it(tmp_path, monkeypatch, capsys):
    data = write_data(tmp_path / "choice.npz")
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "draw_learning_curve", fail)
        assert cli.run(["train", *TRAIN, f"--dataset={data}", f"--save_dir={tmp_path / 'exp'}"]) == 0
    folder = one_run(tmp_path)
    picture = folder / "plots" / "learning_curve.png"
    printed = capsys.readouterr()
    assert f"warning no {picture}: {CAUSE}" in printed.out.splitlines()
    assert printed.err == ""
    before = (folder / "summary.json").read_bytes()
    assert json.loads(before)["steps"] == 4
    assert not picture.exists()
    assert cli.run(["train", f"--resume={folder}"]) == 0
    assert "drawing what is missing: learning_curve.png" in capsys.readouterr().out
    assert picture.stat().st_size > 5_000
    assert (folder / "summary.json").read_bytes() == before
    assert cli.run(["train", f"--resume={folder}"]) == 0
    assert "drawing" not in capsys.readouterr().out  # nothing is missing any more


def test_resume_says_why_it_cannot_draw_what_is_missing(held_out_runs, tmp_path, capsys):
    folder = shutil.copytree(held_out_runs[0], tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dataset": str(tmp_path / "gone.npz")}))
    assert cli.run(["train", f"--resume={folder}"]) == 0
    assert f"{tmp_path / 'gone.npz'} is missing, the data of {folder}: " in capsys.readouterr().out


@pytest.mark.parametrize("place", ["plots", "plots/learning_curve.png"])
def test_a_folder_of_pictures_that_cannot_be_written_costs_the_pictures_alone(tmp_path, monkeypatch, capsys, place):
    data, summary = write_data(tmp_path / "choice.npz"), Run.write_json

    def block(run, name, values):
        summary(run, name, values)
        if name == "summary.json":
            shutil.rmtree(run.folder / "plots")
            (run.folder / place).parent.mkdir(exist_ok=True)
            (run.folder / place).touch() if place == "plots" else (run.folder / place).mkdir()

    monkeypatch.setattr(Run, "write_json", block)
    assert cli.run(["train", *TRAIN, f"--dataset={data}", f"--save_dir={tmp_path / 'exp'}"]) == 0
    assert "warning no " in capsys.readouterr().out
    assert (one_run(tmp_path) / "summary.json").exists()


def test_a_result_that_cannot_be_shown_is_a_note(held_out_runs, tmp_path, capsys):
    folder = shutil.copytree(held_out_runs[0], tmp_path / "run")
    (folder / "plots" / "learning_curve.png").touch()
    (folder / "summary.json").write_text('{"updates_per_second": "fast"}')
    assert cli.run(["train", f"--resume={folder}"]) == 0
    assert "warning no table of results: " in capsys.readouterr().out


# --- pictures of inspect, reports ---


def test_inspect_draws_what_it_can(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "draw_settling", fail)
    monkeypatch.setattr(rollouts, "play_episode", fail)
    monkeypatch.setattr("floq.analysis.inspect_run.play", fail)
    monkeypatch.setitem(pictures.PICTURES, "value_map.png", pictures.Picture("the value over the maze", fail))
    assert cli.run(["inspect", str(run_dir), f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"flow.png", "noise.png", "diagnosis.png"}
    for what in (tmp_path / "steps.png", tmp_path / "value_map.png", "episodes"):
        assert f"warning no {what}: {CAUSE}" in printed


@pytest.mark.parametrize("form", ["png", "html"])
def test_a_report_leaves_out_what_fails(form, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "exp")
    monkeypatch.setattr(figures, "_draw_curves", fail)
    out = tmp_path / f"report.{form}"
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={out}"]) == 0
    found = capsys.readouterr().out if form == "png" else out.read_text()
    assert f"{CAUSE}" in found
    assert len(list(tmp_path.glob("report*"))) == (2 if form == "png" else 1)


def test_a_report_with_a_figure_that_fails_as_a_whole(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "exp")
    monkeypatch.setattr(figures, "_note", fail)
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / 'report.png'}"]) == 0
    assert f"left out {tmp_path / 'report-page.png'}: {CAUSE}" in capsys.readouterr().out


def test_a_run_whose_record_is_odd_is_a_row(tmp_path, capsys):
    make_run(tmp_path / "exp")
    odd = make_run(tmp_path / "exp", seed=1, finished=False)
    (odd / "diverged.json").write_text('{"step": 7}')
    assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / 'report.md'}"]) == 0
    assert "diverged at step 7: the update was not finite" in (tmp_path / "report.md").read_text()


def test_data_are_described_without_their_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("floq.analysis.figures.dataset.dataset_picture", fail)
    data = write_data(tmp_path / "choice.npz")
    assert cli.run(["data", "inspect", str(data), f"--out={tmp_path / 'x.png'}"]) == 0
    printed = capsys.readouterr().out
    assert "transitions" in printed
    assert f"warning no {tmp_path / 'x.png'}: {CAUSE}" in printed
    assert cli.run(["data", "inspect", str(data), f"--out={tmp_path / 'x.doc'}"]) == 2
    assert "end it in .png, .pdf, .svg" in capsys.readouterr().err


# --- what Matplotlib could not draw ---

TEXTS = {
    "mathtext that does not parse": r"$x_{$ \frac{",
    "glyphs that no font has": "\u8bed\u8a00 \U0001f600 \u0627\u0644",
    "half a character": "logs-\udcff-\ud800",
    "control characters": "\x00\x07\x1b[31m\u202e",
    "many lines": "a\nb\r\n\tc" + "\n" * 300,
    "very long": "x" * 5_000,
    "hidden": "_x",
    "empty": "",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_any_name_can_be_drawn(text, tmp_path):
    with figure(tmp_path / "x.png", 4, 3) as (fig, (ax,)):
        fig.suptitle(text)
        fig.supxlabel(text)
        (line,) = ax.plot([0, 1], [0, 1], label=text)
        ax.set(title=text, xlabel=text, ylabel=text)
        ax.annotate(text, (0.5, 0.5))
        fig.legend(handles=[line], loc="outside lower center", title=text)
    assert (tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"


def test_any_name_of_a_group_and_a_task_can_be_reported(tmp_path, capsys):
    for seed, name in enumerate(TEXTS.values()):
        make_run(tmp_path / "exp", seed=seed, agent={"note": name}, dataset=name or None)
    for form in ("png", "html"):
        assert cli.run(["report", str(tmp_path / "exp"), f"--out={tmp_path / f'report.{form}'}"]) == 0
        assert ": " not in "".join(x for x in capsys.readouterr().out.splitlines() if x.startswith("left out"))


def test_a_picture_is_whole_or_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="cannot be drawn"), figure(tmp_path / "x.png", 4, 3) as (fig, _):
        monkeypatch.setattr(fig, "savefig", fail)
    assert list(tmp_path.iterdir()) == []


def test_the_grid_of_the_flow_is_evenly_spaced():
    """Between numbers of 32 bits, as paths and targets are, of any size: streamplot refuses others."""
    rng, t = np.random.default_rng(0), np.linspace(0, 1, 5)
    ranges = [(-1.33689555e-05, 1.0537578), (0.0, 0.0), (1e9, 1e9), (-3e7, -3e7 + 2), (1e-30, 2e-30)]
    ranges += [tuple(sorted(10 ** rng.uniform(-3, 6, 2) * rng.choice([-1, 1], 2))) for _ in range(4_000)]
    for low, high in ranges:
        z = critic_outputs.value_grid(np.float32(low), np.float32(high))
        assert z.shape == (critic_outputs.FIELD[1],)
        assert z[0] < np.float32(low) <= np.float32(high) < z[-1]
        assert np.allclose(np.diff(z), (z[-1] - z[0]) / (len(z) - 1))
        assert (np.diff(z) > 0).all()
    for low, high in ranges[:5]:
        z = critic_outputs.value_grid(np.float32(low), np.float32(high))
        plt.streamplot(t, z, np.ones((len(z), 5)), np.ones((len(z), 5)))
    plt.close("all")
