"""Datasets: trajectories on the device, readers of each format, checks, collection."""
