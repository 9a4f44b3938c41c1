"""Runs on disk: configuration, folder, checkpoints, logs, initial weights, data."""
