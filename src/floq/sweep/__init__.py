"""Experiments: plan the runs of a file, train them here or on Ray, compare the groups."""
