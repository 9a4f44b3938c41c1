"""Analyse runs and agents: statistics, cost, figures, reports."""
