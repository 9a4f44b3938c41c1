"""Utilities of all packages: errors, files, untrusted input, settings, progress, signals, the machine."""
