"""Limits for untrusted files, and their readers: text, JSON, safetensors. A file's size is known before it is read, and
what it declares is compared with a limit before anything is allocated or called for it.

The readers raise OSError where a file cannot be read and ValueError where its content is wrong; their callers add which
file it was and the remedy. See docs/untrusted.md for what floq trusts.
"""

import json
import math
import os
import re
import stat
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from floq.utils.errors import UserError

# --- Limits ---

JSON_LIMIT = 4 * 2**20  # bytes; the configuration of a run has 4 kB, the metadata of a Minari dataset up to a few 100
TOML_LIMIT = 256 * 2**10  # bytes; the largest experiment has 4 kB
CSV_LIMIT = 256 * 2**20  # bytes; a row of train.csv has about 1 kB
HEADER_LIMIT = 4 * 2**20  # bytes of a safetensors header; that of the largest published agent has 40 kB
MAX_DEPTH = 32  # tables within tables; a configuration has two
LARGEST = 2**63  # bound of whole numbers; floq writes none as large
SIZE_LIMIT = 64 * 2**30  # bytes that one file may unpack to; the largest published state dataset has 3 GiB
WORKING_COPIES = 4  # bytes of memory that reading takes, for each that a file unpacks to: 3.6 were measured

MEMORY = Path("/proc/meminfo")


def check_size(declared: int, source: object) -> None:
    """Raise UserError if `source` declares that it unpacks to more than `size_limit()` bytes."""
    limit = size_limit()
    if declared > limit:
        raise UserError(
            f"{source} would unpack to {declared / 2**30:,.1f} GiB, more than the {limit / 2**30:,.1f} GiB that this "
            f"machine has to spare for one file, reading takes {WORKING_COPIES} times as much memory: is it what it "
            "should be? Then free memory, or give a part of it"
        )


def size_limit() -> int:
    """Return how many bytes one file may unpack to, such that its working copies fit into the free memory."""
    return min(SIZE_LIMIT, free_memory() // WORKING_COPIES)


def free_memory() -> int:
    """Return the bytes of the machine's memory that are free, or where it does not tell, all of its memory."""
    try:
        named = dict(re.findall(r"^(\w+): +(\d+) kB$", MEMORY.read_text(), re.MULTILINE))
        return 1024 * int(named["MemAvailable"])
    except (OSError, KeyError):  # no Linux
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (AttributeError, ValueError, OSError):  # no Unix
            return SIZE_LIMIT


# --- Text and JSON ---


def read_text(path: Path, limit: int) -> str:
    """Return the text of a file of at most `limit` bytes. Pipes and devices, which might never end, are not read."""
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")
        content = file.read(limit + 1) if found.st_size <= limit else b""
    if found.st_size > limit or len(content) > limit:
        raise ValueError(f"it has {found.st_size:,} bytes, more than the {limit:,} that such a file may have")
    return content.decode("utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; see `parse_json`."""
    found = parse_json(read_text(path, JSON_LIMIT))
    if not isinstance(found, dict):
        raise ValueError("it holds no JSON object")
    return found


def parse_json(text: str, infinite: bool = False) -> Any:
    """Parse JSON whose numbers are finite and of a size that arrays can hold, nested at most `MAX_DEPTH` deep. With
    `infinite`, Infinity is allowed: the limits of Gymnasium's spaces are written so."""
    real = float if infinite else _parse_float
    try:
        found = json.loads(text, parse_constant=real, parse_float=real, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from error
    check_depth(found)
    return found


def check_depth(value: Any) -> None:
    """Raise ValueError if tables and lists are nested more than `MAX_DEPTH` deep: recursive functions would fail."""
    layer = [value]
    for _ in range(MAX_DEPTH + 1):
        nested = [outer for outer in layer if isinstance(outer, dict | list)]
        layer = [x for outer in nested for x in (outer.values() if isinstance(outer, dict) else outer)]
        if not layer:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def _parse_float(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:20]} is no number that JSON has")
    return number


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -LARGEST <= (number := int(text)) < LARGEST:
        raise ValueError(f"{text[:20]}{'...' * (len(text) > 20)} is too large a number")
    return number


# --- Safetensors ---

DTYPES = {"BOOL": "bool", "U8": "uint8", "I32": "int32", "U32": "uint32", "I64": "int64", "F32": "float32"}
"""The types that floq stores, by their names in the file."""

TensorSpec = tuple[tuple[int, ...], str]
"""The shape of a tensor and its type: `((256, 4), "float32")`."""


class TensorMismatch(ValueError):
    """A tensor is missing, extra, or of another shape or type than expected."""


def read_tensors(
    path: Path, expected: Mapping[str, TensorSpec] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of a file by name, and the texts in its header. Nothing is allocated before all is checked.

    Args:
        path: the file.
        expected: the tensors that it must have, no more and no less.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
        TensorMismatch: a tensor is missing, extra or of another shape or type.
        UserError: it is larger than `size_limit()`.
    """
    size = os.stat(path).st_size
    if not path.is_file():
        raise ValueError("it is no file")
    check_size(size, path)
    with open(path, "rb") as header:
        length = int.from_bytes(header.read(8), "little")
    if length > min(HEADER_LIMIT, size):  # that the tensors fill the file, safetensors checks
        raise ValueError(f"its header says that it has {length:,} bytes")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            types = {name: str(x.get_dtype()) for name, x in found.items()}
            kinds = {name: (tuple(x.get_shape()), DTYPES.get(types[name], types[name])) for name, x in found.items()}
            _check_kinds(kinds, expected)
            return {name: file.get_tensor(name) for name in found}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_kinds(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec] | None) -> None:
    if odd := [name for name, (_, dtype) in found.items() if dtype not in DTYPES.values()]:
        raise ValueError(f"{odd[0]} holds {found[odd[0]][1]}, which floq never stores")
    if expected is None:
        return
    wrong = sorted(expected.keys() ^ found.keys()) or [name for name in expected if expected[name] != found[name]]
    if wrong:
        raise TensorMismatch(f"{wrong[0]} is missing, extra or of another shape")


# --- Names and links ---

CONSENT = "FLOQ_ENV_MODULES"
"""The environment variable in which the user lists Python modules that floq may import because a file names them."""


def check_environment(env_name: str | None, source: object) -> None:
    """Raise UserError if making an environment that a file names would import a Python module, as Gymnasium does for
    `module:Id-v0`, that is neither imported already nor listed in the variable `CONSENT`."""
    module, known = _module_of(env_name or "")
    if module and module not in sys.modules and module not in known:
        raise UserError(
            f"{source} names the environment {env_name}, which would import the Python module {module!r}: if you trust "
            f"it, set {CONSENT}={','.join([*known, module])}, or name it with --env_name={env_name}"
        )


def consent(env_name: str) -> None:
    """Allow the module of a `module:Id-v0` that the user has named to be imported, here and by the processes that this
    one starts, also from the current folder."""
    module, known = _module_of(env_name)
    if module and module not in known:
        os.environ[CONSENT] = ",".join([*known, module])
        sys.path.insert(0, os.getcwd())


def _module_of(env_name: str) -> tuple[str, list[str]]:
    """Return the module of `module:Id-v0`, empty without one, and the modules in `CONSENT`."""
    known = [name for name in os.environ.get(CONSENT, "").split(",") if name]
    return env_name.partition(":")[0] if ":" in env_name else "", known


def check_links(folder: Path) -> None:
    """Raise UserError if a symbolic link in the folder leads out of it: writes would go elsewhere."""
    inside = folder.resolve()
    for where, folders, files in os.walk(folder):
        for path in (Path(where, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise UserError(f"{path} is a link that leads out of its folder: put what it should be in its place")


# --- Terminal output ---

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def printable(text: str) -> str:
    """Escape, as in `\\x1b`, the characters of a text that would control a terminal or fail to be encoded. Line
    breaks and tabs stay."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def all_printable(value: Any) -> Any:
    """Return a JSON value with each text in it, keys included, made `printable` and put on one line."""
    if isinstance(value, str):
        return printable(" ".join(value.split()) if re.search(r"[\n\r\t\v\f]", value) else value)
    if isinstance(value, Mapping):
        return {all_printable(name): all_printable(inner) for name, inner in value.items()}
    return [all_printable(inner) for inner in value] if isinstance(value, list) else value
