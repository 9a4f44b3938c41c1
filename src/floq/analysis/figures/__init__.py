"""Figures, one kind per file. They take arrays and need no agent."""
