"""The rows of a run's CSV files once more, for TensorBoard or Weights & Biases, as they are written. On request:
neither package is needed otherwise."""

import abc
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from floq.config import Config
from floq.errors import UserError

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}
"""By the name that `--logger` knows, what must be installed."""


class Mirror(abc.ABC):
    """Takes rows in any order of steps: evaluations come after later rows of the training."""

    @abc.abstractmethod
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a row."""

    @abc.abstractmethod
    def close(self) -> None:
        """Nothing comes any more."""


def check_installed(config: Config) -> None:
    """Raises UserError if a logger that the configuration asks for is not installed."""
    for name in config.logger:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"--logger={name} needs the package {PACKAGES[name]}: pip install {PACKAGES[name]}")


def mirrors(folder: Path, config: Config, step: int) -> list[Mirror]:
    """The mirrors that a run asks for, for the rows after `step`.

    Raises:
        UserError: one of them cannot begin.
    """
    return [_Cautious(name, MIRRORS[name](folder, config, step)) for name in config.logger]


class TensorBoard(Mirror):
    """Event files in the folder `tensorboard` of the run. What an earlier process wrote of later steps is hidden."""

    def __init__(self, folder: Path, config: Config, step: int):
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB(Mirror):
    """A run of Weights & Biases with the id of the folder, which a resumed run goes on with. The account, or
    `WANDB_MODE=offline`, is the user's, and so are all other settings of that package."""

    def __init__(self, folder: Path, config: Config, step: int):
        import wandb  # pyright: ignore[reportMissingImports]  an extra that tests do without

        try:
            self._run = wandb.init(
                project=config.project_name,
                group=config.run_group,
                id=folder.name,
                name=f"{config.task} seed {config.seed}",
                dir=str(folder),
                config=config.to_json(),
                resume="allow",
                reinit="create_new",  # the runs of a fleet are open at the same time
            )
        except wandb.Error as error:
            said = " ".join(str(error).split())
            raise UserError(f"--logger=wandb: {said}; log in with wandb login, or set WANDB_MODE=offline") from error
        self._run.define_metric("*", step_metric="step")  # its own steps only go up, and evaluations come late

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log({"step": step, **metrics})

    def close(self) -> None:
        self._run.finish()


MIRRORS: dict[str, Callable[[Path, Config, int], Mirror]] = {"tensorboard": TensorBoard, "wandb": WandB}


class _Cautious(Mirror):
    """A mirror whose failure ends nothing but itself: the CSV files have everything."""

    def __init__(self, name: str, mirror: Mirror):
        self._name = name
        self._mirror: Mirror | None = mirror

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._try(lambda mirror: mirror.log(step, metrics))

    def close(self) -> None:
        self._try(lambda mirror: mirror.close())

    def _try(self, act: Callable[[Mirror], None]) -> None:
        if self._mirror is None:
            return
        try:
            act(self._mirror)
        except Exception as error:  # of somebody else's code, of whatever kind
            self._mirror = None
            print(f"floq: --logger={self._name} failed ({error!r}); training goes on without it", file=sys.stderr)
