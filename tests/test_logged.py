"""What runs log is what the documentation explains: every name, and no other."""

import re
from pathlib import Path

import jax
import pytest
from helpers import ACT, OBS, agent_config, make_batch

from floq.actors import ACTORS
from floq.agent.agent import Agent
from floq.agent.config import AgentConfig
from floq.critics import CRITICS
from floq.evaluation.held_out import HeldOutEvaluation
from floq.training.online import STATISTICS

DOCS = Path(__file__).parents[1] / "docs"


def explained(page: str, kind: str) -> set[str]:
    """The metrics of one kind in the first columns of a page's tables."""
    firsts = re.findall(r"(?m)^\| (`[^|]*) \|", (DOCS / page).read_text())
    return {name for first in firsts for name in re.findall(r"`([\w./]+)`", first) if name.startswith(kind)}


def logged(config: AgentConfig) -> set[str]:
    """The metrics of an agent, steps counted as i; nothing is computed."""

    def everything():
        agent = Agent.init(jax.random.key(0), OBS, ACT, config)
        batch = make_batch() | {"next_actions": make_batch()["actions"], "terminals": make_batch()["masks"]}
        batch |= {} if config.learns_policy else {"policy_actions": make_batch()["actions"][:, None]}
        return agent.evaluate_loss(batch, jax.random.key(1)) | agent.diagnose(batch, jax.random.key(2))

    return {re.sub(r"_\d+$", "_i", name) for name in jax.eval_shape(everything)}


@pytest.mark.parametrize("critic", CRITICS)
def test_a_critics_page_explains_what_it_logs(critic):
    names = {name for name in logged(agent_config(critic=CRITICS[critic][0]())) if name.startswith("critic/")}
    assert explained("critics.md", "critic/") | explained(f"critics/{critic}.md", "critic/") == names


@pytest.mark.parametrize("actor", ACTORS)
def test_an_actors_page_explains_what_it_logs(actor):
    names = {name for name in logged(agent_config(actor=ACTORS[actor][0]())) if name.startswith("actor/")}
    assert explained("critics.md", "actor/") | explained(f"actors/{actor}.md", "actor/") == names


def test_the_other_columns_are_explained(run_dir):
    kinds = ("time/", "evaluation/", "exploration/")
    known = set().union(*(explained("critics.md", kind) for kind in kinds))
    headers = [(run_dir / name).read_text().splitlines()[0].split(",") for name in ("train.csv", "eval.csv")]
    written = {name for header in headers for name in header if name.startswith(kinds)}
    assert known == written | set(STATISTICS) | set(HeldOutEvaluation(0, 0.0, 0.0, 0.0).summary())
    unprefixed = {name for header in headers for name in header} - written
    assert {name.split("/")[0] for name in unprefixed} == {"step", "training", "validation"}


@pytest.mark.parametrize(
    "part", [*(f"critics/{name}.md" for name in CRITICS), *(f"actors/{name}.md" for name in ACTORS)]
)
def test_the_settings_of_a_page_exist(part):
    kind, name = Path(part).parent.name, Path(part).stem
    settings = {**CRITICS, **ACTORS}[name][0] if kind == "critics" or name not in CRITICS else ACTORS[name][0]
    text = (DOCS / part).read_text()
    table = text[text.index("| setting ") :].split("\n\n")[0]
    for first in re.findall(r"(?m)^\| (`[^|]*) \|", table):
        for setting in re.findall(r"`(\w+)`", first):
            assert setting in settings.__dataclass_fields__, setting
