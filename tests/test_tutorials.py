"""The tutorials run, block by block, as a reader would type them; only the numbers of steps are small."""

import glob
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import MAZE_DATA

import floq
from floq import cli
from floq.actors import ACTORS
from floq.critics import CRITICS
from floq.runs import config

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = [*sorted((DOCS / "tutorials").glob("*.md")), DOCS / "ope.md"]
BLOCK = re.compile(r"(?ms)^```(\w+)\n(.*?)^```$")
FEW: dict[str, int] = {
    **{"offline_steps": 8, "online_steps": 8, "warmup_steps": 40, "log_interval": 4, "eval_interval": 4},
    **{"save_interval": 4, "eval_episodes": 1},
}
ON_REQUEST = {"online_steps", "warmup_steps"}  # only where a tutorial speaks of them


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """In an empty folder. Critics and actors that a tutorial adds are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    configure = config.configure
    monkeypatch.setattr(floq, "configure", lambda *names, **given: configure(*names, **(given | few_of(given))))
    known = [(registry, dict(registry)) for registry in (CRITICS, ACTORS)]
    yield tmp_path
    for registry, before in known:
        registry.clear()
        registry.update(before)


def few_of(given: dict[str, Any]) -> dict[str, int]:
    """The small numbers of steps, for what a tutorial trains."""
    wanted = FEW.keys() - (ON_REQUEST - given.keys())
    return {name: 0 if given.get(name) in (0, "0") else FEW[name] for name in wanted}


def run_command(line: str, dataset_dir: Path) -> None:
    """One line of a shell block."""
    command, *words = shlex.split(line, comments=True)
    assert command == "floq", f"tutorials type floq commands: {line}"
    words = [path for word in words for path in (sorted(glob.glob(word)) if "*" in word else [word])]
    given = dict(re.findall(r"--(\w+)=(\S+)", line))
    if words[0] == "train" and "--resume" in words:
        words.append(f"--online_steps={2 * FEW['online_steps']}")
    elif words[0] == "train":
        words += [f"--{name}={count}" for name, count in few_of(given).items()]
        if not given.keys() & {"dataset"} and given.get("env_name", MAZE_DATA).startswith("pointmaze"):
            words.append(f"--dataset_dir={dataset_dir}")
    elif words[0] == "ope":
        words += [f"--{name}={FEW[name]}" for name in ("offline_steps", "log_interval", "eval_interval")]
    assert cli.run(words) == 0, line


TRAIN_MUCH = {"choosing", "diagnostics", "fine_tuning", "new_critic", "ope", "your_data"}


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_the_blocks_of_a_tutorial_can_be_read(tutorial):
    """Python compiles, and every command is one of floq's."""
    blocks = BLOCK.findall(tutorial.read_text())
    assert blocks
    for language, body in blocks:
        if language == "python":
            compile(body, str(tutorial), "exec")
        else:
            lines = [shlex.split(line, comments=True) for line in body.replace("\\\n", " ").splitlines()]
            assert all(words[0] == "floq" for words in lines), body


@pytest.mark.parametrize(
    "tutorial",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem in TRAIN_MUCH), id=path.stem) for path in TUTORIALS],
)
def test_a_tutorial_runs(tutorial, at_work, dataset_dir):
    run(tutorial.read_text(), tutorial, dataset_dir)


def test_each_format_of_the_tutorial_is_read(at_work, dataset_dir, capsys):
    """The part of it that trains nothing, with fewer episodes."""
    pytest.importorskip("pyarrow", reason="needs floq[tables]")
    tutorial = next(path for path in TUTORIALS if path.stem == "your_data")
    text = tutorial.read_text().partition("## With a simulator")[0]
    for many, few in (("range(40)", "range(4)"), ("== 199, 40)", "== 199, 4)")):
        assert many in text
        text = text.replace(many, few)
    run(text, tutorial, dataset_dir)
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("observations 3 numbers, from") == 5
    assert [shown.count(f"episodes 4, {length} transitions each") for length in (199, 200)] == [2, 3]


def run(text: str, tutorial: Path, dataset_dir: Path) -> None:
    """Run the blocks of a tutorial in one namespace."""
    names = {"__name__": "__main__"}
    for language, body in BLOCK.findall(text[max(0, text.find("## An example")) :]):  # RUN_DIR stands before it
        assert language in ("python", "bash"), language
        if language == "python":
            before = text[: text.index(body)].count("\n")
            exec(compile("\n" * before + body, str(tutorial), "exec"), names)
        else:
            for line in body.replace("\\\n", " ").splitlines():
                run_command(line, dataset_dir)
