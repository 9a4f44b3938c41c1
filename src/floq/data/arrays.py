"""Trajectories as NumPy arrays, the common output of all readers: conversion, checks, and splits for validation."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq.data.storage import RowStore, empty_array
from floq.utils.errors import UserError
from floq.utils.obs_spec import IMAGE, ObsSpec, channels_first

EPISODE_KEYS = ("observations", "actions", "rewards", "terminations")
NAMES = {"obs": "observations", "next_obs": "next_observations", "acts": "actions", "rews": "rewards"}
NAMES |= {"truncations": "timeouts", "truncated": "timeouts"}
"""floq's names of arrays that Gymnasium, Stable-Baselines3 and imitation call otherwise."""
TERMINATIONS = ("terminations", "terminated")
ENDS = "terminals", "dones", "done"  # time-outs too, but for the `terminals` of flat arrays, as D4RL has them
OTHER_NAMES = (*NAMES, *TERMINATIONS, *ENDS)
VECTORS = (*TERMINATIONS, *ENDS, "rewards", "masks", "timeouts", "ends")  # keys with one number per row
CLIPPABLE = 1.01  # actions up to here can only be rounded or noisy ones of [-1, 1]
OBSERVATIONS = ("observations", "next_observations")
PIECE = 4096  # rows that are handled at once
HOLD_OUT_EVERY = 20  # one episode in this many is held out for validation


class Trajectories(NamedTuple):
    """Concatenated trajectories, one row per state; the last row of each carries only an observation.

    observations: vectors (rows, dim), or (rows,) records of named parts (`ObsSpec.record`) where some are images.
    masks: 0 where the transition that starts here ends in a true termination. ends: true at each last row.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    ends: np.ndarray

    @property
    def dims(self) -> tuple[ObsSpec, int]:
        """What an observation is, and the action dimension."""
        return ObsSpec.of_rows(self.observations), self.actions.shape[1]


class OpenedDataset(NamedTuple):
    """A dataset as a reader returns it.

    has_rewards: whether rewards and masks are valid; otherwise a task may compute them from `state`, more arrays with a
    row per state. file: the path, if NAME-val beside it may hold validation data. parts: of the observations, where
    they have names. scaled: whether actions were scaled to [-1, 1] from bounds that the dataset states. held_out: true
    in each row of a trajectory for validation, if the dataset says which are. score_range: returns that stand for the
    scores 0 and 100, if it carries them. notes: lines on how it was read.
    """

    data: Trajectories
    has_rewards: bool
    source: str
    file: Path | None = None
    parts: tuple[str, ...] = ()
    scaled: bool = False
    state: Mapping[str, np.ndarray] = {}
    held_out: np.ndarray | None = None
    score_range: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()


# --- Conversion ---


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    next_observations: Any = None,
    source: str = "the dataset",
    any_actions: bool = False,
) -> Trajectories:
    """Build trajectories from flat arrays with one row per transition, episodes one after another (D4RL's layout).

    Args:
        observations: shape (transitions, size); uint8 of shape (transitions, H, W, C) for images; or a mapping from
            names to such arrays.
        actions: shape (transitions, size), in [-1, 1].
        rewards: shape (transitions,).
        terminals: shape (transitions,), true where the transition ends in a true termination.
        timeouts: shape (transitions,), true where an episode was truncated. The last row always ends an episode.
        next_observations: as `observations`. Without it, a transition's next observation is the next row's
            observation, the last transition of a truncated episode is left out since it has none, and `timeouts` are
            required. With it, no transition is lost, and a new trajectory begins wherever it differs from the next
            row's observation, so that transitions may be in any order.
        source: where the arrays come from, for messages.
        any_actions: accept actions outside [-1, 1], which are scaled or clipped later.

    A column, of shape (transitions, 1), is as good as a vector.

    Raises:
        UserError: shapes or lengths are wrong, a number is not finite, an action lies outside [-1, 1], or the ends of
            episodes are not given.
    """
    given = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": next_observations,
    }
    arrays = {key: to_array(x, key, source) for key, x in given.items() if x is not None}
    check_rows(arrays, source)
    if not any_actions:
        check_actions(arrays["actions"], source)
    if timeouts is None and next_observations is None:
        raise UserError(
            f"{source} has neither timeouts nor next_observations: give timeouts, true where an episode was cut off "
            "and zeros if none was, or the end of one episode would run into the start of the next"
        )
    obs, terminated = arrays["observations"], arrays["terminals"].astype(bool)
    truncated = arrays["timeouts"].astype(bool) if "timeouts" in arrays else np.zeros(len(obs), bool)
    truncated[-1:] = True
    if "next_observations" in arrays:
        next_obs = arrays["next_observations"]
        if next_obs.shape != obs.shape or ObsSpec.of_rows(next_obs) != ObsSpec.of_rows(obs):
            raise UserError(
                f"{source}: next_observations has shape {next_obs.shape}, observations {obs.shape}"
                if obs.dtype.fields is None
                else f"{source}: next_observations are {ObsSpec.of_rows(next_obs)}, observations {ObsSpec.of_rows(obs)}"
            )
        truncated[:-1] |= _differ(next_obs[:-1], obs[1:])
        closed = terminated | truncated
    else:
        next_obs = obs  # a last state that was not recorded; it follows a termination, so it is never evaluated
        closed = terminated
    # After each row in `closed` a row is inserted that carries the trajectory's last state.
    order = np.repeat(np.arange(len(obs)), 1 + closed)
    inserted = np.diff(order, prepend=-1) == 0
    states = take(obs, order)
    for rows in np.array_split(np.flatnonzero(inserted), 1 + inserted.sum() // PIECE):
        states[rows] = next_obs[order[rows]]
    data = Trajectories(
        states,
        arrays["actions"][order],
        arrays["rewards"][order],
        1.0 - terminated[order],
        inserted | (truncated & ~closed)[order],
    )
    return check_transitions(data, source)


def from_episodes(
    episodes: Iterable[Mapping[str, Any]],
    source: str = "the dataset",
    names: Sequence[str] = (),
    any_actions: bool = False,
) -> Trajectories:
    """Build trajectories from one mapping per episode of T transitions.

    Args:
        episodes: each has `observations` of shape (T + 1, size), the last state included, or (T, size) where it is
            unknown: then the last transition is left out, unless it terminates; `actions` (T, size) in [-1, 1];
            `rewards` (T,); and `terminations`, one bool or (T,), true where a transition ends in a true termination.
            Without `terminations`, episodes are assumed to be truncated. Other names are understood, see
            `standard_names`.
        source: where they come from, for messages.
        names: those of the episodes, such as their files; by default their numbers.
        any_actions: accept actions outside [-1, 1], which are scaled or clipped later.

    Raises:
        UserError: as `from_arrays`, naming the episode; or an episode is empty, or lacks an array.
    """
    labels: list[str] = []

    def parts() -> Iterator[Trajectories]:
        for number, episode in enumerate(episodes):
            labels.append(names[number] if names else f"episode {number}")
            yield _from_episode(episode, f"{source}, {labels[-1]}", any_actions)

    return check_transitions(concatenate(parts(), labels, source), source)


def concatenate(parts: Iterable[Trajectories], labels: Sequence[str], source: str) -> Trajectories:
    """Join trajectories, of which one at a time is in memory if they do not fit together. Raises UserError if there are
    none, or a part, named in `labels`, has other sizes."""
    observations, kept = RowStore(source), []
    for part in parts:
        observations.append(part.observations)
        kept.append(part._replace(observations=part.observations[:0].copy()))
    if not (parts := kept):
        raise UserError(f"{source} has no episodes")
    for number, what in enumerate(("observations", "actions")):
        sizes = [part.dims[number] if number == 0 else f"{part.dims[1]} numbers" for part in parts]
        odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), 0)
        if odd:
            raise UserError(f"{source}: {what} have {sizes[0]} in {labels[0]} and {sizes[odd]} in {labels[odd]}")
    others = (np.concatenate(x) for x in list(zip(*parts, strict=True))[1:])
    return Trajectories(observations.joined(), *others)


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate arrays, see `empty_array`."""
    rows = sum(map(len, parts))
    return np.concatenate(parts, out=empty_array((rows, *parts[0].shape[1:]), np.result_type(*parts)))


def standard_names(arrays: Mapping[str, Any], source: str, terminations: str = "terminations") -> dict[str, Any]:
    """Return arrays by floq's names, from those of Gymnasium, Stable-Baselines3 and imitation. True terminations are
    called `terminations`; `dones`, which mark time-outs too, become these where the time-outs are given.

    Raises:
        UserError: two arrays are the same, or `dones` are given without time-outs.
    """
    found: dict[str, Any] = {}
    for key, x in arrays.items():
        name = terminations if key in TERMINATIONS else NAMES.get(key, key)
        if name in found:
            raise UserError(f"{source} has {name} twice, the second time as {key!r}: leave one out")
        found[name] = x
    either = [key for key in ENDS if key in found]
    if either and terminations not in found:
        if "timeouts" not in found:
            raise UserError(
                f"{source} has {either[0]!r} but no {terminations!r}: rename it if it marks true terminations only, "
                "and if it marks time-outs too, give those as 'truncations' beside it"
            )
        ends = {key: to_array(found[key], key, source) for key in (either[0], "timeouts")}
        check_rows(ends, source)
        found[terminations] = ends[either[0]].astype(bool) & ~ends["timeouts"].astype(bool)
    return found


def _from_episode(episode: Mapping[str, Any], name: str, any_actions: bool) -> Trajectories:
    """Make a trajectory of one episode. It is not divided at a termination: OGBench's episodes continue after one."""
    episode = standard_names(episode, name)
    missing = [key for key in EPISODE_KEYS[:3] if key not in episode]
    if missing:
        raise UserError(f"{name} lacks {', '.join(missing)}")
    obs, act, rew = (to_array(episode[key], key, name) for key in EPISODE_KEYS[:3])
    length = len(act) if act.ndim else 0
    if not length:
        raise UserError(f"{name} is empty: leave it out")
    if len(obs) not in (length, length + 1):
        raise UserError(f"{name} has {len(obs)} observations for {length} actions: it needs {length + 1}")
    ended = to_array(episode.get("terminations", False), "terminations", name)
    if ended.ndim == 0:
        ended = ended & (np.arange(length) == length - 1)
    check_rows({"observations": obs}, name)
    check_rows({"observations": obs[:length], "actions": act, "rewards": rew, "terminations": ended}, name)
    if not any_actions:
        check_actions(act, name)
    ended = ended.astype(bool)
    if len(obs) == length and ended[-1]:
        obs = np.concatenate([obs, obs[-1:]])  # a last state that was not recorded; it follows a termination
    rows = np.minimum(np.arange(len(obs)), length - 1)
    return Trajectories(obs, act[rows], rew[rows], 1.0 - ended[rows], np.arange(len(obs)) == len(obs) - 1)


def to_array(x: Any, key: str, source: str) -> np.ndarray:
    """Return an array that was given under the name `key`; a column of shape (rows, 1) as a vector, where one number
    per row is meant; observations that are images, or a mapping of parts, as records. Raises UserError if it is none,
    or a part is neither a vector nor an image of uint8."""
    if key in OBSERVATIONS and isinstance(x, Mapping):
        return records({name: to_array(part, f"{key}/{name}", source) for name, part in x.items()}, source)
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise UserError(f"{source}: {key} is not an array of numbers ({error})") from error
    if key in OBSERVATIONS and array.ndim == 4:
        return records({IMAGE: array}, source)
    if key in OBSERVATIONS and array.dtype.names:
        parts = lambda rows: {name: rows[name] for name in array.dtype.names or ()}  # noqa: E731
        ours = records(parts(array[:0]), source).dtype
        return array if ours == array.dtype else records(parts(array), source)
    if key in VECTORS and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    return array.astype(np.float32) if array.dtype == bool and key.partition("/")[0] in OBSERVATIONS else array


def records(parts: Mapping[str, np.ndarray], source: str) -> np.ndarray:
    """Return observations that consist of named parts, each with a row per state, as records; without images among them
    as vectors, end to end in the order of their names. Raises UserError if a part is neither a vector nor an image of
    uint8, or they differ in length."""
    if not parts:
        raise UserError(f"{source}: observations has no parts")
    parts = {name: x[:, None] if x.ndim == 1 else x for name, x in sorted(parts.items())}
    for name, x in parts.items():
        is_image = x.ndim == 4
        if x.dtype.kind not in "biuf" or x.ndim not in (2, 4):
            raise UserError(
                f"{source}: observations/{name} holds {x.dtype} of shape {x.shape}: a part is a vector of numbers "
                "(rows, size), or an image of uint8 (rows, H, W, C)"
            )
        if is_image and x.dtype != np.uint8:
            raise UserError(f"{source}: observations/{name} are images of {x.dtype}: give uint8, from 0 to 255")
        if is_image and channels_first(x.shape[1:]):
            raise UserError(
                f"{source}: observations/{name} has the shape {x.shape}, channels first: give (rows, H, W, C)"
            )
    lengths = {name: len(x) for name, x in parts.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UserError(f"{source}: the parts of an observation are not equally long: {listed}")
    if all(x.ndim == 2 for x in parts.values()):
        return np.concatenate(list(parts.values()), axis=1)
    spec = ObsSpec.of({name: x.shape[1:] for name, x in parts.items()})
    count, first = next((len(x), x) for x in parts.values())
    if len(parts) == 1 and isinstance(first, np.memmap):  # pixels alone are records already
        return first.reshape(count, spec.record.itemsize).view(spec.record)[:, 0]
    found = empty_array((count,), spec.record, source)
    for name, x in parts.items():
        with np.errstate(over="ignore"):
            found[name] = x
    return found


def _to_float32(x: np.ndarray) -> np.ndarray:
    if x.dtype.fields is not None:
        return x
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def _differ(observations: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return in which rows observations differ, (rows,)."""
    rows_of = lambda x: ObsSpec.of_rows(x).to_rows(_to_float32(x))  # noqa: E731
    found = np.zeros(len(observations), bool)
    for first in range(0, len(found), PIECE):
        piece = slice(first, first + PIECE)
        found[piece] = (rows_of(observations[piece]) != rows_of(others[piece])).any(axis=1)
    return found


def take(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the rows with these numbers, or where a mask is true, as a new array, see `empty_array`."""
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    return np.take(x, rows, axis=0, out=empty_array((len(rows), *x.shape[1:]), x.dtype), mode="clip")


def as_float32(data: Trajectories, source: str) -> Trajectories:
    """Return trajectories as 32-bit floats. Raises UserError if a number is not finite as one."""
    data = Trajectories(*(x if x.dtype == bool else _to_float32(x) for x in data))
    check_rows(data._asdict(), f"{source}, as 32-bit floats")
    return data


# --- Checks ---


def check_rows(arrays: Mapping[str, np.ndarray], source: str = "the dataset") -> None:
    """Check arrays with one row per state: those in `VECTORS` have shape (rows,), the others (rows, size), or are
    records. Raises UserError if one is not numeric, has the wrong number of dimensions or another length, or is not
    finite."""
    arrays = dict(arrays)
    for key, x in list(arrays.items()):
        if key in OBSERVATIONS and x.dtype.fields is not None:
            del arrays[key]
            arrays |= {f"{key}/{name}": x[name].reshape(len(x), -1) for name in x.dtype.fields}
    for key, x in arrays.items():
        if x.dtype.kind not in "biuf":
            raise UserError(f"{source}: {key} holds {x.dtype}, not numbers")
        if x.ndim != (1 if key in VECTORS else 2):
            wanted = "(rows,)" if key in VECTORS else "(rows, size)"
            raise UserError(f"{source}: {key} has shape {x.shape}, it must be {wanted}")
    lengths = {key: len(x) for key, x in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise UserError(f"{source}: all arrays must have equally many rows, but they have: {listed}")
    if not all(lengths.values()):
        raise UserError(f"{source}: there are no rows")
    for key, x in arrays.items():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(axis=1) if x.dtype.kind == "f" else np.zeros(1, bool)
        if bad.any():
            raise UserError(
                f"{source}: {key} is not finite in {bad.sum()} of {len(x)} rows, the first is row {bad.argmax()}"
            )


def check_widths(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, ObsSpec | int], source: str, task: str) -> None:
    """Raise UserError if an array in `wanted` is missing, or has other numbers, or parts, per row than `task` needs."""
    for key, width in wanted.items():
        if key not in arrays:
            raise UserError(f"{source} lacks {key}, which the rewards of {task} are computed from")
        given, needed = ObsSpec.of_rows(arrays[key]), ObsSpec.of(width)
        if given.parts != needed.parts:
            per_row = " per row" if given.is_vector and needed.is_vector else ""
            raise UserError(f"{source}: {key} has {given}{per_row}, {task} has {needed.stacked(1)}")


def check_actions(actions: np.ndarray, source: str) -> None:
    """Raise UserError if actions are no floats, or one lies outside [-1, 1]."""
    if actions.dtype.kind != "f":
        raise UserError(f"{source}: actions holds {actions.dtype}; floq needs continuous actions, as floats in [-1, 1]")
    outside = (np.abs(actions) > 1 + 1e-6).any(axis=1)
    if outside.any():
        row, most = outside.argmax(), np.abs(actions).max()
        noise = " if that is noise, or rescale them: --rescale_actions LOW HIGH, or --action_units=env"
        raise UserError(
            f"{source}: actions lie outside [-1, 1] in {outside.sum()} of {len(actions)} rows, the first is row {row} "
            f"({np.abs(actions[row]).max():.7g}), the largest {most:.7g}: clip them (--clip_actions)"
            f"{noise if most >= CLIPPABLE else ''}"
        )


def check_transitions(data: Trajectories, source: str) -> Trajectories:
    """Return the data. Raises UserError if each row is the end of a trajectory."""
    if data.ends.all():
        raise UserError(f"{source} has no transition whose next state is known: give the last states of episodes too")
    return data


# --- Episodes ---


def bounds(data: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last row of each trajectory."""
    last = np.flatnonzero(data.ends)
    return np.concatenate([[0], last[:-1] + 1]), last


def hold_out(data: Trajectories, source: str = "the dataset") -> tuple[Trajectories, Trajectories, str]:
    """Split into a training part, a validation part, and a description of the latter: every twentieth trajectory, the
    last one if there are fewer, and of a single one its last twentieth. Raises UserError for a single transition."""
    first, last = bounds(data)
    first, last = first[last > first], last[last > first]
    if len(first) == 1:
        length = int(last[0] - first[0])
        if length == 1:
            raise UserError(f"{source} has a single transition: training and validation need one each")
        cut = int(last[0]) - max(1, length // HOLD_OUT_EVERY)
        parts = np.arange(first[0], cut + 1), np.arange(cut, last[0] + 1)
        train, validation = (Trajectories(*(take(x, rows) for x in data)) for rows in parts)
        train.ends[-1] = True
        return train, validation, "its last twentieth held out"
    held = np.arange(len(first)) % HOLD_OUT_EVERY == HOLD_OUT_EVERY - 1
    how = f"every {HOLD_OUT_EVERY}th episode held out"
    if not held.any():
        held[-1], how = True, "its last episode held out"
    of_part = np.zeros(len(data.ends), int)  # 1 training, 2 validation, 0 trajectories without a transition
    for begin, end, part in zip(first, last, 1 + held, strict=True):
        of_part[begin : end + 1] = part
    train, validation = (Trajectories(*(take(x, of_part == part) for x in data)) for part in (1, 2))
    return train, validation, how
