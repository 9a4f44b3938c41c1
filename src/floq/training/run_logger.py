"""Logs of one run of a fleet while it is trained."""

from collections.abc import Mapping
from typing import Any

from floq.agent.state import Keys
from floq.evaluation.held_out import HeldOutEvaluation
from floq.evaluation.rollouts import Evaluation
from floq.runs.loggers import CsvLogger, MetricSinks
from floq.runs.run import Run
from floq.utils import files


class RunLogger:
    """Writes the logs of one run, to its folder and to the sinks it asks for, from `step` on."""

    def __init__(self, run: Run, step: int = 0):
        self.run, self.config = run, run.config
        self._sinks = MetricSinks(run.folder, run.config, step)
        self.keys = Keys.of(run.config.seed)
        self.train_log, self.eval_log = CsvLogger(run.folder / "train.csv"), CsvLogger(run.folder / "eval.csv")
        self.scores = {name: column[-1] for name, column in run.evaluations().items()}
        self.last_row = {name: column[-1] for name, column in run.training().items()}

    def log_evaluation(self, evaluation: Evaluation | HeldOutEvaluation, seconds: float) -> None:
        """Write a row of eval.csv."""
        self.scores = evaluation.summary()
        self._log(self.eval_log, evaluation.step, self.scores | {"time/total_time": seconds})

    def log_training(self, step: int, row: Mapping[str, float]) -> None:
        """Write a row of train.csv."""
        self._log(self.train_log, step, row)

    def note_rewind(self, rewind: Mapping[str, Any]) -> None:
        """Add to `rewinds.json`."""
        self.run.write_json("rewinds.json", [*self.run.rewinds, dict(rewind)])

    def sync(self) -> None:
        """Flush the rows to the disk: a resumed run does not write those before its checkpoint again."""
        for log in (self.train_log, self.eval_log):
            log.sync()
        files.sync(self.run.folder)

    def close(self) -> None:
        """Close the sinks."""
        self._sinks.close()

    def _log(self, log: CsvLogger, step: int, row: Mapping[str, float]) -> None:
        for destination in (log, self._sinks):
            destination.log(step, dict(row))
