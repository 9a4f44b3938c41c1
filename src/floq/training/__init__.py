"""Train a fleet of runs: set up, loop, online phase, divergence, resume."""
