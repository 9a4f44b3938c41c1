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
from floq.runs.run import Run
from floq.training.fleet import Fleet
from floq.training.schedule import Schedule
from floq.utils.progress import Display

MAX_REWINDS = 3  # between two checkpoints that are due
USUAL_LR = 3e-4

Info = dict[str, float]


class Divergences:
    """Stops or rewinds the runs of a fleet that diverge. A run rewinds only to checkpoints that are due by the
    schedule, since others depend on signals and clocks. `save` writes that of one run, given its number and step."""

    def __init__(
        self, runs: Sequence[Run], fleet: Fleet, schedule: Schedule, display: Display, save: Callable[[int, int], None]
    ):
        self._runs, self._fleet, self._schedule = runs, fleet, schedule
        self._display, self._save = display, save
        self.stopped: dict[int, str] = {}
        """By run, a message about each that was stopped."""

    @property
    def active(self) -> list[int]:
        """The runs that were not stopped."""
        return [run for run in range(len(self._runs)) if run not in self.stopped]

    def handle(self, step: int, infos: list[Info]) -> list[Info]:
        """Stop or rewind the runs that had a fault on the way to this step. `infos` are those of each run's last
        update. Returns them; of a run that was rewound, those of its updates since."""
        found = list(infos)
        for run, fault in enumerate(self._fleet.faults):
            while fault != OK and run not in self.stopped:
                found[run] = self._handle_one(run, TERMS[fault - 1], step, found[run])
                fault = self._fleet.faults[run]
        return found

    def _handle_one(self, number: int, term: str, step: int, info: Info) -> Info:
        run, agent, online = self._runs[number], self._fleet.agent(number), self._schedule.is_online(step - 1)
        at, folder, rewinds = step if online else int(agent.step), run.folder / "checkpoints", run.rewinds
        what = f"seed {run.config.seed} diverged at step {at}: the {term} is not finite"
        # Back to the newest checkpoint that was due, and one further for each rewind since.
        due = [saved for saved in checkpoint.steps(folder) if 0 < saved <= at and self._schedule.save_due(saved)]
        times = sum(rewind["step"] >= due[-1] for rewind in rewinds) if due else 0
        if run.config.on_divergence == "stop" or times >= min(len(due), MAX_REWINDS):
            self._stop(number, at, term, what, info)
            return info
        earlier = due[-1 - times]
        saved = checkpoint.load(folder, earlier).agent
        learned = {name: getattr(saved, name) for name in ("params", "target", "target_actor", "opt_state")}
        # Online the updates until now are left out; offline the run catches up, on other batches than led here.
        beyond = self._fleet.step if online else int(agent.step) + 1
        self._fleet.replace(number, dataclasses.replace(agent, **learned, step=jnp.int32(beyond)))
        run.write_json("rewinds.json", [*rewinds, {"step": at, "to": earlier, "term": term}])
        self._display.note(f"rewind  {what}; it goes on with the weights of step {earlier} and other batches")
        return dict.fromkeys(info, math.nan) if online else self._fleet.advance(0)[number]

    def _stop(self, number: int, at: int, term: str, what: str, info: Info) -> None:
        run = self._runs[number]
        self._save(number, at)
        metrics = {name: x if math.isfinite(x) else str(x) for name, x in info.items()}
        run.write_json("diverged.json", {"step": at, "term": term, "metrics": metrics})
        helps = ", ".join(what_helps(run.config, term))
        if run.config.on_divergence == "rewind":
            helps = f"it has gone back as often as it may, or has no checkpoint to go back to; {helps}"
        saved = run.folder / "checkpoints" / str(at)
        self.stopped[number] = f"{what}; its last good state is {saved}; what helps: {helps}"
        self._display.note(f"stopped {self.stopped[number]}")


def what_helps(config: Config, term: str) -> list[str]:
    """List flags that usually keep a run with these settings from diverging in this term, the most likely first."""
    agent, critic = config.agent.flat(), not term.startswith("actor")
    look = "a look at the rewards with floq data inspect (--agent.reward_scale shrinks them)"
    helps = {
        f"--agent.lr={min(config.agent.lr / 3, USUAL_LR):.1g}": True,
        "--precision=f32": config.precision != "f32",
        "--agent.layer_norm=True": critic and not agent.get("layer_norm", True),
        "--agent.tau=0.005": critic and config.agent.tau > 0.005,
        "--agent.q_agg=min": critic and agent.get("q_agg") == "mean",
        "--agent.normalize_q_loss=True": not critic and not agent.get("normalize_q_loss", True),
        "--agent.actor_layer_norm=True": not critic and not agent.get("actor_layer_norm", True),
        look: critic,
        "--on_divergence=rewind": config.on_divergence == "stop",
    }
    return [flag for flag, applies in helps.items() if applies]
