"""The command line. Parses, calls one function, turns a `UserError` into one line and exit code 2."""

import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from tyro.conf import Positional

from floq.errors import Interrupted, UserError, nearest

T = TypeVar("T")

USAGE = """\
floq: reinforcement learning with a Q-function that is integrated, not looked up

  floq train               train an agent; with no arguments, the demonstration
  floq eval RUN_DIR        evaluate a checkpoint again
  floq data collect NAME   make an OGBench dataset with its scripted expert

Each command explains its options with --help.
"""


def main() -> None:
    """The `floq` command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """Run one command and return its exit code: 0 done, 2 the input is wrong, 128 + n after signal n, 1 otherwise."""
    commands: dict[tuple[str, ...], Callable[[list[str]], None]] = {
        ("train",): _train,
        ("eval",): _eval,
        ("data", "collect"): _collect,
    }
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    try:
        for words, command in commands.items():
            if tuple(argv[: len(words)]) == words:
                command(argv[len(words) :])
                return 0
        typed = " ".join(argv[: 2 if argv[0] == "data" else 1])
        known = [" ".join(words) for words in commands]
        raise UserError(f"unknown command {typed!r}; commands are {', '.join(known)}{nearest(typed, known)}")
    except UserError as error:
        print(f"floq: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("floq: stopped", file=sys.stderr)
        return 130
    except Interrupted as error:
        print(f"floq: {error}", file=sys.stderr)
        return 128 + error.signum


# --- floq train ---


def _train(argv: list[str]) -> None:
    dry_run, config, notice = parse_train(argv)
    if notice:
        print(f"floq: {notice}", file=sys.stderr)
    if dry_run:
        import json

        print(json.dumps(config.to_json(), indent=2))
        return
    from floq.train import train

    train(config)


def parse_train(argv: list[str]) -> tuple[bool, Any, str | None]:
    """`floq train`'s arguments as (whether it is a dry run, resolved configuration, a notice about it)."""
    from floq.config import AGENTS, Config, settings_type
    from floq.presets import PRESETS, configure, notice

    flags = _Flags(argv)
    agent = flags.take("agent", "floq")
    preset = flags.take("preset", None)
    dry_run = flags.take_switch("dry_run")
    parts = {kind: flags.take(f"agent.{kind}", None) for kind in ("critic", "actor")}
    # Flags refine the preset that the environment and the agent select: parse them with that as the default.
    base = configure(flags.peek("env_name"), agent, preset=preset, **parts)
    critic, actor = base.agent.critic_name, base.agent.actor_name
    settings = settings_type(critic, actor)
    types: dict[str, Any] = {f.name: f for f in dataclasses.fields(Config)}
    types |= {f"agent.{f.name}": f for f in dataclasses.fields(settings)}
    command = dataclasses.make_dataclass(
        "Train", [("agent", settings, field(default=settings(**base.agent.flat())))], bases=(Config,), frozen=True
    )
    description = (
        "Train an agent offline. --agent NAME chooses a pair of critic and actor with its settings "
        f"({', '.join(AGENTS)}; agents/floq.py: the published defaults without the environment's settings), "
        "--agent.critic and --agent.actor replace one of the two, "
        f"--preset NAME ({', '.join(PRESETS)}) changes the settings, --dry_run prints the resolved configuration."
    )
    default = command(**{f.name: getattr(base, f.name) for f in dataclasses.fields(Config) if f.name != "agent"})
    parsed = _parse(command, flags.normalised(types, critic), "floq train", description, default)
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(Config) if f.name != "agent"}
    config = Config(**values, agent=type(base.agent).from_flat(critic, actor, dataclasses.asdict(parsed.agent)))
    return dry_run, config, notice(config.env_name, agent)


class _Flags:
    """Arguments in the published spelling: `--x=1`, `--x 1`, `--x=True`, bare switches, tuples such as "(512,512)"."""

    def __init__(self, argv: list[str]):
        self._pairs: list[tuple[str, list[str]]] = []
        self.help = False
        for word in argv:
            if word in ("-h", "--help"):
                self.help = True
            elif word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                if " --" in value or "--agent." in value:
                    mended = re.sub(r"\s*--", " --", word).strip()
                    raise UserError(f"{word!r} runs two flags together; write {mended}")
                self._pairs.append((name.replace("-", "_"), [value] if equals else []))
            elif self._pairs:
                self._pairs[-1][1].append(word)
            else:
                raise UserError(f"unexpected argument {word!r}: settings are given as --name=value")

    def peek(self, name: str, default: str | None = None) -> str | None:
        """The last value given for a flag."""
        values = [words for flag, words in self._pairs if flag == name]
        if values and len(values[-1]) != 1:
            raise UserError(f"--{name} needs one value")
        return values[-1][0] if values else default

    def take(self, name: str, default: Any) -> Any:
        """The same, and forget the flag."""
        value = self.peek(name, default)
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        return value

    def take_switch(self, name: str) -> bool:
        """Whether a switch is on: `--name`, `--name=True`."""
        given = [" ".join(words).lower() or "true" for flag, words in self._pairs if flag == name]
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        if given and given[-1] not in ("true", "false"):
            raise UserError(f"--{name}={given[-1]}: write --{name}, --{name}=True or --{name}=False")
        return bool(given) and given[-1] == "true"

    def normalised(self, fields: dict[str, Any], critic: str) -> list[str]:
        """The arguments as tyro reads them. Raises UserError for a flag that is not in `fields`."""
        from floq.config import PUBLISHED_ALIASES

        words = ["--help"] if self.help else []
        for name, values in self._pairs:
            prefix, _, last = name.rpartition(".")
            alias = PUBLISHED_ALIASES.get(critic, {}).get(last) if prefix == "agent" else None
            name = f"agent.{alias}" if alias else name
            if name not in fields or name == "agent":
                known = [f"--{field}" for field in fields if field != "agent"]
                raise UserError(f"unknown flag --{name} for this agent{nearest(f'--{name}', known)}")
            kind = fields[name].type
            if kind is bool:
                values = [{"true": "True", "false": "False"}.get(v.lower(), v) for v in values] or ["True"]
            elif str(kind).startswith("tuple"):
                values = [v for value in values for v in re.split(r"[\s,]+", value.strip("()[] ")) if v]
            words += [f"--{name}", *values]
        return words


# --- floq eval ---


@dataclass(frozen=True)
class Eval:
    """Evaluate a checkpoint of a run. The same command gives the same number, whatever the number of workers."""

    run_dir: Positional[str]
    """The run's folder."""
    step: int | None = None
    """Which checkpoint; by default the newest."""
    eval_episodes: int = 50
    """Episodes."""
    seed: int | None = None
    """Episodes are drawn with this seed; by default the run's, which repeats the evaluation of its training."""
    success_timing: Literal["post", "pre"] | None = None
    """post or pre; by default as in training."""
    workers: int | None = None
    """Processes; by default one per core."""


def _eval(argv: list[str]) -> None:
    options = _parse(Eval, argv, "floq eval", Eval.__doc__ or "")
    from floq.evaluate import evaluate_run

    evaluate_run(**dataclasses.asdict(options))


# --- floq data collect ---


@dataclass(frozen=True)
class Collect:
    """Make an OGBench dataset with the benchmark's own scripted expert: NAME.npz, NAME-val.npz, and NAME.json."""

    name: Positional[str]
    """A dataset, such as pointmaze-medium-navigate-v0."""
    episodes: int | None = None
    """Training episodes; by default as many as published. A tenth on top is for validation."""
    seed: int = 0
    """With the number of episodes, determines the result."""
    workers: int | None = None
    """Processes; by default one per core."""
    dataset_dir: str = "~/.ogbench/data"
    """Where the files go."""


def _collect(argv: list[str]) -> None:
    options = _parse(Collect, argv, "floq data collect", Collect.__doc__ or "")
    from pathlib import Path

    from floq.data.collect import collect, recipe
    from floq.progress import Display

    display = Display()
    episodes = recipe(options.name).episodes if options.episodes is None else options.episodes
    with display.bar("collect", episodes + max(1, episodes // 10)) as update:
        path = collect(
            options.name,
            Path(options.dataset_dir).expanduser(),
            episodes=options.episodes,
            seed=options.seed,
            workers=options.workers,
            on_progress=lambda done, _: update(done),
        )
    display.note(f"wrote {path}")


def _parse(command: type[T], argv: list[str], prog: str, description: str, default: T | None = None) -> T:
    """Let tyro parse, and shrink what it prints about an error to one line."""
    import tyro

    complaint = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                command,
                args=argv,
                prog=prog,
                description=description,
                config=(tyro.conf.FlagConversionOff,),
                use_underscores=True,
                **options,
            )
    except SystemExit as exit:
        if exit.code in (0, None):
            raise
        raise UserError(_first_sentence(complaint.getvalue())) from None


def _first_sentence(box: str) -> str:
    """What tyro's framed complaint says above its first rule; where the terminal has no box characters, the title and
    a rule stand above that."""
    is_rule = lambda line: bool(line) and set(line) <= {"─", "-"}  # noqa: E731
    lines = [line.strip("│ ") for line in box.splitlines() if line.strip() and line[0] not in "╭╰"]
    if len(lines) > 1 and is_rule(lines[1]):
        lines = lines[2:]
    end = next((i for i, line in enumerate(lines) if is_rule(line)), len(lines))
    return " ".join(lines[:end])
