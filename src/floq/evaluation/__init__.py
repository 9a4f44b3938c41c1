"""Evaluation of policies: in seeded episodes, in the background of training, on held-out data."""
