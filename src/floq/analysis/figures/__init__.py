"""Figures, one kind a file. They take arrays and know no agent."""
