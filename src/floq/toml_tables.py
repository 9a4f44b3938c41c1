"""TOML files from people: what is in a table, checked, with one line that names the file where something is wrong."""

import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from floq.errors import UserError, nearest
from floq.untrusted import TOML_LIMIT, check_depth, read_text


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises UserError, as all of these do: it is missing, not TOML, too large or nested too
    deep."""
    try:
        found = tomllib.loads(read_text(path, TOML_LIMIT))
        check_depth(found)
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not TOML: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot read it ({error})") from error
    return found


def check_keys(path: Path, table: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """That a table has no other keys than these."""
    for key in table:
        if key not in known:
            inside = f"{where} " if where else ""
            raise UserError(f"{path}: {inside}unknown key {key!r}; known are {', '.join(known)}{nearest(key, known)}")


def value_of(path: Path, table: Mapping[str, Any], key: str, kind: type, default: Any = None, where: str = "") -> Any:
    """The value of a key, or the default; without one the key must be there."""
    kinds = {str: "a text", bool: "true or false", dict: "a table", list: "a list"}
    name = f"{where} {key}".strip()
    if key not in table and default is None:
        raise UserError(f"{path}: {name} is missing: give {kinds[kind]}")
    value = table.get(key, default)
    if not isinstance(value, kind):
        raise UserError(f"{path}: {name} = {value!r}: must be {kinds[kind]}")
    return value


def list_of(path: Path, name: str, values: Any, kind: type) -> list[Any]:
    """The values, if they are a list of that kind."""
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        what = {dict: "written as [[groups]]", str: 'a list of texts, as in ["a", "b"]', int: "a list such as [0, 1]"}
        raise UserError(f"{path}: {name} = {values!r}: must be {what[kind]}")
    return values


def typed(where: str, value: Any, hint: Any) -> Any:
    """The value as a setting of this type has it; None, which JSON can say, only where the type allows for it. Raises
    UserError for a value of another type."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    choices = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in choices:
        return None
    for kind in choices:
        if get_origin(kind) is Literal and value in get_args(kind) and not isinstance(value, bool):
            return value
        if get_origin(kind) is tuple and isinstance(value, list | tuple):  # a file has lists, `to_json` tuples
            return tuple(typed(where, member, get_args(kind)[0]) for member in value)
        if kind is float and type(value) is int:
            return float(value)  # or the same run would have two digests
        if kind in names and type(value) is kind:
            return value
    wanted = [
        f"one of {', '.join(map(repr, get_args(kind)))}"
        if get_origin(kind) is Literal
        else "a list of numbers"
        if get_origin(kind) is tuple
        else names[kind]
        for kind in choices
        if kind is not type(None)
    ]
    raise UserError(f"{where} = {value!r}: must be {' or '.join(wanted)}")
