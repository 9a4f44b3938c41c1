"""What the manifest of a checkpoint says, checked: it decides what is built, and anybody may have written it."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from floq.config import Config
from floq.errors import UserError

WIDEST = 2**20  # numbers in an observation, or in a chunk of actions
PENDING = 2**10  # evaluations that a stopped run can have left


class Manifest(NamedTuple):
    """How an agent is built again, and what a run counts on from; see `floq.checkpoint.Checkpoint`."""

    config: Config
    sizes: tuple[int, int]
    clocks: dict[str, float]
    pending: list[int]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Manifest":
        """From what a JSON file says. Raises ValueError if a value cannot be what floq has written."""
        for part, kind in (("config", dict), ("clocks", dict), ("pending", list)):
            if not isinstance(values.get(part, kind()), kind):
                raise ValueError(f"{part} is {values[part]!r}")
        try:
            config = Config.from_json(values.get("config", {}))
        except UserError as error:
            raise ValueError(f"config: {error}") from error
        sizes = _count(values, "obs_size", WIDEST), _count(values, "act_size", WIDEST)
        clocks, pending = values.get("clocks", {}), values.get("pending", [])
        if odd := [name for name, x in clocks.items() if type(x) not in (int, float) or not math.isfinite(x)]:
            raise ValueError(f"the clock {odd[0]} is {clocks[odd[0]]!r}")
        if len(pending) > PENDING or not all(type(step) is int and step >= 0 for step in pending):
            raise ValueError("pending is no list of steps")
        return cls(config, sizes, {name: float(x) for name, x in clocks.items()}, pending)


def _count(values: Mapping[str, Any], name: str, most: int) -> int:
    value = values.get(name)
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{name} is {value!r}")
    return value
