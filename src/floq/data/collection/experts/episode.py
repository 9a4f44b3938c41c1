"""Episodes of experts as the arrays of an OGBench file. No JAX in here."""

from typing import Any

import numpy as np

Rows = dict[str, np.ndarray]
DTYPES = {"terminals": bool, "button_states": np.int64}  # of the files; all others are float32


def as_episode(rows: list[dict[str, Any]]) -> Rows:
    """Stack rows, one dictionary each, into arrays by name; the last row is marked terminal."""
    arrays = {key: np.array([row[key] for row in rows], DTYPES.get(key, np.float32)) for key in rows[0]}
    return arrays | {"terminals": np.arange(1, len(rows) + 1) == len(rows)}
