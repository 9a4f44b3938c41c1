"""Summary statistics of a dataset, its discounted returns, and warnings about what would hurt training."""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from floq.data.arrays import Trajectories, as_float32, bounds
from floq.utils.obs_spec import ObsSpec

CLIP_THRESHOLD = 1 - 1e-3  # an action component this large counts as clipped
SOURCE_COVERAGE = 0.1  # published share of the value range that source noise covers
MIN_FILL = 0.05  # returns that fill less of the value range than this are hard to tell apart


class EpisodeStats(NamedTuple):
    """Per episode: number of transitions, sum of rewards, and whether it contains a termination."""

    lengths: np.ndarray
    returns: np.ndarray
    terminated: np.ndarray


class DatasetDescription(NamedTuple):
    """Table of statistics by name, and warnings of what would hurt training, one line each."""

    table: dict[str, str]
    warnings: list[str]


def inspect(data: Trajectories, has_rewards: bool = True, discount: float = 0.99) -> DatasetDescription:
    """Describe trajectories; `has_rewards` says whether rewards and masks are valid, `discount` is that of the value
    range. Raises UserError if a number is not finite as a 32-bit float."""
    data = as_float32(data, "the dataset")._replace(rewards=data.rewards.astype(np.float64))
    episodes = summarise_episodes(data)
    starts = ~data.ends
    rewards, obs, actions = data.rewards[starts], vectors(data), data.actions[starts]
    clipped = np.mean(np.abs(actions) >= CLIP_THRESHOLD)
    table = {
        "episodes": f"{len(episodes.lengths):,}, {_format_range(episodes.lengths)} transitions each",
        "transitions": f"{starts.sum():,}",
        "observations": str(data.dims[0]) + (f", from {obs.min():.3g} to {obs.max():.3g}" if obs.size else ""),
        "actions": f"{actions.shape[1]} numbers, from {actions.min():.3g} to {actions.max():.3g}; "
        f"{clipped:.1%} at the limits",
        "memory": memory(len(data.ends), int(starts.sum()), *data.dims),
    }
    warnings = list(_warnings(data, episodes, has_rewards))
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
        warnings += filter(None, [values.complaint(returns)])
    return DatasetDescription(table, warnings)


def vectors(data: Trajectories) -> np.ndarray:
    """Return the numbers of each observation, images left out: (rows, size)."""
    spec, obs = data.dims[0], data.observations
    found = [obs] if spec.is_vector else spec.vectors(obs).values()
    return np.concatenate([np.empty((len(obs), 0), np.float32), *found], axis=1)


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
    return np.bincount(time[starts], data.rewards[starts]) / np.bincount(time[starts])


def memory(rows: int, transitions: int, obs_spec: ObsSpec, action_dim: int) -> str:
    """Describe the memory of a dataset on the device: in all, per million transitions, and against storing both
    observations of each transition."""
    obs = obs_spec.stacked(1).zeros().nbytes
    each = (rows * (obs + 4 * (action_dim + 2) + 1) + 4 * transitions) / transitions  # bytes per transition
    pairs = 2 * obs * obs_spec.frames + 4 * (action_dim + 3)
    total = each * transitions / 1e6
    return (
        f"{total:,.{0 if total >= 10 else 1}f} MB; {each:.0f} MB per million transitions, "
        f"{each / pairs:.0%} of storing pairs of observations"
    )


def _warnings(data: Trajectories, episodes: EpisodeStats, has_rewards: bool) -> Iterator[str]:
    starts = ~data.ends
    rewards, actions = data.rewards[starts], data.actions[starts]
    if has_rewards:
        if rewards.min() == rewards.max():
            yield f"all rewards are {rewards.min():.3g}: there is nothing to learn"
        if not episodes.terminated.any():
            yield "no transition terminates: if an episode can succeed or fail, the data does not show it"
        finished = np.flatnonzero(starts & (data.masks == 0))
        longest = episodes.lengths.max()
        at_the_end = data.ends[finished + 1].all() and set(episodes.lengths[episodes.terminated]) == {longest}
        if len(finished) > 9 and at_the_end:
            yield f"all terminations come after {longest} transitions: are they time-outs? Then their mask must be 1"
    if outside := (np.abs(actions) > 1 + 1e-6).any(axis=1).sum():
        yield f"{outside:,} actions lie outside [-1, 1]: rescale them as the environment's are"
    if binary := [i for i, column in enumerate(actions.T) if len(np.unique(column)) == 2]:
        yield f"action columns that take two values, as a gripper's may: {_join(binary)}; floq's actions are continuous"
    obs = vectors(data)
    if len(constant := np.flatnonzero(np.ptp(obs, axis=0) == 0)):
        yield f"observation columns that never change: {_join(constant)}"
    if duplicates := _duplicate_columns(obs):
        yield f"observation columns that are equal: {_join(f'{a} and {b}' for a, b in duplicates)}"
    if single := (episodes.lengths == 1).sum():
        yield f"{single:,} episodes have a single transition"


def _duplicate_columns(observations: np.ndarray) -> list[tuple[int, int]]:
    """Find columns that equal an earlier one and are not constant."""
    first: dict[bytes, int] = {}
    found = []
    for i in np.flatnonzero(np.ptp(observations, axis=0) > 0):
        column = hashlib.sha256((observations[:, i] + 0.0).tobytes()).digest()  # -0 is 0
        if (twin := first.setdefault(column, int(i))) != i:
            found.append((twin, int(i)))
    return found


def _format_range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def _join(items: Iterable[object]) -> str:
    shown = [str(item) for item in items]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


# --- Returns ---


class ReturnRange(NamedTuple):
    """Range of the returns that rewards, widened to contain 0, allow; the interval of floq's source noise; and the
    margin of its histogram (`reward_offset`). `floq.critics.ReturnScale` is the same for a critic."""

    low: float
    high: float
    noise_low: float
    noise_high: float
    slack: float

    @classmethod
    def of(
        cls, rewards: tuple[float, float], discount: float, noise_coverage: float, offset: float = 0.01
    ) -> "ReturnRange":
        """Return the range for rewards from `rewards[0]` to `rewards[1]`; `offset` is the setting `reward_offset`."""
        low, high = min(0.0, rewards[0]) / (1 - discount), max(0.0, rewards[1]) / (1 - discount)
        return cls(low, high, noise_coverage * low, noise_coverage * high, offset / (1 - discount))

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]; source noise [{self.noise_low:.4g}, {self.noise_high:.4g}]"

    def complaint(self, returns: np.ndarray) -> str | None:
        """Describe in one line what is wrong with the range for these discounted returns; None if nothing is."""
        values = f"the values [{self.low:.4g}, {self.high:.4g}]"
        outside = np.mean((returns < self.low - self.slack) | (returns > self.high + self.slack))
        if outside:
            return (
                f"{outside:.2%} of the discounted returns lie outside {values} that the training rewards allow: "
                "floq's histogram does not reach there"
            )
        filled = np.ptp(returns) / (self.high - self.low) if self.high > self.low else 1.0
        if filled < MIN_FILL:
            return (
                f"discounted returns fill {filled:.1%} of {values} that the rewards allow, so floq's noise and "
                "histogram are too wide; a smaller --agent.discount narrows both"
            )
        return None


def discounted_returns(data: Trajectories, discount: float) -> np.ndarray:
    """Compute for each row the discounted sum of the rewards from there on, up to a termination or the trajectory's
    end; 0 at a last row. In a truncated trajectory it is the sum up to the truncation.

    By doubling: after j rounds `returns` holds the sum over 2^j steps and `carry` the discount over them.
    """
    returns = np.where(data.ends, 0.0, data.rewards).astype(np.float64)
    carry = np.where(data.ends, 0.0, discount * data.masks).astype(np.float64)
    stride = 1
    while stride < len(returns) and carry.any():
        returns[:-stride] += carry[:-stride] * returns[stride:]
        carry[:-stride] *= carry[stride:]
        carry[-stride:] = 0.0
        stride *= 2
    return returns
