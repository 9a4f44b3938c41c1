"""Open HDF5 files from strangers: arrays of numbers that lie in the file itself, and are as large as what it holds."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from floq.utils.errors import UserError
from floq.utils.untrusted import size_limit

DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF)  # those that h5py brings along and people use; others may be plugins
EXPANSION = 1032  # what deflate can make of a byte, at most


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """An HDF5 file.

    Raises:
        ImportError: h5py is missing.
        UserError: the file is damaged, where whoever reads from it within the context meets damage as well.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # damage raises nearly anything, also where types and spaces are only asked for
        raise UserError(f"{path} cannot be read ({' '.join(str(error).split())}): fetch it again") from error


def numbers(group: Any, key: str, source: object) -> Any:
    """The array of this name, of which nothing has been read yet.

    Raises:
        UserError: it lies in another file, is no array of numbers, or unpacks to more than what is stored of it can be.
    """
    import h5py

    where = f"{source}: {key}"
    if not isinstance(group.get(key, getlink=True), h5py.HardLink):
        raise UserError(f"{where} is a link to somewhere else, which is not followed: copy the array into the file")
    array = group[key]
    if not isinstance(array, h5py.Dataset):
        raise UserError(f"{where} is not an array")
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where} holds {array.dtype}, not numbers")
    if array.external or array.is_virtual:
        raise UserError(f"{where} lies in other files, which are not read: copy the array into the file")
    plan = array.id.get_create_plist()
    filters = [plan.get_filter(number)[0] for number in range(plan.get_nfilters())]
    unknown, packed = [f for f in filters if f not in FILTERS], [f for f in filters if f in (DEFLATE, LZF)]
    if unknown or len(packed) > 1:
        raise UserError(
            f"{where} is packed with the HDF5 filters {filters}, which floq does not load: repack it (gzip)"
        )
    stored, limit = array.id.get_storage_size(), size_limit()
    most = EXPANSION * stored if packed else stored
    if packed and (chunk := _largest_chunk(array)) * EXPANSION > limit:
        raise UserError(f"{where} has a packed piece of {chunk:,} bytes, which could unpack to anything: repack it")
    if bytes_of(array) > most:
        raise UserError(f"{where} says that it has {bytes_of(array):,} bytes, of which {stored:,} are there: repack it")
    return array


def bytes_of(array: Any) -> int:
    """What an array unpacks to."""
    return array.size * array.dtype.itemsize


def _largest_chunk(array: Any) -> int:
    """The bytes of an array's largest chunk, as it is stored."""
    sizes = [0]
    if array.chunks:
        array.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    return max(sizes)
