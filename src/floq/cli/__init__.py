"""The command line, one file a command. `run` calls a command and turns a `UserError` into one line and exit code 2."""

import contextlib
import importlib
import sys

from floq.utils.errors import Failed, Interrupted, UserError, nearest
from floq.utils.signals import raise_signals, signal_of
from floq.utils.untrusted import printable

USAGE = """\
floq: reinforcement learning with a Q-function that is integrated, not looked up

  floq train               train an agent; with no arguments, the demonstration
  floq eval RUN_DIR        evaluate a checkpoint again
  floq inspect RUN_DIR     pictures of a run's critic; with --video a film of its episodes
  floq export RUN_DIR      its policy as a folder that needs NumPy only; also ONNX and StableHLO
  floq bench               cost of K and of a fleet on this machine
  floq sweep FILE          train the runs of an experiment file and plot the results; with --address on Ray
  floq watch RUNS          progress of runs, live
  floq report RUNS         results of runs: a page with tables and curves, or files for a paper
  floq data collect NAME   make an OGBench dataset with an expert
  floq data inspect NAME   describe a dataset: a table, a picture, and warnings
  floq data convert A B    write a dataset as an OGBench npz or for Minari

Each command explains its options with --help.
"""

COMMANDS = {
    "train": "train:train_command",
    "eval": "eval:eval_command",
    "inspect": "inspect:inspect_run_command",
    "export": "export:export_command",
    "bench": "bench:bench_command",
    "sweep": "sweep:sweep_command",
    "watch": "report:watch_command",
    "report": "report:report_command",
    "data collect": "data:collect_command",
    "data inspect": "data:inspect_command",
    "data convert": "data:convert_command",
}
"""The file and the function of each command. A file is imported when its command is called."""


def run(argv: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 the input is wrong, 128 + n after signal n, 1 otherwise."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        with raise_signals():
            name = _name_of(argv)
            file, function = COMMANDS[name].split(":")
            command = getattr(importlib.import_module(f"floq.cli.{file}"), function)
            command(argv[len(name.split()) :])
        return 0
    except UserError as error:
        return _exit_code(2, error)
    except Failed as error:
        return _exit_code(1, error)
    except KeyboardInterrupt as stop:
        return _exit_code(128 + signal_of(stop), f"stopped by {signal_of(stop).name}")
    except Interrupted as error:
        return _exit_code(128 + error.signum, error)


def _name_of(argv: list[str]) -> str:
    """Return the command that the arguments begin with. Raises UserError if there is none."""
    typed = " ".join(argv[: 2 if argv[0] == "data" else 1])
    if typed not in COMMANDS:
        raise UserError(
            f"unknown command {typed!r}; commands are {', '.join(COMMANDS)}{nearest(typed, list(COMMANDS))}"
        )
    return typed


def _exit_code(code: int, reason: Exception | str) -> int:
    """Print why a command ended, in one line whatever names of files and settings are in it, and return the code."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"floq: {printable(str(reason))}".replace("\n", " "), file=sys.stderr)
    return code
