"""Actors by name. A new one is a file with the verbs of `base.Actor` and a line here."""

from floq.actors.base import Actor, ActorLoss, Value
from floq.actors.fql import FQLActor, FQLConfig

ACTORS = {"fql": (FQLConfig, FQLActor)}

__all__ = ["ACTORS", "Actor", "ActorLoss", "FQLActor", "FQLConfig", "Value"]
