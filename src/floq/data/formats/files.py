"""Read untrusted npz and HDF5 files: only numbers, stored in the file itself, up to a limit, and damage explained."""

import contextlib
import io
import math
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from floq.data.storage import empty_array, fits_memory
from floq.utils.errors import UserError, in_one_line
from floq.utils.untrusted import check_size, size_limit

REFETCH = "delete it and fetch or collect it again"
DIRECTORY_LIMIT = 2**20  # bytes of a zip's table of contents; that of a dataset has less than 1 kB
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # how NumPy stores arrays
HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
LOCAL_HEADER, LOCAL_LENGTHS = 30, 26  # bytes of an entry's header in a zip file; where two lengths are in it
PIECE_BYTES = 2**20
PIXELS = ("L", "LA", "RGB", "RGBA")  # modes of images with 8 bits for each number
DEFLATE, SHUFFLE, FLETCHER32, LZF = 1, 2, 3, 32000
KNOWN_FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, LZF)  # common ones that h5py includes; others may be plugins
MAX_EXPANSION = 1032  # bytes that deflate can produce from one, at most


def open_npz(
    path: Path, keys: Sequence[str], remedy: str = REFETCH, held: int = 0, with_parts: Sequence[str] = ()
) -> dict[str, Any]:
    """Read those of the arrays named in `keys` that an npz file has; of those in `with_parts` also a mapping from NAME
    to array, if it has any that are called `key/NAME`. Pixels that do not fit into the memory are mapped, where the
    file has them uncompressed, otherwise from a copy, see `empty_array`. `remedy` ends the message for a damaged file;
    `held` are the bytes that other files of the same dataset have unpacked to.

    Raises:
        UserError: the file is missing or damaged, holds pickled objects, or would unpack, with those others, to more
            than `untrusted.size_limit()`.
    """
    check_exists(path)
    try:
        with _LimitedFile(path) as raw, zipfile.ZipFile(raw) as archive:
            raw.opening = False
            entries_of = archive.NameToInfo.items()
            named = {name.removesuffix(".npy"): entry for name, entry in entries_of if name.endswith(".npy")}
            entries = {key: named[key] for key in keys if key in named}
            entries |= {
                key: entry for key, entry in named.items() if key.partition("/")[0] in with_parts and "/" in key
            }
            headers = {key: _read_header(archive, entry) for key, entry in entries.items()}
            mapped, kept = set(), held + sum(entry.file_size for entry in entries.values())
            for key in sorted(entries, key=lambda key: -entries[key].file_size):
                if headers[key].dtype == np.uint8 and not fits_memory(kept):
                    mapped.add(key)
                    kept -= entries[key].file_size
            check_size(kept, path)
            read = {key: _map_array if key in mapped else _read_array for key in entries}
            return gathered({key: read[key](archive, entry, headers[key]) for key, entry in entries.items()})
    except UserError:
        raise
    except Exception as error:  # a damaged zip or header raises nearly anything: zlib.error, TokenError, TypeError, ...
        raise UserError(f"{path} cannot be read ({error}): {remedy}") from error


def gathered(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Gather arrays called `observations/NAME` in a mapping `observations` from names to them, and so on."""
    found: dict[str, Any] = {}
    for key, x in arrays.items():
        whole, _, part = key.partition("/")
        if part:
            found[whole] = (found[whole] if isinstance(found.get(whole), dict) else {}) | {part: x}
        else:
            found[key] = x
    return found


def nbytes(arrays: Mapping[str, Any]) -> int:
    """Return the bytes of arrays, some of which may be mappings from names to arrays; those of pixels, which need not
    stay in memory, left out."""
    of_array = lambda x: 0 if x.dtype == np.uint8 else x.nbytes  # noqa: E731
    return sum(nbytes(x) if isinstance(x, Mapping) else of_array(x) for x in arrays.values())


class _LimitedFile(io.FileIO):
    """A file that, while a zip is being opened, refuses to read more at once than `DIRECTORY_LIMIT` bytes."""

    opening = True

    def read(self, size: int | None = -1, /) -> bytes:
        if self.opening and size is not None and size > DIRECTORY_LIMIT:
            raise ValueError(f"its table of contents has {size:,} bytes")
        return super().read(size) or b""


class _Header(NamedTuple):
    """What an array of a zip file declares about itself; `size` is that of this header."""

    shape: tuple[int, ...]
    dtype: np.dtype
    in_fortran_order: bool
    size: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _read_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Header:
    """Read the header of an array. Raises ValueError unless its data are numbers and have the declared size, which
    would be allocated before any of them is read."""
    name = entry.filename
    if entry.compress_type not in COMPRESSIONS:
        raise ValueError(f"{name} is compressed in a way that NumPy does not write")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)  # pyright: ignore[reportArgumentType]
        if version not in HEADERS:
            raise ValueError(f"{name} has version {version} of NumPy's format")
        shape, in_fortran_order, dtype = HEADERS[version](file)
        header = _Header(shape, dtype, in_fortran_order, file.tell())
    if dtype.hasobject:
        raise ValueError(f"{name} holds pickled objects, which could run code")
    if header.nbytes != entry.file_size - header.size:
        raise ValueError(f"{name} says that it has the shape {shape}, its {entry.file_size:,} bytes do not")
    return header


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, header: _Header) -> np.ndarray:
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _map_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, header: _Header) -> np.ndarray:
    """Map an array of the file itself, or of a copy if it is compressed. All of it is read once, which the archive
    compares with its checksum."""
    path, is_stored = str(archive.filename), entry.compress_type == zipfile.ZIP_STORED
    if header.in_fortran_order:
        raise UserError(
            f"{path}: {entry.filename} does not fit into memory, and is in Fortran's order: write it in C's"
        )
    copy = None if is_stored else empty_array((header.nbytes,), np.dtype(np.uint8), path)
    with archive.open(entry) as file:
        file.read(header.size)
        done = 0
        while piece := file.read(PIECE_BYTES):
            if copy is not None:
                copy[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
    if done != header.nbytes:
        raise ValueError(f"{entry.filename} ends after {done:,} of {header.nbytes:,} bytes")
    if copy is not None:
        return copy.reshape(header.shape)
    raw: Any = archive.fp
    raw.seek(entry.header_offset + LOCAL_LENGTHS)  # of the entry's own header, which may differ from the directory's
    begin = entry.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", raw.read(4)))
    return np.memmap(raw, np.uint8, "r", begin + header.size, header.shape)


def data_files(path: Path, suffixes: Sequence[str]) -> list[Path]:
    """Return the path, or the files of a folder in the order of their names, as far as they have these suffixes in
    capital or small letters."""
    candidates = sorted(path.iterdir()) if path.is_dir() else [path]
    return [file for file in candidates if file.suffix.lower() in suffixes]


def check_exists(path: Path) -> None:
    """Raise UserError if there is no such file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")


@contextlib.contextmanager
def open_hdf5(path: Path) -> Iterator[Any]:
    """Open an HDF5 file. Raises UserError if h5py or the file is missing, or it is damaged, also if that shows when it
    is read within the context."""
    check_exists(path)
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"{path}: reading HDF5 files needs h5py: pip install 'floq[d4rl]'") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except Exception as error:  # damage raises nearly anything, even when only types and shapes are read
        raise UserError(f"{path} cannot be read ({in_one_line(error)}): fetch it again") from error


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
    sizes = [0]
    if packed and array.chunks:
        array.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
    if (largest := max(sizes)) * MAX_EXPANSION > size_limit():
        raise UserError(f"{where} has a packed piece of {largest:,} bytes, which could unpack to anything: repack it")
    return array


def check_episodes(episodes: Sequence[Iterable[tuple[int, bool]]], source: object, held: int = 0) -> int:
    """Return `held` and the bytes of episodes, each array's with whether it has pixels, and these left out. Raises
    UserError if they, and the pixels of one episode, come to more than `untrusted.size_limit()`."""
    total, most = held, 0
    for sizes in map(list, episodes):
        total += sum(size for size, is_image in sizes if not is_image)
        most = max(most, sum(size for size, is_image in sizes if is_image))
    check_size(total + most, source)
    return total


def subgroup(group: Any, name: str, source: object, remedy: str = "fetch it again") -> Any:
    """Return the group of this name within another. Raises UserError if there is none in the same file."""
    if not is_group(group, name):
        raise UserError(f"{source}: {group.name.rstrip('/')}/{name} is missing, or no group: {remedy}")
    return group[name]


def is_group(group: Any, name: str) -> bool:
    """Return whether there is a group of this name, in the same file."""
    import h5py

    return isinstance(group.get(name, getlink=True), h5py.HardLink) and isinstance(group[name], h5py.Group)


def _column(group: Any, key: str) -> Any:
    """Return the array with one dimension of this name, without reading it; None if the same file has none."""
    import h5py

    hard = isinstance(group.get(key, getlink=True), h5py.HardLink)
    return x if hard and isinstance(x := group[key], h5py.Dataset) and x.ndim == 1 else None


def jpeg_array(group: Any, key: str, source: object) -> Any:
    """Return the array of JPEG files of this name, bytes of varying length, without reading it; None if it holds
    something else. Raises UserError if it is packed."""
    import h5py

    if (x := _column(group, key)) is None or h5py.check_vlen_dtype(x.dtype) != np.uint8:
        return None
    if x.external or x.is_virtual:
        raise UserError(f"{source}: {key} lies in other files, which are not read: copy the array into the file")
    if x.id.get_create_plist().get_nfilters():
        raise UserError(f"{source}: {key} is packed, and JPEG is packed already: write it without compression")
    return x


def decode_images(
    contents: Iterable[bytes], count: int, where: str, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Return the images of `count` JPEG or PNG files, given as bytes: (rows, H, W, C) of uint8. Raises UserError if one
    is damaged, has a palette or more than 8 bits, or is not of `shape`, by default that of the first."""
    from PIL import Image

    images = None if shape is None else np.empty((count, *shape), np.uint8)
    for number, content in enumerate(contents):
        try:
            with Image.open(io.BytesIO(content), formats=["JPEG", "PNG"]) as image:
                if image.mode not in PIXELS:
                    raise ValueError(f"it is of mode {image.mode!r}, and not one of {', '.join(PIXELS)}")
                if images is None:
                    channels = len(image.getbands())
                    check_size(count * image.width * image.height * channels, where)
                    images = np.empty((count, image.height, image.width, channels), np.uint8)
                if image.size != images.shape[2:0:-1]:
                    raise ValueError(f"it has {image.height} x {image.width} pixels")
                images[number] = np.asarray(image, np.uint8).reshape(images.shape[1:])
        except UserError:
            raise
        except Exception as error:  # damage raises nearly anything
            wanted = "" if images is None else f" of {'x'.join(map(str, images.shape[1:]))}"
            raise UserError(f"{where}: number {number} is no image{wanted} ({in_one_line(error)})") from error
    assert images is not None
    return images


def text_array(group: Any, key: str, source: object) -> list[str]:
    """Read a list of short texts. Raises UserError if it is none, or lies in another file."""
    if (x := _column(group, key)) is None or x.dtype.kind not in "SO":
        raise UserError(f"{source}: {group.name}/{key} is no list of names: take it out")
    check_size(x.nbytes, source)
    return [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in x[()]]
