"""Actors by name. To add one, implement `base.Actor` in a new file and register it here."""

from floq.actors.base import Actor, ActorLoss, Value
from floq.actors.best_of_n import BestOfNActor, BestOfNConfig
from floq.actors.deterministic import DeterministicActor, DeterministicConfig
from floq.actors.fixed import FixedActor, FixedConfig
from floq.actors.fql import FQLActor, FQLConfig
from floq.actors.gaussian import GaussianActor, GaussianConfig

ACTORS = {
    "fql": (FQLConfig, FQLActor),
    "gaussian": (GaussianConfig, GaussianActor),
    "deterministic": (DeterministicConfig, DeterministicActor),
    "best_of_n": (BestOfNConfig, BestOfNActor),
    "fixed": (FixedConfig, FixedActor),
}

__all__ = [
    "ACTORS",
    "Actor",
    "ActorLoss",
    "BestOfNActor",
    "BestOfNConfig",
    "DeterministicActor",
    "DeterministicConfig",
    "FQLActor",
    "FQLConfig",
    "FixedActor",
    "FixedConfig",
    "GaussianActor",
    "GaussianConfig",
    "Value",
]
