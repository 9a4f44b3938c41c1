"""Read safetensors files from strangers: the header is checked against the size of the file, and the tensors against
what is expected of them, before any is made."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors

from floq.untrusted import check_size

HEADER_LIMIT = 4 * 2**20  # bytes; that of the largest published agent has 40 kB
DTYPES = {"BOOL": "bool", "U8": "uint8", "I32": "int32", "U32": "uint32", "I64": "int64", "F32": "float32"}
"""The types that floq stores, by their names in the file."""


class Unfit(ValueError):
    """A tensor is missing, extra, or of another shape or type than expected."""


Kind = tuple[tuple[int, ...], str]
"""The shape of a tensor and its type: `((256, 4), "float32")`."""


def read_tensors(
    path: Path, expected: Mapping[str, Kind] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a file by name, and the texts in its header.

    Args:
        path: the file.
        expected: which tensors it must have, no more and no less.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged. Nothing was allocated.
        Unfit: a tensor is missing, extra or of another shape or type. Nothing was allocated.
        UserError: it is larger than what this machine has to spare.
    """
    _check_header(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            types = {name: str(x.get_dtype()) for name, x in found.items()}
            kinds = {name: (tuple(x.get_shape()), DTYPES.get(types[name], types[name])) for name, x in found.items()}
            _check_kinds(kinds, expected)
            return {name: file.get_tensor(name) for name in found}, file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_header(path: Path) -> None:
    """That the header is not too long to be parsed; that its tensors fill the file, safetensors checks."""
    size = os.stat(path).st_size
    if not path.is_file():
        raise ValueError("it is no file")
    check_size(size, path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER_LIMIT, size):
        raise ValueError(f"its header says that it has {length:,} bytes")


def _check_kinds(found: Mapping[str, Kind], expected: Mapping[str, Kind] | None) -> None:
    if odd := [name for name, (_, dtype) in found.items() if dtype not in DTYPES.values()]:
        raise ValueError(f"{odd[0]} holds {found[odd[0]][1]}, which floq never stores")
    if expected is None:
        return
    wrong = sorted(expected.keys() ^ found.keys()) or [name for name in expected if expected[name] != found[name]]
    if wrong:
        raise Unfit(f"{wrong[0]} is missing, extra or of another shape")
