"""Early signs that values go wrong: what training warns of, and reports list. No JAX in here."""

import math
from collections.abc import Mapping
from typing import Any

OUTSIDE = 0.01  # share of z outside the histogram's support, or of mass in its end bins, that is worth a word
MARGIN = 0.01  # by which a mean value may leave the possible range, as a share of the horizon 1 / (1 - discount)


def outside_range(value: float, low: float, high: float, margin: float) -> str | None:
    """What is wrong with a mean value where returns lie from `low` to `high`, infinite if unknown; None if nothing."""
    if value > high + margin:
        return f"Q is {value:.4g}, and no return is above {high:.4g}"
    if value < low - margin:
        return f"Q is {value:.4g}, and no return is below {low:.4g}"
    return None


def outside_histogram(row: Mapping[str, float]) -> str | None:
    """What a row of train.csv says of the histogram's support, if it is left; None otherwise."""
    outside = row.get("validation/critic/outside_histogram", math.nan)
    if outside > OUTSIDE:
        return f"{outside:.0%} of z outside the histogram's support"
    at_ends = row.get("validation/critic/mass_at_ends", math.nan)
    if at_ends > OUTSIDE:
        return f"{at_ends:.0%} of the histogram's mass at its ends"
    return None


def early_signs(settings: Mapping[str, Any], row: Mapping[str, float], returns: tuple[float, float]) -> dict[str, str]:
    """What a row of train.csv says against a run, by the kind of sign.

    Args:
        settings: of its agent, side by side.
        row: the row, with all of its columns.
        returns: between which numbers discounted returns lie, given the rewards.
    """
    low, high = returns
    found = {"histogram": outside_histogram(row)}
    if settings.get("q_agg") != "lcb" and not settings.get("alpha_critic") and not settings.get("entropy_backup"):
        found["range"] = outside_range(row["training/critic/q"], low, high, MARGIN * (high - low))
    return {sign: what for sign, what in found.items() if what is not None}
