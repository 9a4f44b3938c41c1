"""Spaces of observations as an `ObsSpec`: named parts in one order, in data and in environments alike, and a vector if
none is an image. Actions in [-1, 1], and checks of what environments return, which others wrote: messages name what was
wrong.

Gymnasium keeps the order in which a Dict was written, or sorts it, depending on how it was written; Minari's files sort
it. Here the parts of a Dict are in the order of their names, whoever wrote it, and those of a Tuple in their own.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from floq.utils.errors import UserError
from floq.utils.obs_spec import IMAGE, ObsSpec, channels_first

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
    size = lambda part: "x".join(map(str, part.shape)) if is_image(part) else spaces.flatdim(part)  # noqa: E731
    return tuple(f"{'/'.join(map(str, path))} ({size(part)})" for path, part in leaves(space, source) if path)


def check_same_parts(ours: Sequence[str], theirs: Sequence[str], source: object, whose: object) -> None:
    """Raise UserError if both sides name the parts of their observations, and differ."""
    if ours and theirs and list(ours) != list(theirs):
        raise UserError(
            f"{source}: observations are {', '.join(ours)}; those of {whose} are {', '.join(theirs)}: a policy would "
            "take one for the other"
        )


def is_image(space: spaces.Space) -> bool:
    """Return whether a part is an image, of uint8 and of shape (H, W, C)."""
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3


def obs_spec(space: spaces.Space, source: object) -> ObsSpec:
    """Return what an observation of a space is: a vector of all its parts if none is an image, and otherwise each part
    by its name. Raises UserError if a part is not numeric, or an image has its channels first."""
    parts: dict[str, tuple[int, ...]] = {}
    for path, part in leaves(space, source):
        shape = tuple(part.shape or ()) if is_image(part) else (spaces.flatdim(part),)
        if len(shape) == 3 and channels_first(shape):
            raise UserError(
                f"{source}: {describe(path)} is an image of shape {shape}, channels first: floq takes (H, W, C), "
                "transpose it (gymnasium.wrappers.TransformObservation)"
            )
        parts[part_name(path)] = shape
    return ObsSpec.of(parts if any(len(shape) == 3 for shape in parts.values()) else spaces.flatdim(space))


def part_name(path: PartPath) -> str:
    """Return the name of a part in an `ObsSpec`."""
    return "/".join(map(str, path)) or IMAGE


def flatten(space: spaces.Space, arrays: Mapping[PartPath, Any], source: object) -> np.ndarray:
    """Lay the parts of many observations, `arrays` with a row for each, end to end in an array of shape (rows, size),
    as `gymnasium.spaces.flatten` does with one observation of `space`, or in records if there are images. Raises
    UserError if an array contradicts its space in shape or type, or rows differ in number."""
    spec, parts = obs_spec(space, source), list(leaves(space, source))
    columns = [_rows(part, arrays[path], f"{source}: {describe(path)}") for path, part in parts]
    if len({len(column) for column in columns}) != 1:
        raise UserError(f"{source}: the parts of an observation are not equally long")
    if spec.is_vector:
        return columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
    records = np.empty(len(columns[0]), spec.record)
    for (path, _), column in zip(parts, columns, strict=True):
        records[part_name(path)] = column
    return records


def check_array(space: spaces.Space, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    """Raise UserError if rows of this shape and type are not what their space says."""
    if not shape:
        raise UserError(f"{where} are a single number")
    wanted, kind = space.shape or (), np.dtype(space.dtype)
    is_single = wanted == () and shape[1:] == (1,)
    if (shape[1:] == wanted or is_single) and (kind.kind == "f" or dtype.kind in "biu"):
        return
    raise UserError(
        f"{where} are {dtype} of shape {shape[1:]}, their space says {kind} of shape {wanted}: mend one of them"
    )


def _rows(space: spaces.Space, array: np.ndarray, where: str) -> np.ndarray:
    check_array(space, array.shape, array.dtype, where)
    if is_image(space):
        return array
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


def observation(value: Any, space: spaces.Space, spec: ObsSpec) -> np.ndarray:
    """Return the row of an observation. Raises ValueError if it, or a part of it, is of another shape, or not finite,
    or an image is not of uint8."""
    if spec.is_vector:
        return _vector(value, spec.shape, "its observation")
    parts = {}
    for path, part in leaves(space, ""):
        found: Any = value
        name = describe(path)
        for key in path:
            if not isinstance(found, Mapping | tuple | list) or (isinstance(found, Mapping) and key not in found):
                raise ValueError(f"its observation has no part {name}: it was {_kind(value)}")
            found = found[key]  # pyright: ignore[reportArgumentType, reportCallIssue]
        if is_image(part):
            if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape != part.shape:
                raise ValueError(f"its {name} was {_kind(found)}, and not an image of uint8 of shape {part.shape}")
            parts[part_name(path)] = found
        else:
            numbers: Any = found if isinstance(part, spaces.Box) else spaces.flatten(part, found)
            parts[part_name(path)] = _vector(np.reshape(numbers, -1), (spaces.flatdim(part),), f"its {name}")
    return spec.pack(parts)


def _vector(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    try:
        found = np.array(value, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} was {_kind(value)}, and no array of numbers") from error
    if found.shape != shape:
        raise ValueError(f"{what} had the shape {found.shape}, and not {shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{what} was not finite, in number {int((~np.isfinite(found)).argmax())}")
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
