"""Handle runs that diverge: a run in whose update something is not finite stops, or rewinds to earlier weights.

The other runs of its fleet continue. Nothing that is not finite reaches weights: the agent stays as it was before that
update (`floq.agent.finite`), and its last checkpoint holds that state.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp

from floq.agent.finite import OK, TERMS
from floq.runs import checkpoint
from floq.runs.config import Config
from floq.training.fleet import Fleet
from floq.training.run_logger import RunLogger
from floq.training.schedule import Schedule
from floq.utils.progress import Display

MAX_REWINDS = 3  # between two checkpoints that are due
USUAL_LR = 3e-4

Info = dict[str, float]


class Divergences:
    """Stops or rewinds the runs of a fleet that diverge.

    Args:
        loggers: the runs on disk.
        fleet: their agents.
        schedule: when checkpoints are due; a run rewinds only to these, since others depend on signals and clocks.
        display: shows what happens.
        save: writes the checkpoint of one run, given the run and its step.
    """

    def __init__(
        self,
        loggers: Sequence[RunLogger],
        fleet: Fleet,
        schedule: Schedule,
        display: Display,
        save: Callable[[int, int], None],
    ):
        self._loggers, self._fleet, self._schedule = loggers, fleet, schedule
        self._display, self._save = display, save
        self.stopped: dict[int, str] = {}
        """By run, a message about each that was stopped."""

    @property
    def active(self) -> list[int]:
        """The runs that were not stopped."""
        return [run for run in range(len(self._loggers)) if run not in self.stopped]

    def handle(self, step: int, infos: list[Info]) -> list[Info]:
        """Stop or rewind the runs that had a fault on the way to this step.

        Args:
            step: the present step of the runs.
            infos: those of each run's last update.

        Returns:
            The infos; of a run that was rewound, those of its updates since.
        """
        found = list(infos)
        for run, fault in enumerate(self._fleet.faults):
            while fault != OK and run not in self.stopped:
                found[run] = self._handle_one(run, TERMS[fault - 1], step, found[run])
                fault = self._fleet.faults[run]
        return found

    def _handle_one(self, run: int, term: str, step: int, info: Info) -> Info:
        logger, agent, online = self._loggers[run], self._fleet.agent(run), self._schedule.is_online(step - 1)
        at = step if online else int(agent.step)
        what = f"seed {logger.config.seed} diverged at step {at}: the {term} is not finite"
        earlier = self._earlier(logger, at) if logger.config.on_divergence == "rewind" else None
        if earlier is None:
            self._stop(run, at, term, what, info)
            return info
        saved = checkpoint.load(logger.run.folder / "checkpoints", earlier).agent
        learned = {name: getattr(saved, name) for name in ("params", "target", "target_actor", "opt_state")}
        # Online the updates until now are left out; offline the run catches up, on other batches than led here.
        beyond = self._fleet.step if online else int(agent.step) + 1
        self._fleet.replace(run, dataclasses.replace(agent, **learned, step=jnp.int32(beyond)))
        logger.note_rewind({"step": at, "to": earlier, "term": term})
        self._display.note(f"rewind  {what}; it goes on with the weights of step {earlier} and other batches")
        return dict.fromkeys(info, math.nan) if online else self._fleet.advance(0)[run]

    def _earlier(self, logger: RunLogger, at: int) -> int | None:
        """Return the step of the checkpoint to rewind to: the newest one that was due, and one further back for each
        rewind since. None if there is none, or no rewind is left."""
        steps = [step for step in checkpoint.steps(logger.run.folder / "checkpoints") if 0 < step <= at]
        due = [step for step in steps if self._schedule.save_due(step)]
        times = len([rewind for rewind in logger.run.rewinds if due and rewind["step"] >= due[-1]])
        return due[-1 - times] if times < min(len(due), MAX_REWINDS) else None

    def _stop(self, run: int, at: int, term: str, what: str, info: Info) -> None:
        logger = self._loggers[run]
        folder = logger.run.folder
        self._save(run, at)
        metrics = {name: x if math.isfinite(x) else str(x) for name, x in info.items()}
        logger.run.write_json("diverged.json", {"step": at, "term": term, "metrics": metrics})
        helps = ", ".join(what_helps(logger.config, term))
        if logger.config.on_divergence == "rewind":
            helps = f"it has gone back as often as it may, or has no checkpoint to go back to; {helps}"
        self.stopped[run] = f"{what}; its last good state is {folder / 'checkpoints' / str(at)}; what helps: {helps}"
        self._display.note(f"stopped {self.stopped[run]}")


def what_helps(config: Config, term: str) -> list[str]:
    """List flags that usually keep a run with these settings from diverging in this term, the most likely first."""
    agent, critic = config.agent.flat(), not term.startswith("actor")
    found = [f"--agent.lr={min(config.agent.lr / 3, USUAL_LR):.1g}"]
    if config.precision != "f32":
        found.append("--precision=f32")
    if critic and not agent.get("layer_norm", True):
        found.append("--agent.layer_norm=True")
    if critic and config.agent.tau > 0.005:
        found.append("--agent.tau=0.005")
    if critic and agent.get("q_agg") == "mean":
        found.append("--agent.q_agg=min")
    if not critic and "normalize_q_loss" in agent and not agent["normalize_q_loss"]:
        found.append("--agent.normalize_q_loss=True")
    if not critic and not agent.get("actor_layer_norm", True):
        found.append("--agent.actor_layer_norm=True")
    if critic:
        found.append("a look at the rewards with floq data inspect (--agent.reward_scale shrinks them)")
    if config.on_divergence == "stop":
        found.append("--on_divergence=rewind")
    return found
