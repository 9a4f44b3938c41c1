"""Fetch an OGBench dataset from the benchmark's server or a mirror of it: whole or not at all."""

import contextlib
import http.client
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

from ogbench.utils import DATASET_URL

from floq.data.collection.recipes import recipe
from floq.utils.errors import UserError
from floq.utils.files import check_writable, exclusive, remove_empty

SILENCE = 30.0  # seconds without a byte after which a server counts as gone
CHUNK = 2**20
SCHEMES = ("https", "http", "file")


Bar: TypeAlias = Callable[[str, int], contextlib.AbstractContextManager[Callable[..., object]]]
"""A progress bar for one file: called with its name and its size in MB, a context that yields `update(done)`."""


def download(name: str, directory: Path, mirror: str | None = None, bar: Bar | None = None) -> None:
    """Fetch `name`.npz and `name`-val.npz into `directory`. They get their names only when both are complete.

    Args:
        name: a dataset such as `cube-single-play-v0`.
        directory: where they go; made if missing.
        mirror: the address of a folder with the files (https, http or file); by default OGBench's own server.
        bar: shows how far each file is.

    Raises:
        UserError: the server does not answer, lacks a file or breaks off, or the disk is too small.
    """
    check_writable(directory, "give another --dataset_dir")
    address = (DATASET_URL if mirror is None else mirror).rstrip("/")
    if urllib.parse.urlsplit(address).scheme not in SCHEMES:
        raise UserError(f"--dataset_mirror={mirror}: give an address that begins with {', '.join(SCHEMES[:2])} or file")
    missing = [folder for folder in (directory, *directory.parents) if not os.path.exists(folder)]
    files = (f"{name}-val.npz", f"{name}.npz")  # the training file last: its presence means that both are complete
    parts = directory / f".{name}.download"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        with exclusive(parts, f"another process is downloading {name} into {directory}: wait for it"):
            try:
                for file in files:
                    _fetch(f"{address}/{file}", parts / file, bar or _no_bar)
                for file in files:
                    (parts / file).replace(directory / file)
                (directory / f"{name}.json").unlink(missing_ok=True)  # it spoke of files that were here before
            finally:
                shutil.rmtree(parts)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{directory / name}.npz is missing and could not be downloaded from {address} ({reason}): {_remedy(name)}"
        ) from error
    finally:
        remove_empty(missing)


def _fetch(url: str, path: Path, bar: Bar) -> None:
    with urllib.request.urlopen(url, timeout=SILENCE) as response, open(path, "wb") as file:
        total, free = int(response.headers.get("Content-Length") or 0), shutil.disk_usage(path.parent).free
        if total > free:
            raise OSError(f"it has {total / 1e9:.1f} GB, the disk {free / 1e9:.1f} GB left")
        with (bar if total else _no_bar)(path.name, total // CHUNK) as update:
            for chunk in _chunks(response):
                file.write(chunk)
                update(file.tell() // CHUNK)
        if total and file.tell() != total:
            raise OSError(f"the server broke off after {file.tell():,} of {total:,} bytes")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _no_bar(name: str, total: int) -> Iterator[Callable[..., object]]:
    yield lambda done: None


def _chunks(response) -> Iterator[bytes]:
    while chunk := response.read(CHUNK):
        yield chunk


def _remedy(name: str) -> str:
    with contextlib.suppress(UserError):
        recipe(name)
        return f"make it here with `floq data collect {name}`, or name a --dataset_mirror"
    return "name a --dataset_mirror, or fetch it on a machine with access; floq has no expert that could make it here"
