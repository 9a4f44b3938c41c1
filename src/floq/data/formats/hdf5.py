"""Read untrusted HDF5 files: only numeric arrays, stored in the file itself."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from floq.utils.errors import UserError
from floq.utils.untrusted import size_limit

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
KNOWN_FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF)  # common ones that h5py includes; others may be plugins
MAX_EXPANSION = 1032  # bytes that deflate can produce from one, at most


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an HDF5 file.

    Raises:
        ImportError: h5py is missing.
        UserError: the file is damaged, also if that shows when it is read within the context.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # damage raises nearly anything, even when only types and shapes are read
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): fetch it again") from error


def numeric_array(group: Any, key: str, source: object, remedy: str = "") -> Any:
    """Return the array of this name without reading it. `remedy` ends the message if it is not numeric.

    Raises:
        UserError: it lies in another file, is not numeric, or is packed in pieces that could unpack to more than
            `untrusted.size_limit()`.
    """
    import h5py

    where = f"{source}: {key}"
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise UserError(f"{where} is a link to somewhere else, which is not followed: copy the array into the file")
    array = group[key]
    if not isinstance(array, h5py.Dataset):
        raise UserError(f"{where} is not an array")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {array.dtype}, not numbers{remedy}")
    if array.external or array.is_virtual:
        raise UserError(f"{where} lies in other files, which are not read: copy the array into the file")
    plan = array.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    unknown, packed = [f for f in filters if f not in KNOWN_FILTERS], [f for f in filters if f in (DEFLATE, LZF)]
    if unknown or len(packed) > 1:
        raise UserError(
            f"{where} is packed with the HDF5 filters {filters}, which floq does not load: repack it (gzip)"
        )
    if packed and (chunk := _largest_chunk(array)) * MAX_EXPANSION > size_limit():
        raise UserError(f"{where} has a packed piece of {chunk:,} bytes, which could unpack to anything: repack it")
    return array


def unpacked_bytes(array: Any) -> int:
    """Return the bytes that an array unpacks to; callers compare their sum with `untrusted.size_limit()`."""
    return array.size * array.dtype.itemsize


def _largest_chunk(array: Any) -> int:
    """Return the bytes of an array's largest stored chunk."""
    sizes = [0]
    if array.chunks:
        array.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    return max(sizes)
