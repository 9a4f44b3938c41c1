"""How a dataset is read: the options that commands, runs and readers share."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from floq.utils.errors import UserError
from floq.utils.schema import NO_ARGUMENTS, FrozenDict, Mark, Settings


@dataclass(frozen=True, kw_only=True)
class DataOptions(Settings):
    """How a dataset is read."""

    label_timing: Literal["pre", "post"] = "pre"
    """Dataset rewards are computed from the state before an action (pre, as published) or after it."""
    action_units: Annotated[Literal["unit", "env"], Mark.HASHED_IF_SET] = "unit"
    """Units of the actions in --dataset: unit, [-1, 1] for the bounds of the environment's, or env, the environment's
    own, which are scaled. Minari's are scaled in any case."""
    rescale_actions: Annotated[tuple[float, float] | None, Mark.HASHED_IF_SET] = None
    """LOW HIGH: scale the actions in --dataset from this range to [-1, 1]."""
    clip_actions: Annotated[bool, Mark.HASHED_IF_SET] = False
    """Clip the actions in --dataset to [-1, 1], after they are scaled: for logs with exploration noise."""
    columns: Annotated[dict[str, Any], AfterValidator(FrozenDict.of_json), Mark.HASHED_IF_SET] = NO_ARGUMENTS
    """Columns of a table: --columns.observations=x,y --columns.actions=u --columns.reward=r, or --columns=FILE.toml."""
    guess_columns: Annotated[bool, Mark.HASHED_IF_SET] = False
    """Tell what the columns of a table are by their headers, such as x0 x1 a0 reward terminated truncated episode."""
    obs_keys: Annotated[tuple[str, ...], Mark.HASHED_IF_SET] = ()
    """Observations of a robomimic file or a LeRobot folder; by default all, in the order of their names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale_actions:
            check_range("--rescale_actions", self.rescale_actions)
        if self.rescale_actions and self.action_units == "env":
            raise UserError("--rescale_actions and --action_units=env both say how actions are scaled: give one")

    @property
    def changes_actions(self) -> bool:
        """Whether actions become [-1, 1] by scaling or clipping only."""
        return self.clip_actions or self.rescale_actions is not None or self.action_units == "env"


AS_THEY_ARE = DataOptions()


def check_range(flag: str, bounds: tuple[float, float]) -> None:
    """Raise UserError unless the first of two bounds is the lower one."""
    if not bounds[0] < bounds[1]:
        raise UserError(f"{flag} {bounds[0]:g} {bounds[1]:g}: give the lower bound, then the upper")
