"""Formats of datasets by name. To add one, write a module with these and register it here.

`SUFFIXES`: of its files, a folder of which is as good as one.
`OPTIONS`: the fields of `DataOptions` that are for this format alone.
`takes(path: Path) -> bool`: whether a path, which need not exist, is of this format.
`read(path: Path, options: DataOptions) -> OpenedDataset`: its trajectories, with actions as they are stored where
options change them. Raises UserError if it is missing, damaged or wrong.

Rewards of tasks, units of actions and splits are common to all formats (`open.py`); files may be hostile (`files.py`).
"""

from typing import Any

from floq.data.formats import d4rl, lerobot, minari, npz, robomimic, tables

READERS: dict[str, Any] = {
    "Minari": minari,
    "LeRobot": lerobot,
    "robomimic": robomimic,
    "D4RL": d4rl,
    "table": tables,
    "npz": npz,
}
"""The first that takes a path reads it."""
