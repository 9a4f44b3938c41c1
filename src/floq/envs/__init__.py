"""Environments: creation by name, seeding, stepping in worker processes. No JAX at import."""

from floq.envs.environments import make as make
