"""Spaces of observations as vectors: named parts in one order, in data and in environments alike. Actions in [-1, 1],
and checks of what environments return, which others wrote: messages name what was wrong.

Gymnasium keeps the order in which a Dict was written, or sorts it, depending on how it was written; Minari's files sort
it. Here the parts of a Dict are in the order of their names, whoever wrote it, and those of a Tuple in their own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from floq.utils.errors import UserError

PartPath: TypeAlias = tuple[str | int, ...]
"""Names and numbers that lead to a part of an observation; empty if the observation has no parts."""
READ = "floq reads Box, Discrete, MultiDiscrete and MultiBinary, and Dict and Tuple of these; leave that part out"


def ordered(space: spaces.Space) -> spaces.Space:
    """Return the same space with the parts of each Dict in the order of their names, however it was written."""
    if isinstance(space, spaces.Dict):
        return spaces.Dict(OrderedDict((name, ordered(space[name])) for name in sorted(space.spaces)))
    return spaces.Tuple([ordered(part) for part in space]) if isinstance(space, spaces.Tuple) else space


def leaves(space: spaces.Space, source: object, path: PartPath = ()) -> Iterator[tuple[PartPath, spaces.Space]]:
    """Yield the parts of a space in the order in which they lie in a vector. Raises UserError if one is not numeric."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for name, part in named:
            yield from leaves(part, source, (*path, name))
    elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete):
        yield path, space
    else:
        raise UserError(f"{source}: {describe(path)} is {space}: {READ}")


def describe(path: PartPath) -> str:
    """Name a part in messages: `observations/goal`."""
    return "/".join(map(str, ("observations", *path)))


def part_names(space: spaces.Space, source: object) -> tuple[str, ...]:
    """Return the parts as `goal (2)`, with their sizes; none if the observation is a single array."""
    return tuple(f"{'/'.join(map(str, path))} ({spaces.flatdim(part)})" for path, part in leaves(space, source) if path)


def check_same_parts(ours: Sequence[str], theirs: Sequence[str], source: object, whose: object) -> None:
    """Raise UserError if both sides name the parts of their observations, and differ."""
    if ours and theirs and list(ours) != list(theirs):
        raise UserError(
            f"{source}: observations are {', '.join(ours)}; those of {whose} are {', '.join(theirs)}: a policy would "
            "take one for the other"
        )


def flatten(space: spaces.Space, arrays: Mapping[PartPath, Any], source: object) -> np.ndarray:
    """Lay the parts of many observations, `arrays` with a row for each, end to end in an array of shape (rows, size),
    as `gymnasium.spaces.flatten` does with one observation of `space`. Raises UserError if an array contradicts its
    space in shape or type, or rows differ in number."""
    columns = [_rows(part, arrays[path], f"{source}: {describe(path)}") for path, part in leaves(space, source)]
    if len({len(column) for column in columns}) != 1:
        raise UserError(f"{source}: the parts of an observation are not equally long")
    return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)


def check_array(space: spaces.Space, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Raise UserError if rows of this shape and type are not what their space says."""
    if not shape:
        raise UserError(f"{where} are a single number")
    wanted, kind = space.shape or (), np.dtype(space.dtype)
    is_single = wanted == () and shape[1:] == (1,)
    if (shape[1:] == wanted or is_single) and (kind.kind == "f" or dtype.kind in "biu"):
        return
    remedy = picture_remedy(space) or ": mend one of them"
    raise UserError(f"{where} are {dtype} of shape {shape[1:]}, their space says {kind} of shape {wanted}{remedy}")


def picture_remedy(space: spaces.Space) -> str:
    """Return the end of a message about a part that is a picture, empty if it is none."""
    is_picture = space.dtype == np.uint8 and len(space.shape or ()) > 1
    return ": pictures stored as JPEG are not read; collect them with jpeg_encoding=False" if is_picture else ""


def _rows(space: spaces.Space, array: np.ndarray, where: str) -> np.ndarray:
    check_array(space, array.shape, array.dtype, where)
    array = array.reshape(len(array), -1)
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        start, counts = np.ravel(space.start), np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        places = array.astype(int) - start
        if ((places < 0) | (places >= counts)).any():
            raise UserError(f"{where} are not within their space, {space}")
        hot = [places[:, [n]] == np.arange(count) for n, count in enumerate(counts)]
        return np.concatenate(hot, axis=1).astype(np.float32)
    return array


# --- Actions ---


def action_box(space: spaces.Space, env_name: str) -> spaces.Box:
    """Return the space of an environment's actions. Raises UserError if it is not a bounded, one-dimensional Box."""
    if not isinstance(space, spaces.Box) or not space.is_bounded() or len(space.shape) != 1:
        raise UserError(f"{env_name}: floq needs a bounded, one-dimensional Box of actions, this one has {space}")
    limit = np.finfo(space.dtype).max if space.dtype.kind == "f" else 2.0**53
    if max(np.abs(np.concatenate([space.low, space.high]).astype(np.float64))) >= limit:
        raise UserError(
            f"{env_name}: the bounds of its actions are the limits of {space.dtype}, {space}: give it a Box with the "
            "bounds of an action"
        )
    return space


def is_unit(box: spaces.Box) -> bool:
    """Return whether actions of this space are those of [-1, 1], unscaled."""
    return box.dtype.kind == "f" and bool((box.low == -1).all() and (box.high == 1).all())


def unit_to_box(actions: np.ndarray, box: spaces.Box) -> np.ndarray:
    """Scale actions (..., act) from [-1, 1], to which they are clipped, to the bounds of a space; where that has whole
    numbers, to the nearest ones. Raises ValueError if they are not finite, or of another size."""
    if actions.shape[-1:] != box.shape:
        raise ValueError(f"it was sent an action of the shape {actions.shape}, and not {box.shape}")
    if not np.isfinite(actions).all():
        raise ValueError(f"it was sent an action that is not finite: {actions}")
    actions = np.clip(actions, -1, 1)
    if is_unit(box):
        return actions
    low, high, actions = box.low.astype(np.float64), box.high.astype(np.float64), actions.astype(np.float64)
    scaled = low * ((1 - actions) / 2) + high * ((1 + actions) / 2)  # no difference of the bounds: that may overflow
    scaled = scaled if box.dtype.kind == "f" else np.rint(scaled)
    return np.clip(scaled, low, high).astype(box.dtype)


def box_to_unit(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Scale actions (..., act) from the bounds of a space to [-1, 1]; 0 where the bounds coincide."""
    low, high = low.astype(np.float64), high.astype(np.float64)
    center, half = low / 2 + high / 2, high / 2 - low / 2
    return np.where(half > 0, (actions - center) / np.where(half > 0, half, 1), 0.0)


# --- What an environment returns ---


def check_returned(method: str, result: Any, length: int) -> Any:
    """Return what `reset` or `step` returned. Raises ValueError if it has not `length` parts, the last a dictionary."""
    if not isinstance(result, tuple) or len(result) != length or not isinstance(result[-1], dict):
        raise ValueError(f"its {method} returned {_kind(result)}")
    return result


def observation(value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return an observation as float32. Raises ValueError if it is of another shape, or not finite."""
    try:
        found = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"its observation was {_kind(value)}, and no array of numbers") from error
    if found.shape != shape:
        raise ValueError(f"its observation had the shape {found.shape}, and not {shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"its observation was not finite, in number {int((~np.isfinite(found)).argmax())}")
    return found


def reward(value: Any) -> float:
    """Return a reward. Raises ValueError if it is not a finite number."""
    found = _scalar(value)
    if found is None:
        raise ValueError(f"its reward was {_kind(value)}, and no number")
    if not np.isfinite(np.float32(found)):
        raise ValueError(f"its reward was {found}")
    return found


def flag(name: str, value: Any) -> bool:
    """Return a truth value. Raises ValueError if it is none, nor 0 or 1."""
    if (found := _scalar(value)) not in (0, 1):
        raise ValueError(f"its flag {name!r} was {_kind(value)}, and neither true nor false")
    return bool(found)


def success(info: Mapping[str, Any]) -> float:
    """Return the environment's flag of success; NaN if it has none. Raises ValueError if it is not from 0 to 1."""
    for name in ("success", "is_success"):
        if name in info:
            if (found := _scalar(info[name])) is None or not 0 <= found <= 1:
                raise ValueError(f"its info[{name!r}] was {_kind(info[name])}, and neither true nor false")
            return found
    return np.nan


def _scalar(value: Any) -> float | None:
    """Return a single number or truth value; None if it is anything else."""
    array = np.asarray(value) if isinstance(value, bool | int | float | np.generic | np.ndarray) else None
    return float(array) if array is not None and array.shape == () and array.dtype.kind in "biuf" else None


def _kind(value: Any) -> str:
    """Describe a value for messages, shortly."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(part).__name__ for part in value[:8])})"
    if value is None or isinstance(value, str | int | float | np.generic):
        return repr(value)[:80]
    return f"a {type(value).__name__}"
