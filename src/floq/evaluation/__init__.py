"""Evaluate policies: in seeded episodes, beside the training, on held-out data."""
