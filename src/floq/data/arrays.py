"""Trajectories as plain NumPy arrays: the one form in which every reader hands its data on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq.data.checks import check_actions, check_rows
from floq.data.formats.files import open_npz
from floq.utils.errors import UserError

EPISODE_KEYS = ("observations", "actions", "rewards", "terminations")
MISNOMERS = ("terminals", "dones", "done", "terminated")  # what else people call `terminations`
HELD_OUT = 20  # one episode in so many is held out for validation


class Trajectories(NamedTuple):
    """Trajectories laid end to end, one row per state; the last row of each carries only an observation.

    masks: 0 where the transition that starts here ends in a true termination. ends: marks each last row.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray
    ends: np.ndarray


def from_arrays(
    observations: Any,
    actions: Any,
    rewards: Any,
    terminals: Any,
    timeouts: Any = None,
    next_observations: Any = None,
    source: str = "the dataset",
) -> Trajectories:
    """From flat arrays with one row per transition, episodes one after another (the layout of D4RL).

    Args:
        observations, actions: shape (transitions, size); actions in [-1, 1].
        rewards: shape (transitions,).
        terminals: shape (transitions,), true where the transition ends in a true termination.
        timeouts: shape (transitions,), true where an episode was cut off. The end of the data cuts one off as well.
        next_observations: shape (transitions, size). Without it a transition's next observation is the next row's
            observation, and the last transition of an episode that was cut off has none and is left out; then
            `timeouts` are needed. With it, no transition is lost, and wherever it differs from the next row's
            observation a new trajectory begins, so that transitions may stand in any order.
        source: where the arrays come from, for messages.

    Raises:
        UserError: shapes or lengths are wrong, a number is not finite, an action lies outside [-1, 1], or it cannot be
            known where episodes end.
    """
    given = {
        "observations": observations,
        "actions": actions,
        "rewards": rewards,
        "terminals": terminals,
        "timeouts": timeouts,
        "next_observations": next_observations,
    }
    arrays = {key: _array(x, key, source) for key, x in given.items() if x is not None}
    check_rows(arrays, source)
    check_actions(arrays["actions"], source)
    if timeouts is None and next_observations is None:
        raise UserError(
            f"{source} has neither timeouts nor next_observations: give timeouts, true where an episode was cut off "
            "and zeros if none was, or the end of one episode would run into the start of the next"
        )
    obs, terminated = arrays["observations"], arrays["terminals"].astype(bool)
    cut = arrays["timeouts"].astype(bool) if "timeouts" in arrays else np.zeros(len(obs), bool)
    cut[-1:] = True
    if "next_observations" in arrays:
        next_obs = arrays["next_observations"]
        if next_obs.shape != obs.shape:
            raise UserError(f"{source}: next_observations has shape {next_obs.shape}, observations {obs.shape}")
        cut[:-1] |= (_single(next_obs[:-1]) != _single(obs[1:])).any(axis=1)
        closed = terminated | cut
    else:
        next_obs = obs  # a last state that nobody saw; it follows a termination, so it is never evaluated
        closed = terminated
    # After each row in `closed` a row is put in that carries the trajectory's last state.
    order = np.repeat(np.arange(len(obs)), 1 + closed)
    put_in = np.zeros(len(order), bool)
    put_in[np.flatnonzero(closed) + np.arange(closed.sum()) + 1] = True
    data = Trajectories(
        np.where(put_in[:, None], next_obs[order], obs[order]),
        arrays["actions"][order],
        arrays["rewards"][order],
        1.0 - terminated[order],
        put_in | (cut & ~closed)[order],
    )
    return _with_transitions(data, source)


def from_episodes(episodes: Iterable[Mapping[str, Any]], source: str = "the dataset") -> Trajectories:
    """From one mapping per episode of T transitions.

    Args:
        episodes: each has `observations` of shape (T + 1, size), the last state included, or (T, size) where it is
            unknown: then the last transition is left out, unless it terminates; `actions` (T, size) in [-1, 1];
            `rewards` (T,); and `terminations`, one truth value or (T,), true where a transition is truly the last that
            counts. Without `terminations`, episodes are taken to be cut off.
        source: where they come from, for messages.

    Raises:
        UserError: as `from_arrays`, naming the episode; or an episode is empty, or lacks an array.
    """
    parts: list[Trajectories] = []
    for number, episode in enumerate(episodes):
        name = f"{source}, episode {number}"
        missing = [key for key in EPISODE_KEYS[:3] if key not in episode]
        if missing:
            raise UserError(f"{name} lacks {', '.join(missing)}")
        other = [key for key in MISNOMERS if key in episode]
        if other and "terminations" not in episode:
            raise UserError(
                f"{name} has {other[0]!r} but no 'terminations': rename it if it marks true terminations only, and "
                "take the time-outs out if it marks those too"
            )
        obs, act = (_array(episode[key], key, name) for key in ("observations", "actions"))
        length = len(act) if act.ndim else 0
        if not length:
            raise UserError(f"{name} is empty: leave it out")
        if len(obs) not in (length, length + 1):
            raise UserError(f"{name} has {len(obs)} observations for {length} actions: it needs {length + 1}")
        ended = _array(episode.get("terminations", False), "terminations", name)
        if ended.ndim == 0:
            ended = ended & (np.arange(length) == length - 1)
        if len(ended) != length:
            raise UserError(f"{name} has {len(ended)} terminations for {length} actions")
        parts.append(_trajectory(obs, act, _array(episode["rewards"], "rewards", name), ended, name))
    if not parts:
        raise UserError(f"{source} has no episodes")
    for what in ("observations", "actions"):
        widths = [getattr(part, what).shape[1] for part in parts]
        if len(set(widths)) > 1:
            odd = next(i for i, width in enumerate(widths) if width != widths[0])
            raise UserError(
                f"{source}: {what} have {widths[0]} numbers in episode 0 and {widths[odd]} in episode {odd}"
            )
    data = Trajectories(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return _with_transitions(data, source)


def _trajectory(obs: np.ndarray, act: np.ndarray, rew: np.ndarray, ended: np.ndarray, name: str) -> Trajectories:
    """One episode. It stays whole if it goes on after a termination, as OGBench's do after a success."""
    check_rows({"observations": obs}, name)
    check_rows({"observations": obs[: len(act)], "actions": act, "rewards": rew, "terminations": ended}, name)
    check_actions(act, name)
    ended = ended.astype(bool)
    if len(obs) == len(act) and ended[-1]:
        obs = np.concatenate([obs, obs[-1:]])  # a last state that nobody saw; it follows a termination
    rows = np.minimum(np.arange(len(obs)), len(act) - 1)
    return Trajectories(obs, act[rows], rew[rows], 1.0 - ended[rows], np.arange(len(obs)) == len(obs) - 1)


def _array(x: Any, key: str, source: str) -> np.ndarray:
    try:
        array = np.asarray(x)
    except ValueError as error:
        raise UserError(f"{source}: {key} is not an array of numbers ({error})") from error
    return array.astype(np.float32) if array.dtype == bool and key == "observations" else array


def _single(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float32, copy=False)


def _with_transitions(data: Trajectories, source: str) -> Trajectories:
    if data.ends.all():
        raise UserError(f"{source} has no transition whose next state is known: give the last states of episodes too")
    return data


def read_folder(folder: Path) -> Trajectories:
    """From a folder of `.npz` files, one episode each, in the order of their names; keys as for `from_episodes`.

    Raises:
        UserError: there are none, one is damaged, or as `from_episodes`.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise UserError(f"{folder} holds no .npz files")
    keys, remedy = (*EPISODE_KEYS, *MISNOMERS), "mend it, or take it out of the folder"
    return from_episodes(_opened(files, keys, remedy), str(folder))


def _opened(files: Sequence[Path], keys: Sequence[str], remedy: str) -> Iterator[dict[str, np.ndarray]]:
    """One file after another, all of them together within the limit for one."""
    held = 0
    for file in files:
        arrays = open_npz(file, keys, remedy, held)
        held += sum(array.nbytes for array in arrays.values())
        yield arrays


def bounds(data: Trajectories) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last row of each trajectory."""
    last = np.flatnonzero(data.ends)
    return np.concatenate([[0], last[:-1] + 1]), last


def hold_out(data: Trajectories, source: str = "the dataset") -> tuple[Trajectories, Trajectories, str]:
    """A part for training, a part for validation, and in words what the latter is: every twentieth trajectory, the last
    if there are fewer, and of a single one its last twentieth. The same data is always split in the same way.

    Raises:
        UserError: there is a single transition.
    """
    first, last = bounds(data)
    first, last = first[last > first], last[last > first]
    if len(first) == 1:
        length = int(last[0] - first[0])
        if length == 1:
            raise UserError(f"{source} has a single transition: training and validation need one each")
        cut = int(last[0]) - max(1, length // HELD_OUT)
        parts = np.arange(first[0], cut + 1), np.arange(cut, last[0] + 1)
        train, validation = (Trajectories(*(x[rows] for x in data)) for rows in parts)
        train.ends[-1] = True
        return train, validation, "its last twentieth held out"
    held = np.arange(len(first)) % HELD_OUT == HELD_OUT - 1
    how = f"every {HELD_OUT}th episode held out"
    if not held.any():
        held[-1], how = True, "its last episode held out"
    of_part = np.zeros(len(data.ends), int)  # 1 training, 2 validation, 0 neither: trajectories without a transition
    for begin, end, part in zip(first, last, 1 + held, strict=True):
        of_part[begin : end + 1] = part
    train, validation = (Trajectories(*(x[of_part == part] for x in data)) for part in (1, 2))
    return train, validation, how


def memory(rows: int, transitions: int, obs_size: int, act_size: int) -> str:
    """What a dataset takes on the device, per million transitions, and against both observations of each transition."""
    each = (rows * (4 * (obs_size + act_size + 2) + 1) + 4 * transitions) / transitions  # bytes per transition
    pairs = 4 * (2 * obs_size + act_size + 3)
    total = each * transitions / 1e6
    return (
        f"{total:,.{0 if total >= 10 else 1}f} MB; {each:.0f} MB per million transitions, "
        f"{each / pairs:.0%} of storing pairs of observations"
    )
