"""Validation of data before it is used, with messages that say how to correct it."""

from collections.abc import Mapping

import numpy as np

from floq.utils.errors import UserError

VECTORS = (
    "rewards",
    "masks",
    "terminals",
    "terminations",
    "timeouts",
    "ends",
)  # arrays with one number per row; all others have several

CLIPPABLE = 1.01  # actions up to here can only be rounded or noisy ones of [-1, 1]


def check_rows(arrays: Mapping[str, np.ndarray], source: str = "the dataset") -> None:
    """Check arrays that hold one row per state.

    Args:
        arrays: by key. Those in `VECTORS` must have shape (rows,), the others (rows, size).
        source: where they come from, for the message.

    Raises:
        UserError: an array is not numeric, has the wrong number of dimensions or another length, or is not finite.
    """
    for key, x in arrays.items():
        if x.dtype.kind not in "biuf":
            raise UserError(f"{source}: {key} holds {x.dtype}, not numbers")
        wanted = "(rows,)" if key in VECTORS else "(rows, size)"
        if x.ndim != (1 if key in VECTORS else 2):
            raise UserError(f"{source}: {key} has shape {x.shape}, it must be {wanted}")
    lengths = {key: len(x) for key, x in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"{source}: all arrays must have equally many rows, but they have: {listed}")
    if not all(lengths.values()):
        raise UserError(f"{source}: there are no rows")
    for key, x in arrays.items():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1)
        if bad.any():
            raise UserError(
                f"{source}: {key} is not finite in {bad.sum()} of {len(x)} rows, the first is row {bad.argmax()}"
            )


def check_widths(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, int], source: str, task: str) -> None:
    """Check that each array in `wanted` exists, and has that many numbers per row, as `task` needs.

    Raises:
        UserError: one is missing, or has another number.
    """
    for key, width in wanted.items():
        if key not in arrays:
            raise UserError(f"{source} lacks {key}, which the rewards of {task} are computed from")
        if arrays[key].shape[1] != width:
            raise UserError(f"{source}: {key} has {arrays[key].shape[1]} numbers per row, {task} has {width}")


def check_actions(actions: np.ndarray, source: str) -> None:
    """Check that actions are continuous and lie in [-1, 1].

    Raises:
        UserError: they are integers, or one lies outside.
    """
    if actions.dtype.kind != "f":
        raise UserError(f"{source}: actions holds {actions.dtype}; floq needs continuous actions, as floats in [-1, 1]")
    outside = (np.abs(actions) > 1 + 1e-6).any(axis=1)
    if outside.any():
        row, most = outside.argmax(), np.abs(actions).max()
        remedy = "clip them"
        if most >= CLIPPABLE:
            remedy += " if that is noise, or rescale them as the environment's, as --action_units=env does"
        raise UserError(
            f"{source}: actions lie outside [-1, 1] in {outside.sum()} of {len(actions)} rows, the first is row {row} "
            f"({np.abs(actions[row]).max():.7g}), the largest {most:.7g}: {remedy}"
        )
