"""Command-line flags in the spelling of the published code, converted for tyro; and tyro's errors on one line."""

import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import json
import re
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from floq.utils.errors import UserError, nearest

T = TypeVar("T")


class Flags:
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
                    corrected = re.sub(r"\s*--", " --", word).strip()
                    raise UserError(f"{word!r} runs two flags together; write {corrected}")
                self._pairs.append((name.replace("-", "_"), [value] if equals else []))
            elif self._pairs:
                self._pairs[-1][1].append(word)
            else:
                raise UserError(f"unexpected argument {word!r}: settings are given as --name=value")

    def peek(self, name: str, default: str | None = None) -> str | None:
        """Return the last value given for a flag."""
        values = [words for flag, words in self._pairs if flag == name]
        if values and len(values[-1]) != 1:
            raise UserError(f"--{name} needs one value")
        return values[-1][0] if values else default

    def take(self, name: str, default: Any) -> Any:
        """Remove a flag and return its last value."""
        value = self.peek(name, default)
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        return value

    def take_list(self, name: str) -> list[str]:
        """Remove a flag and return all its values."""
        values = [word for flag, words in self._pairs if flag == name for word in words]
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        return values

    def take_switch(self, name: str) -> bool:
        """Remove a switch and return whether it is on: `--name`, `--name=True`."""
        given = [" ".join(words).lower() or "true" for flag, words in self._pairs if flag == name]
        self._pairs = [pair for pair in self._pairs if pair[0] != name]
        if given and given[-1] not in ("true", "false"):
            raise UserError(f"--{name}={given[-1]}: write --{name}, --{name}=True or --{name}=False")
        return bool(given) and given[-1] == "true"

    def take_table(self, prefix: str) -> dict[str, Any]:
        """Remove flags such as `--PREFIX.NAME=VALUE` and return the values by name: what is JSON, such as 1, true or
        [1, 2], as that, everything else as a text."""
        found: dict[str, Any] = {}
        for flag in [flag for flag in self.names() if flag.startswith(f"{prefix}.")]:
            name, text = flag.removeprefix(f"{prefix}."), str(self.take(flag, "true"))
            try:
                found[name] = json.loads({"True": "true", "False": "false"}.get(text, text))
            except ValueError:
                found[name] = text
        return found

    def take_seeds(self) -> list[int]:
        """Remove `--seeds 0 1 2` (or `--seeds=0,1,2`) and return its values without repetitions; [] if not given."""
        given = [words for flag, words in self._pairs if flag == "seeds"]
        if not given:
            return []
        if "seed" in self.names():
            raise UserError("--seed and --seeds exclude each other: give one of them")
        self._pairs = [pair for pair in self._pairs if pair[0] != "seeds"]
        words = _numbers(given[-1])
        if not words or not all(re.fullmatch(r"\d+", word) for word in words):
            raise UserError(f"--seeds {' '.join(given[-1])}: give whole numbers, as in --seeds 0 1 2")
        return list(dict.fromkeys(int(word) for word in words))

    def split(self, names: Iterable[str]) -> "Flags":
        """Move the flags of these names to a new set, and return it with the request for help, if any."""
        own = copy.copy(self)
        own._pairs = [pair for pair in self._pairs if pair[0] in names]
        self._pairs = [pair for pair in self._pairs if pair[0] not in names]
        return own

    def keeping(self, names: Iterable[str], aliases: Mapping[str, str]) -> "Flags":
        """Return a copy with only the flags of these names, also under an alias."""
        kept = copy.copy(self)
        kept._pairs = [pair for pair in self._pairs if aliases.get(pair[0], pair[0]) in names]
        return kept

    def variants(self, fields: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> "list[Flags]":
        """Return a set of flags for each combination of values of flags that have several: `--agent.alpha 100 300`, or
        `--agent.alpha=100,300`. The first flag varies slowest, and the last of several equal flags counts. All words of
        a flag whose field is a tuple are one value."""
        allowed = {name: _types(field.type) for name, field in fields.items()}
        several: list[tuple[str, list[str]]] = []
        for name, words in dict(self._pairs).items():
            kinds = allowed.get((aliases or {}).get(name, name), [tuple])
            if int in kinds or float in kinds:
                words = _numbers(words) or words
            if len(words) > 1 and tuple not in kinds:
                several.append((name, list(dict.fromkeys(words))))
        found = []
        for combination in itertools.product(*(words for _, words in several)):
            single = {name: [word] for (name, _), word in zip(several, combination, strict=True)}
            flags = copy.copy(self)
            flags._pairs = list((dict(self._pairs) | single).items())
            found.append(flags)
        return found

    def names(self) -> list[str]:
        """Return the names of the flags that are left."""
        return [name for name, _ in self._pairs]

    def normalised(self, fields: dict[str, Any], aliases: Mapping[str, str] | None = None) -> list[str]:
        """Return the arguments in tyro's spelling. Raises UserError for a flag that is not in `fields`."""
        words = ["--help"] if self.help else []
        for given, values in self._pairs:
            name = (aliases or {}).get(given, given)
            if name not in fields or name == "agent":
                known = [f"--{field}" for field in fields if field != "agent"]
                raise UserError(f"unknown flag --{name} for this agent{nearest(f'--{name}', known)}")
            kinds = _types(fields[name].type)
            if bool in kinds:
                values = [{"true": "True", "false": "False"}.get(v.lower(), v) for v in values] or ["True"]
            elif tuple in kinds:
                values = _numbers(values)
            words += [f"--{name}", *values]
        return words


def _types(hint: Any) -> list[Any]:
    """Return the types that an annotation allows, without their bounds and members."""
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        alternatives = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
        return [kind for alternative in alternatives for kind in _types(alternative)]
    return [get_origin(hint) or hint]


def _numbers(values: list[str]) -> list[str]:
    """Split a list in any spelling: `0 1 2`, `0,1,2`, `(0, 1, 2)`."""
    return [word for value in values for word in re.split(r"[\s,]+", value.strip("()[] ")) if word]


def parse_with_folder(command: type[T], argv: list[str], prog: str) -> T:
    """Parse the options of a dataclass whose first field is a positional folder: `floq inspect RUN_DIR --step=5`."""
    folder = [word for word in argv[:1] if not word.startswith("-")]
    fields = {field.name: field for field in dataclasses.fields(cast(Any, command))}
    words = [*folder, *Flags(argv[len(folder) :]).normalised(fields)]
    return parse(command, words, prog, command_help(command))


def command_help(command: type) -> str:
    """Return the help text of a command: the docstring of its options, without the indentation of the source."""
    return inspect.cleandoc(command.__doc__ or "")


def parse(command: type[T], argv: list[str], prog: str, description: str, default: T | None = None) -> T:
    """Parse arguments with tyro. Raises UserError with the first sentence of tyro's error."""
    import tyro

    message = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(message):
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
        raise UserError(_first_sentence(message.getvalue())) from None


def _first_sentence(box: str) -> str:
    """Return the text of tyro's framed error message above its first rule. A frame without box characters has the title
    and a rule above that text."""
    is_rule = lambda line: bool(line) and set(line) <= {"─", "-"}  # noqa: E731
    lines = [line.strip("│ ") for line in box.splitlines() if line.strip() and line[0] not in "╭╰"]
    if "╭" not in box and len(lines) > 1 and is_rule(lines[1]):
        lines = lines[2:]
    end = next((i for i, line in enumerate(lines) if is_rule(line)), len(lines))
    return " ".join(lines[:end]).split("  Got errors:")[0]  # of each type of a union
