"""The command `floq ope`: off-policy evaluation of the policies of runs."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal

from tyro.conf import Positional

from floq.agent.config import settings_type
from floq.cli.flags import Flags, fields_of, parse, split_words
from floq.utils.errors import UserError
from floq.utils.untrusted import consent


@dataclass(frozen=True)
class Ope:
    """Estimate how good the policies of runs are from data alone (fitted Q evaluation): the discounted return from
    where the episodes of the data start, with a 95% interval. The folders of runs come first: floq ope RUN_DIR.
    --steps 2500 5000, or --steps all, evaluates checkpoints of each run, by default the newest; --seeds 0 1 2 3 4 5
    gives more seeds than five; --agent.critic and its flags choose the critic. A stopped evaluation goes on with
    --resume FOLDER."""

    run_dirs: Positional[tuple[str, ...]] = ()
    """Folders of runs."""
    dataset: str | None = None
    """Evaluate on this; by default on the data of the first run."""
    discount: float | None = None
    """Discount of the values; by default that of the runs."""
    starts: Literal["data", "env"] = "data"
    """Where values are meant: where the episodes of the data start, or those of the environment."""
    truth: int = 0
    """Also measure the return from this many starts of the environment, to see how far off the estimates are."""
    offline_steps: int | None = None
    """Updates; by default 8 / (tau (1 - discount)), after which the start is forgotten."""
    log_interval: int | None = None
    """Steps between rows of train.csv; by default a thirtieth of the updates."""
    eval_interval: int | None = None
    """Steps between evaluations; by default a tenth of the updates."""
    save_interval: int | None = None
    """Steps between checkpoints; by default a quarter of the updates."""
    save_dir: str | None = None
    """Where the folder of the evaluation goes; by default as the run's."""
    resume: str | None = None
    """The folder of a stopped evaluation, which goes on; no other flag is given then."""
    env_name: str | None = None
    """The environment, if that is a module:Id whose module may be imported."""


SETTINGS = ("offline_steps", "log_interval", "eval_interval", "save_interval", "save_dir")


def ope_command(argv: list[str]) -> None:
    """Run `floq ope`."""
    folders, flags = split_words(argv)
    seeds, steps, critic = flags.take_seeds(), _take_steps(flags), flags.take("agent.critic")
    consent(flags.peek("env_name") or "")
    from floq.runs.run import Run

    known = Run.open(folders[0]).config.agent.critic_name if folders else "floq"
    settings = settings_type(critic or known, "fixed")
    default = dataclasses.field(default_factory=settings)
    command = dataclasses.make_dataclass("OpeFlags", [("agent", settings, default)], bases=(Ope,), frozen=True)
    fields = fields_of(Ope) | {f"agent.{name}": field for name, field in fields_of(settings).items()}
    given = [name.removeprefix("agent.") for name in flags.values if name.startswith("agent.")]
    options: Any = parse(command, [*folders, *flags.normalised(fields)], "floq ope", Ope.__doc__)
    from floq.training.off_policy import ope, resume_ope
    from floq.utils.machine import enable_compilation_cache

    enable_compilation_cache()
    if "discount" in given:
        raise UserError(f"--agent.discount={options.agent.discount:g}: give --discount instead")
    if options.resume is not None:
        if folders or seeds or steps or critic or flags.values.keys() - {"resume", "env_name"}:
            raise UserError("--resume: an evaluation goes on with its own policies and settings, give nothing else")
        resume_ope(options.resume)
        return
    changes = {name: getattr(options.agent, name) for name in given}
    changes |= {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    chosen: dict[str, Any] = {"seeds": seeds} if seeds else {}
    chosen |= {name: getattr(options, name) for name in ("dataset", "discount", "starts", "truth")}
    ope(folders, steps=steps, critic=critic, **chosen, **changes)


def _take_steps(flags: Flags) -> Any:
    """Remove `--steps all` or `--steps 2500 5000` and return it; None if it is not given."""
    if (words := flags.values.pop("steps", None)) is None or words == ["all"]:
        return words and "all"
    numbers = [number for word in words for number in re.split(r"[\s,]+", word) if number]
    if not numbers or not all(re.fullmatch(r"\d+", number) for number in numbers):
        raise UserError(f"--steps {' '.join(words)}: give steps of checkpoints, as in --steps 2500 5000, or all")
    return [int(number) for number in dict.fromkeys(numbers)]
