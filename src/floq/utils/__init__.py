"""Errors, files, untrusted input, settings, progress, signals, the machine: what every other package may use."""
