"""Formats of datasets by name. To add one, write a module with two functions and register it here.

`takes(path: Path) -> bool`: whether a path, which need not exist, is of this format.
`read(path: Path) -> OpenedDataset`: its trajectories. Raises UserError if it is missing, damaged or wrong.

Rewards of tasks, units of actions and splits are common to all formats (`open.py`); files may be hostile (`files.py`).
"""

from typing import Any

from floq.data.formats import d4rl, minari, npz

READERS: dict[str, Any] = {"D4RL": d4rl, "Minari": minari, "npz": npz}
"""The first that takes a path reads it."""
