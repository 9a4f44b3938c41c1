"""The command line, one file a command. `run` calls a command and turns a `UserError` into one line and exit code 2."""

import contextlib
import importlib
import sys

from floq.utils.errors import Failed, Interrupted, UserError, nearest
from floq.utils.signals import raise_signals, signal_of
from floq.utils.untrusted import printable

COMMANDS = {
    "train": ("train:train_command", "", "train an agent; with no arguments, the demonstration"),
    "eval": ("eval:eval_command", "RUN_DIR", "evaluate a checkpoint again"),
    "ope": ("ope:ope_command", "RUN_DIR", "how good its policy is, judged by data, without a simulator"),
    "inspect": ("inspect:inspect_run_command", "RUN_DIR", "pictures of a run's critic; with --video a film"),
    "export": (
        "export:export_command",
        "RUN_DIR",
        "its policy as a folder that needs NumPy only; also ONNX",
    ),
    "bench": ("bench:bench_command", "", "cost of K and of a fleet on this machine"),
    "sweep": ("sweep:sweep_command", "FILE", "train the runs of an experiment file, plot the results; also on Ray"),
    "watch": ("report:watch_command", "RUNS", "progress of runs, live"),
    "report": ("report:report_command", "RUNS", "results of runs: a page, or files for a paper"),
    "data collect": ("data:collect_command", "NAME", "make an OGBench dataset with an expert"),
    "data inspect": ("data:inspect_command", "NAME", "describe a dataset: a table, a picture, and warnings"),
    "data convert": ("data:convert_command", "A B", "write a dataset as an OGBench npz or for Minari"),
}
"""The file and the function of each command, its arguments, and what it does. A file is imported when it is called."""


def run(argv: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 the input is wrong, 128 + n after signal n, 1 otherwise."""
    if not argv or argv[0] in ("-h", "--help"):
        print("floq: reinforcement learning with a Q-function that is integrated, not looked up\n")
        for name, (_, arguments, what) in COMMANDS.items():
            print(f"  floq {f'{name} {arguments}':<19} {what}")
        print("\nEach command explains its options with --help.")
        return 0
    try:
        with raise_signals():
            name = _name_of(argv)
            file, function = COMMANDS[name][0].split(":")
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
