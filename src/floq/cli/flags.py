"""Command-line flags in the spelling of the published code, converted for tyro; and tyro's errors on one line."""

import contextlib
import dataclasses
import inspect
import io
import itertools
import json
import re
import types
from collections.abc import Container, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from floq.utils.errors import UserError, nearest
from floq.utils.files import user_path
from floq.utils.schema import read_toml

T = TypeVar("T")


class Flags:
    """Arguments in the published spelling: `--x=1`, `--x 1`, `--x=True`, bare switches, tuples such as "(512,512)". The
    last of several equal flags counts. `values`: the words after each flag."""

    def __init__(self, argv: Sequence[str]):
        self.values: dict[str, list[str]] = {}
        self.help, last = False, None
        for word in argv:
            if word in ("-h", "--help"):
                self.help = True
            elif word.startswith("--"):
                name, equals, value = word[2:].partition("=")
                if " --" in value or "--agent." in value:
                    corrected = re.sub(r"\s*--", " --", word).strip()
                    raise UserError(f"{word!r} runs two flags together; write {corrected}")
                last = [value] if equals else []
                self.values[name.replace("-", "_")] = last
            elif last is not None:
                last.append(word)
            else:
                raise UserError(f"unexpected argument {word!r}: settings are given as --name=value")

    def peek(self, name: str) -> str | None:
        """Return the value of a flag; None if it is not given."""
        words = self.values.get(name)
        if words is not None and len(words) != 1:
            raise UserError(f"--{name} needs one value")
        return words[0] if words else None

    def take(self, name: str) -> str | None:
        """Remove a flag and return its value; None if it is not given."""
        value = self.peek(name)
        self.values.pop(name, None)
        return value

    def take_switch(self, name: str) -> bool:
        """Remove a switch and return whether it is on: `--name`, `--name=True`."""
        value = " ".join(self.values.pop(name, ["false"])).lower() or "true"
        if value not in ("true", "false"):
            raise UserError(f"--{name}={value}: write --{name}, --{name}=True or --{name}=False")
        return value == "true"

    def take_table(self, prefix: str) -> dict[str, Any]:
        """Remove flags such as `--PREFIX.NAME=VALUE` and return the values by name: what is JSON, such as 1, true or
        [1, 2], as that, everything else as a text. `--PREFIX=FILE.toml` gives those of a file."""
        path = self.take(prefix)
        found: dict[str, Any] = {} if path is None else read_toml(user_path(path))
        for flag in [flag for flag in self.values if flag.startswith(f"{prefix}.")]:
            name, text = flag.removeprefix(f"{prefix}."), self.take(flag) or ""
            try:
                found[name] = json.loads({"True": "true", "False": "false"}.get(text, text))
            except ValueError:
                found[name] = text
        return found

    def take_seeds(self) -> list[int]:
        """Remove `--seeds 0 1 2` (or `--seeds=0,1,2`) and return its values without repetitions; [] if not given."""
        if (given := self.values.pop("seeds", None)) is None:
            return []
        if "seed" in self.values:
            raise UserError("--seed and --seeds exclude each other: give one of them")
        words = _numbers(given)
        if not words or not all(re.fullmatch(r"\d+", word) for word in words):
            raise UserError(f"--seeds {' '.join(given)}: give whole numbers, as in --seeds 0 1 2")
        return list(dict.fromkeys(int(word) for word in words))

    def selected(self, names: Container[str]) -> "Flags":
        """Return a copy with only the flags of these names, and with the request for help, if any."""
        return self._copy({name: words for name, words in self.values.items() if name in names})

    def drop(self, names: Container[str]) -> None:
        """Remove the flags of these names."""
        self.values = {name: words for name, words in self.values.items() if name not in names}

    def variants(self, fields: Mapping[str, Any]) -> "list[Flags]":
        """Return a set of flags for each combination of values of flags that have several: `--agent.alpha 100 300`, or
        `--agent.alpha=100,300`. The first flag varies slowest. All words of a flag whose field is a tuple are one
        value."""
        several: dict[str, list[str]] = {}
        for name, words in self.values.items():
            kinds = _types(fields[name].type) if name in fields else [tuple]
            if int in kinds or float in kinds:
                words = _numbers(words) or words
            if len(words) > 1 and tuple not in kinds:
                several[name] = list(dict.fromkeys(words))
        combinations = itertools.product(*several.values())
        return [
            self._copy(self.values | {name: [word] for name, word in zip(several, words, strict=True)})
            for words in combinations
        ]

    def normalised(self, fields: Mapping[str, Any]) -> list[str]:
        """Return the arguments in tyro's spelling. Raises UserError for a flag that is not in `fields`."""
        words = ["--help"] if self.help else []
        for name, values in self.values.items():
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

    def _copy(self, values: dict[str, list[str]]) -> "Flags":
        copied = Flags([])
        copied.help, copied.values = self.help, values
        return copied


def _types(hint: Any) -> list[Any]:
    """Return the types that an annotation allows, without their bounds and members."""
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        alternatives = get_args(hint)[:1] if get_origin(hint) is Annotated else get_args(hint)
        return [kind for alternative in alternatives for kind in _types(alternative)]
    return [get_origin(hint) or hint]


def _numbers(values: list[str]) -> list[str]:
    """Split a list in any spelling: `0 1 2`, `0,1,2`, `(0, 1, 2)`."""
    return [word for value in values for word in re.split(r"[\s,]+", value.strip("()[] ")) if word]


def fields_of(options: Any) -> dict[str, Any]:
    """Return the fields of a dataclass by name."""
    return {field.name: field for field in dataclasses.fields(options)}


def split_words(argv: Sequence[str]) -> tuple[list[str], Flags]:
    """Return the positional words, which come first, and the flags."""
    count = next((number for number, word in enumerate(argv) if word.startswith("-")), len(argv))
    return list(argv[:count]), Flags(argv[count:])


def parse_options(options: type[T], argv: Sequence[str], prog: str) -> T:
    """Parse the options of a command, a dataclass: its positional words, which come first, and flags."""
    positional, flags = split_words(argv)
    tables = {name: flags.take_table(name) for name, field in fields_of(options).items() if dict in _types(field.type)}
    words = [*positional, *flags.normalised(fields_of(options))]
    return dataclasses.replace(parse(without_tables(options), words, prog), **tables)


def without_tables(options: Any) -> Any:
    """Return a dataclass that hides from tyro the fields that are tables, which `Flags.take_table` reads. Its help has
    the settings of a class before those that it inherits."""
    from tyro.conf import Suppress

    tables = [field for field in fields_of(options).values() if dict in _types(field.type)]
    fields = [(f.name, Annotated[Any, Suppress], dataclasses.field(default=f.default, kw_only=True)) for f in tables]
    words = {"__doc__": options.__doc__}
    hidden = dataclasses.make_dataclass(options.__name__, fields, bases=(options,), frozen=True, namespace=words)
    depth = lambda name: next(i for i, base in enumerate(options.__mro__) if name in base.__annotations__)  # noqa: E731
    hidden.__dataclass_fields__ = {
        name: hidden.__dataclass_fields__[name] for name in sorted(fields_of(options), key=depth)
    }
    return hidden


def parse(options: type[T], argv: list[str], prog: str, description: str | None = None, default: T | None = None) -> T:
    """Parse arguments with tyro; the description is by default the docstring of the options. Raises UserError with the
    first sentence of tyro's error."""
    import tyro

    message = io.StringIO()
    refined: dict[str, Any] = {"config": (tyro.conf.FlagConversionOff,)}
    refined |= {} if default is None else {"default": default}
    text = description or inspect.cleandoc(options.__doc__ or "")
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(options, args=argv, prog=prog, description=text, use_underscores=True, **refined)
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
