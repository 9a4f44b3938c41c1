"""Datasets: trajectories on the device, readers of all formats, checks, collection."""
