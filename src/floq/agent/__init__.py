"""Agents: a critic and an actor in one pytree. Pure functions: no disk, no environment, no clock."""
