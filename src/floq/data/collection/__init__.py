"""Collection of datasets with experts or random actions. No JAX: worker processes import these files."""
