"""Read untrusted npz files: no pickles, a size limit, and damage explained."""

import io
import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from floq.utils.errors import UserError
from floq.utils.untrusted import check_size

REFETCH = "delete it and fetch or collect it again"
DIRECTORY_LIMIT = 2**20  # bytes of a zip's table of contents; that of a dataset has less than 1 kB
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # how NumPy stores arrays
HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npz(path: Path, keys: Sequence[str], remedy: str = REFETCH, held: int = 0) -> dict[str, np.ndarray]:
    """Read those of the arrays named in `keys` that an npz file has.

    Args:
        path: the file.
        keys: names of the arrays; others are ignored.
        remedy: the end of the message for a damaged file.
        held: bytes that other files of the same dataset have unpacked to.

    Raises:
        UserError: the file is missing or damaged, holds pickled objects, or would unpack, with those others, to more
            than `untrusted.size_limit()`.
    """
    check_exists(path)
    try:
        with _LimitedFile(path) as raw, zipfile.ZipFile(raw) as archive:
            raw.opening = False
            wanted = {key: archive.NameToInfo.get(f"{key}.npy") for key in keys}
            entries = {key: entry for key, entry in wanted.items() if entry is not None}
            check_size(held + sum(entry.file_size for entry in entries.values()), path)
            return {key: _read_array(archive, entry) for key, entry in entries.items()}
    except UserError:
        raise
    except Exception as error:  # a damaged zip or header raises nearly anything: zlib.error, TokenError, TypeError, ...
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


class _LimitedFile(io.FileIO):
    """A file that, while a zip is being opened, refuses to read more at once than `DIRECTORY_LIMIT` bytes."""

    opening = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.opening and size is not None and size > DIRECTORY_LIMIT:
            raise ValueError(f"its table of contents has {size:,} bytes")
        return super().read(size) or b""


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read one array, if its data has the declared size, which NumPy would allocate before it reads anything."""
    name = entry.filename
    if entry.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that NumPy does not write")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
        if version not in HEADERS:
            raise ValueError(f"{name} has version {version} of NumPy's format")
        shape, _, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{name} holds pickled objects, which could run code")
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise ValueError(f"{name} says that it has the shape {shape}, its {entry.file_size:,} bytes do not")
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def check_exists(path: Path) -> None:
    """Raise UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
