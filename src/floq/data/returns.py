"""Discounted returns of a dataset, and whether they fit the range of a flow critic's values."""

from typing import NamedTuple

import numpy as np

from floq.data.arrays import Trajectories

MIN_FILL = 0.05  # returns that fill less of the value range than this are hard to tell apart


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
        outside = np.mean((returns < self.low - self.slack) | (returns > self.high + self.slack))
        if outside:
            return (
                f"{outside:.2%} of the discounted returns lie outside the values [{self.low:.4g}, {self.high:.4g}] "
                "that the training rewards allow: floq's histogram does not reach there"
            )
        filled = np.ptp(returns) / (self.high - self.low) if self.high > self.low else 1.0
        if filled < MIN_FILL:
            return (
                f"discounted returns fill {filled:.1%} of the values [{self.low:.4g}, {self.high:.4g}] that "
                "the rewards allow, so floq's noise and histogram are too wide; a smaller --agent.discount narrows both"
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
