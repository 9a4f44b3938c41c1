"""Environments: made by name, seeded, stepped in worker processes. No JAX at import."""
