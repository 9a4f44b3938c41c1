"""Critics by name. To add one, implement `base.Critic` in a new file and register it here."""

from floq.critics.base import Critic, PolicyFn, ReturnScale
from floq.critics.categorical import CategoricalConfig, CategoricalCritic
from floq.critics.floq import FloqConfig, FloqCritic
from floq.critics.looped import LoopedConfig, LoopedCritic
from floq.critics.quantile import QuantileConfig, QuantileCritic
from floq.critics.scalar import ScalarConfig, ScalarCritic

CRITICS = {
    "floq": (FloqConfig, FloqCritic),
    "looped": (LoopedConfig, LoopedCritic),
    "scalar": (ScalarConfig, ScalarCritic),
    "quantile": (QuantileConfig, QuantileCritic),
    "categorical": (CategoricalConfig, CategoricalCritic),
}

__all__ = [
    "CRITICS",
    "CategoricalConfig",
    "CategoricalCritic",
    "Critic",
    "FloqConfig",
    "FloqCritic",
    "LoopedConfig",
    "LoopedCritic",
    "PolicyFn",
    "QuantileConfig",
    "QuantileCritic",
    "ReturnScale",
    "ScalarConfig",
    "ScalarCritic",
]
