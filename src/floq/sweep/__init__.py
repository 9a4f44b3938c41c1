"""Experiments: plan the runs of a file, train them on this machine or on Ray, compare the groups."""
