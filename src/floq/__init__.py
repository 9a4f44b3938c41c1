"""floq: reinforcement learning with a Q-function that is integrated, not looked up.

    import floq
    run = floq.train(floq.configure("pointmaze-medium-navigate-singletask-v0", seed=1))
    print(run.summary["success"])

Names are loaded when they are first used, so that `floq --help` and worker processes do not wait for JAX.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from floq.agent import Agent as Agent
    from floq.config import AgentConfig as AgentConfig
    from floq.config import Config as Config
    from floq.data.transitions import Dataset as Dataset
    from floq.errors import Failed as Failed
    from floq.errors import Interrupted as Interrupted
    from floq.errors import UserError as UserError
    from floq.presets import configure as configure
    from floq.resuming import resume as resume
    from floq.run import Run as Run
    from floq.train import train as train

_HOME = {
    "Agent": "agent",
    "AgentConfig": "config",
    "Config": "config",
    "Dataset": "data.transitions",
    "Failed": "errors",
    "Interrupted": "errors",
    "Run": "run",
    "UserError": "errors",
    "configure": "presets",
    "resume": "resuming",
}
__all__ = [*sorted(_HOME), "train"]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'floq' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"floq.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    """Keeps `floq.train` the function, though importing the module of that name would put the module there."""

    @property
    def train(self) -> Any:
        return importlib.import_module("floq.train").train

    @train.setter
    def train(self, module: Any) -> None:
        """Ignore what the import system wants to put here."""


sys.modules[__name__].__class__ = _Package
