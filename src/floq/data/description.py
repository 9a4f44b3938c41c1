"""Summary statistics of a dataset, and warnings about what would hurt training."""

from typing import NamedTuple

import numpy as np

from floq.data.arrays import Trajectories, as_float32, bounds, memory
from floq.data.returns import ReturnRange, discounted_returns

CLIP_THRESHOLD = 1 - 1e-3  # an action component this large counts as clipped
SOURCE_COVERAGE = 0.1  # published share of the value range that source noise covers


class EpisodeStats(NamedTuple):
    """Per episode: number of transitions, sum of rewards, and whether it contains a termination."""

    lengths: np.ndarray
    returns: np.ndarray
    terminated: np.ndarray


class DatasetDescription(NamedTuple):
    """Table of statistics by name; warnings of what would hurt training, one line each; and the episodes."""

    table: dict[str, str]
    warnings: list[str]
    episodes: EpisodeStats


def inspect(data: Trajectories, has_rewards: bool = True, discount: float = 0.99) -> DatasetDescription:
    """Describe trajectories.

    Args:
        data: one row per state.
        has_rewards: whether rewards and masks are valid; those of an OGBench file without a task are not.
        discount: for the value range that floq derives from the rewards.

    Raises:
        UserError: a number is not finite as a 32-bit float.
    """
    data = as_float32(data, "the dataset")._replace(rewards=data.rewards.astype(np.float64))
    episodes = summarise_episodes(data)
    starts = ~data.ends
    rewards, actions = data.rewards[starts], data.actions[starts]
    table = {
        "episodes": f"{len(episodes.lengths):,}, {_format_range(episodes.lengths)} transitions each",
        "transitions": f"{starts.sum():,}",
        "observations": f"{data.observations.shape[1]} numbers, from {data.observations.min():.3g} to "
        f"{data.observations.max():.3g}",
        "actions": f"{actions.shape[1]} numbers, from {actions.min():.3g} to {actions.max():.3g}; "
        f"{np.mean(np.abs(actions) >= CLIP_THRESHOLD):.1%} at the limits",
        "memory": memory(len(data.ends), int(starts.sum()), *data.dims),
    }
    complaint = None
    if has_rewards:
        values = ReturnRange.of((float(rewards.min()), float(rewards.max())), discount, SOURCE_COVERAGE)
        returns = discounted_returns(data, discount)[starts]
        table |= {
            "rewards": f"{_format_range(rewards)}, mean {rewards.mean():.3g}",
            "returns": f"{_format_range(episodes.returns)}, mean {episodes.returns.mean():.3g}, undiscounted",
            "terminations": f"{int((data.masks[starts] == 0).sum()):,} transitions, in "
            f"{int(episodes.terminated.sum()):,} episodes ({episodes.terminated.mean():.1%})",
            "discounted": f"{_format_range(returns)}, returns from each state on, at discount {discount}",
            "values": str(values),
        }
        complaint = values.complaint(returns)
    warnings = [*_warnings(data, episodes, has_rewards), *([complaint] if complaint else [])]
    return DatasetDescription(table, warnings, episodes)


def summarise_episodes(data: Trajectories) -> EpisodeStats:
    """Compute length, return and termination of each episode that has a transition."""
    first, last = bounds(data)
    counted = np.where(data.ends, 0.0, data.rewards.astype(np.float64))  # sums of 16 bits could overflow
    finished = np.where(data.ends, False, data.masks == 0)
    sums = np.add.reduceat(counted, first), np.add.reduceat(finished.astype(int), first)
    keep = last > first
    return EpisodeStats((last - first)[keep], sums[0][keep], sums[1][keep] > 0)


def reward_over_time(data: Trajectories) -> np.ndarray:
    """Compute the mean reward at each time step, over the episodes that reach it."""
    first, last = bounds(data)
    time = np.arange(len(data.ends)) - np.repeat(first, last - first + 1)
    starts = ~data.ends
    counts = np.bincount(time[starts])
    return np.bincount(time[starts], data.rewards[starts]) / counts


def _warnings(data: Trajectories, episodes: EpisodeStats, has_rewards: bool):
    starts = ~data.ends
    if has_rewards:
        rewards = data.rewards[starts]
        if rewards.min() == rewards.max():
            yield f"all rewards are {rewards.min():.3g}: there is nothing to learn"
        if not episodes.terminated.any():
            yield "no transition terminates: if an episode can succeed or fail, the data does not show it"
        finished = np.flatnonzero(starts & (data.masks == 0))
        longest = episodes.lengths.max()
        at_the_end = data.ends[finished + 1].all() and set(episodes.lengths[episodes.terminated]) == {longest}
        if len(finished) > 9 and at_the_end:
            yield f"all terminations come after {longest} transitions: are they time-outs? Then their mask must be 1"
    outside = (np.abs(data.actions[starts]) > 1 + 1e-6).any(axis=1)
    if outside.any():
        yield f"{outside.sum():,} actions lie outside [-1, 1]: rescale them as the environment's are"
    binary = [i for i, column in enumerate(data.actions[starts].T) if _takes_two_values(column)]
    if binary:
        yield f"action columns that take two values, as a gripper's may: {_join(binary)}; floq's actions are continuous"
    constant = np.flatnonzero(np.ptp(data.observations, axis=0) == 0)
    if len(constant):
        yield f"observation columns that never change: {_join(constant)}"
    duplicates = _duplicate_columns(data.observations)
    if duplicates:
        yield f"observation columns that are equal: {_join(f'{a} and {b}' for a, b in duplicates)}"
    if (episodes.lengths == 1).any():
        yield f"{int((episodes.lengths == 1).sum()):,} episodes have a single transition"


def _duplicate_columns(observations: np.ndarray) -> list[tuple[int, int]]:
    """Find columns that equal an earlier one and are not constant. Those with equal hashes are compared."""
    first: dict[int, list[int]] = {}
    found = []
    for i in np.flatnonzero(np.ptp(observations, axis=0) > 0):
        column = observations[:, i] + 0.0  # -0 is 0
        same = first.setdefault(hash(column.tobytes()), [])
        twin = next((j for j in same if (observations[:, j] == column).all()), None)
        if twin is None:
            same.append(int(i))
        else:
            found.append((twin, int(i)))
    return found


def _takes_two_values(column: np.ndarray) -> bool:
    low, high = column.min(), column.max()
    return bool(low < high and ((column == low) | (column == high)).all())


def _format_range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _join(items) -> str:
    shown = [str(item) for item in items]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
