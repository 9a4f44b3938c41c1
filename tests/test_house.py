"""Imports between packages go one way, and what worker processes import loads no JAX."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import floq

SRC = Path(__file__).parents[1] / "src" / "floq"
LAYERS = ("utils", "flow networks", "critics actors", "agent", "envs", "data", "evaluation", "runs")
LAYERS += ("analysis export", "training", "sweep", "cli")
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer.split()}
NO_AGENT = {"envs": {"utils", "envs"}, "data": {"utils", "envs", "data"}}  # may import these alone


def imported_packages(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    found = {f"{n.module}.{alias.name}" for n in nodes if isinstance(n, ast.ImportFrom) for alias in n.names}
    found |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("floq.")}


def test_imports_go_one_way():
    for path in SRC.rglob("*.py"):
        own = path.relative_to(SRC).parts[0].removesuffix(".py")
        if own.startswith("__"):
            continue
        allowed = NO_AGENT.get(own, {package for package, rank in RANK.items() if rank <= RANK[own]})
        assert imported_packages(path) <= allowed, f"{path.relative_to(SRC)} imports what lies above it"


def test_what_a_critic_can_show_is_asked_of_the_critic():
    """Elsewhere than in critics/, a new critic would not be known by its class."""
    for path in SRC.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        kinds = [ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) in ("isinstance", "issubclass")]
        assert path.is_relative_to(SRC / "critics") or not [kind for kind in kinds if "Critic" in kind], path


def test_what_an_observation_is_goes_by_its_specification():
    """Not by a number, which an image does not have."""
    for path in SRC.rglob("*.py"):
        arguments = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)]
        hints = {node.arg: ast.unparse(node.annotation) for node in arguments if node.annotation}
        assert not [name for name, hint in hints.items() if hint == "int" and name.startswith("obs")], path


def test_every_entry_has_its_place():
    entries = {path.name for path in SRC.iterdir() if path.name != "__pycache__"}
    assert {name.removesuffix(".py") for name in entries} == {*RANK, "__init__", "__main__", "py.typed"}


STEPS_ENVIRONMENTS = ("envs.vector", "data.collection.random_play", "data.collection.collect")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [(module, {"jax", "mujoco", "glfw", "OpenGL", "matplotlib"}) for module in STEPS_ENVIRONMENTS]
    + [("training.train", {"mujoco", "glfw", "OpenGL", "matplotlib", "scipy.stats", "h5py"})],
)
def test_what_does_not_wait_for_heavy_libraries(module, heavy):
    """What steps environments knows neither JAX nor a renderer; a training begins before it draws."""
    code = f"import sys, floq.{module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "set()\n"


def test_modules_that_users_name_keep_their_names():
    for alias, name in floq._ALIASES.items():
        assert importlib.import_module(alias) is importlib.import_module(name)
        assert importlib.import_module(name).__spec__.name == name
    assert importlib.import_module("floq.config").LearningSettings
    assert callable(floq.train)
