"""Settings: frozen dataclasses whose fields have the type and the bounds of a value, which pydantic checks wherever it
comes from, and marks that say what else holds for it. Tables of TOML files.

All functions raise UserError for what they do not accept.
"""

import dataclasses
import enum
import functools
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, cast, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Len

from floq.utils.errors import UserError, nearest
from floq.utils.untrusted import TOML_LIMIT, check_depth, read_text

T = TypeVar("T")

# --- TOML files ---


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a file. Raises UserError if it is missing, not TOML, too large or nested too deep."""
    try:
        found = tomllib.loads(read_text(path, TOML_LIMIT))
        check_depth(found)
        return found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read it ({getattr(error, 'strerror', error)})") from error


def from_table(kind: type[T], table: Mapping[str, Any], where: str, also: Iterable[str] = (), **given: Any) -> T:
    """Make a dataclass from a table of a file, whose values are compared with its annotations. Raises UserError, whose
    message begins with `where`, if a key is unknown or missing, or a value is wrong.

    Args:
        kind: the dataclass.
        table: the values by name.
        where: file and table.
        also: keys of the table that are read elsewhere.
        **given: values of fields that are no keys of the table.
    """
    hints = {name: hint for name, hint in hints_of(kind).items() if name not in given}
    for key in table:
        if key not in (known := [*hints, *also]):
            raise UserError(f"{where}: unknown key {key!r}; known are {', '.join(known)}{nearest(key, known)}")
    optional = {f.name for f in dataclasses.fields(cast(Any, kind)) if f.default is not f.default_factory}
    if missing := [name for name in hints if name not in table and name not in optional]:
        raise UserError(f"{where}: {missing[0]} is missing")
    values = {name: convert(f"{where}: {name}", table[name], hint) for name, hint in hints.items() if name in table}
    try:
        return kind(**given, **values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


# --- Types with bounds ---

MAX_INT, MAX_SIZE, MAX_COUNT = 2**31 - 1, 2**16, 2**20
"""Upper bounds of whole numbers, layer sizes and ensembles or batches: a larger value is a mistake or an attack, and
would exhaust memory or time. No published setting comes near."""

Positive: TypeAlias = Annotated[int, Gt(0), Le(MAX_INT)]
NonNegative: TypeAlias = Annotated[int, Ge(0), Le(MAX_INT)]
Size: TypeAlias = Annotated[int, Gt(0), Le(MAX_SIZE)]
Count: TypeAlias = Annotated[int, Gt(0), Le(MAX_COUNT)]
Depth: TypeAlias = Annotated[int, Gt(0), Le(2**8)]
HiddenDims: TypeAlias = Annotated[tuple[Size, ...], Len(1, 2**8)]
PositiveFloat: TypeAlias = Annotated[float, Gt(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Ge(0)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**32)]  # these give distinct random streams


class Mark(enum.Enum):
    """What else holds for a setting: `Annotated[float, Ge(0), Mark.TRACED]`."""

    TRACED = "an array in the program, so that a fleet may vary it"
    RESUMABLE = "may change when a run is resumed"
    RESUMABLE_OFFLINE = "may change when a run is resumed, before its online phase"
    NOT_HASHED = "does not distinguish runs: the digest leaves it out"
    HASHED_IF_SET = "younger than the first release: in the digest if it is not at its default"


# --- Settings ---


class FrozenDict(dict[str, Any]):
    """A table as a setting: hashable, so do not change it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True, default=str))

    @classmethod
    def of_json(cls, table: dict[str, Any]) -> "FrozenDict":
        """Return a table as JSON stores it. Raises ValueError if it has values that JSON has not."""
        try:
            return cls(json.loads(json.dumps(table, allow_nan=False)))
        except TypeError as error:
            raise ValueError(f"{error}: give texts, numbers, true, false, and lists and tables of these") from error


NO_ARGUMENTS = FrozenDict()


class Settings:
    """Base class of settings, which are frozen dataclasses: their values are checked when they are made."""

    def __post_init__(self) -> None:
        check_settings(self)


def check_settings(settings: Any) -> None:
    """Check the values of a dataclass against the annotations of its fields, and store those that `convert` changes."""
    for name, hint in hints_of(type(settings)).items():
        if not dataclasses.is_dataclass(hint):
            object.__setattr__(settings, name, convert(name, getattr(settings, name), hint))


@functools.cache
def hints_of(settings: type) -> dict[str, Any]:
    """Return the annotation of each field of a dataclass."""
    hints = get_type_hints(settings, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(settings)}


@functools.cache
def marked(settings: type, *marks: Mark) -> tuple[str, ...]:
    """Return the names of the fields with one of these marks."""
    return tuple(name for name, hint in hints_of(settings).items() if any(part in marks for part in _parts(hint)))


def convert(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its annotation says: a list becomes a tuple; a whole number a float where that is meant, or the
    same run would have two digests. Everything else must have its type and be within its bounds."""
    from pydantic import ValidationError

    try:
        found = _adapter(hint).validate_python(tuple(value) if isinstance(value, list) else value)
        if isinstance(value, bool) and found is not value:  # True equals 1, and is none of 0 and 1
            choices = [repr(part) for part in _parts(hint) if type(part) is int]
            raise UserError(f"{name} = {value!r}: must be one of {', '.join(choices)}")
        return found
    except ValidationError as error:
        raise UserError(_in_words(name, value, error.errors(include_url=False)[0], hint)) from None


@functools.cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


_KINDS = {"int_type": "a whole number", "float_type": "a number", "bool_type": "true or false", "string_type": "a text"}
_KINDS |= {"tuple_type": "a list", "list_type": "a list", "dict_type": "a table"}
_LIMITS = {"gt": "greater than", "ge": "at least", "lt": "less than", "le": "at most"}


def _in_words(name: str, value: Any, error: Any, hint: Any) -> str:
    """Say on one line what pydantic found wrong with a value, or with a member of it."""
    kind, broken = error["type"], error.get("ctx", {})
    value = error["input"] if error["loc"] else value
    name = ".".join([name, *(part for part in error["loc"] if isinstance(part, str))])
    if kind in _KINDS or kind == "literal_error":
        return f"{name} = {value!r}: must be {_KINDS.get(kind) or 'one of ' + broken['expected'].replace(' or ', ', ')}"
    if kind == "finite_number":
        return f"{name}={value}: must be finite"
    if kind in ("too_short", "too_long"):
        least = "min_length" in broken
        return f"{name}: give at {'least' if least else 'most'} {broken['min_length' if least else 'max_length']}"
    if not broken.keys() <= _LIMITS.keys():
        return f"{name}: {broken.get('error', error['msg'])}"
    pair = next((dataclasses.asdict(part) for part in _parts(hint) if isinstance(part, Interval)), broken)
    limits = {limit: str(x) if isinstance(x, int) else f"{x:g}" for limit, x in pair.items() if x is not None}
    if limits.keys() == {"ge", "le"}:
        return f"{name}={value}: must be between {limits['ge']} and {limits['le']}"
    return f"{name}={value}: must be {' and '.join(f'{_LIMITS[limit]} {x}' for limit, x in limits.items())}"


def _parts(hint: Any) -> Iterator[Any]:
    """Go through the types and metadata that an annotation consists of."""
    yield hint
    for part in get_args(hint):
        yield from _parts(part)
