"""floq: reinforcement learning with a Q-function that is integrated, not looked up.

    import floq
    run = floq.train(floq.configure("pointmaze-medium-navigate-singletask-v0", seed=1))
    print(run.summary["success"])

Names are loaded when they are first used, so that `floq --help` and worker processes do not wait for JAX.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from floq.agent.agent import Agent as Agent
    from floq.agent.config import AgentConfig as AgentConfig
    from floq.data.dataset import Dataset as Dataset
    from floq.runs.config import Config as Config
    from floq.runs.config import configure as configure
    from floq.runs.run import Run as Run
    from floq.training.off_policy import ope as ope
    from floq.training.off_policy import resume_ope as resume_ope
    from floq.training.resume import resume as resume
    from floq.training.train import train as train
    from floq.utils.errors import Failed as Failed
    from floq.utils.errors import Interrupted as Interrupted
    from floq.utils.errors import UserError as UserError

_HOME = {
    "Agent": "agent.agent",
    "AgentConfig": "agent.config",
    "Config": "runs.config",
    "Dataset": "data.dataset",
    "Failed": "utils.errors",
    "Interrupted": "utils.errors",
    "Run": "runs.run",
    "UserError": "utils.errors",
    "configure": "runs.config",
    "ope": "training.off_policy",
    "resume": "training.resume",
    "resume_ope": "training.off_policy",
    "train": "training.train",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'floq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"floq.{_HOME[name]}"), name)
    globals()[name] = value
    return value


_ALIASES = {
    "floq.exported": "floq.export.exported",
    "floq.config": "floq.runs.config",
    "floq.inspect_run": "floq.analysis.inspect_run",
    "floq.data.ogbench": "floq.data.formats.ogbench",
    "floq.data.open": "floq.data.formats.open",
}


class _AliasFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import the modules that users name by the names that they have had since version 0.1."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        real = importlib.util.find_spec(_ALIASES[fullname]) if fullname in _ALIASES else None
        return real and importlib.machinery.ModuleSpec(fullname, self, origin=real.origin)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Any:
        module = importlib.import_module(_ALIASES[spec.name])
        self._spec = module.__spec__
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self._spec  # the import system has just put that of the alias there

    def get_code(self, fullname: str) -> Any:
        """For `python -m`."""
        loader: Any = getattr(importlib.util.find_spec(_ALIASES[fullname]), "loader", None)
        return loader.get_code(_ALIASES[fullname])


sys.meta_path.append(_AliasFinder())
