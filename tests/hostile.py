"""Files as an attacker would make them, small and from code: for the tests of readers, and for `benchmarks/fuzz.py`."""

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def npz(path: Path, entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A zip with these entries."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def npy(shape: tuple[int, ...], content: bytes = b"", descr: Any = "<f8", version: int = 1) -> bytes:
    """An array that says it has this shape and type, whatever its content."""
    file = io.BytesIO()
    write = np.lib.format.write_array_header_1_0 if version == 1 else np.lib.format.write_array_header_2_0
    write(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def safetensors(path: Path, header: Any, content: bytes = b"", length: int | None = None) -> Path:
    """A file with this header, which may lie about its own length."""
    written = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(written) if length is None else length) + written + content)
    return path


def nested(depth: int) -> str:
    """JSON that is nested so deep."""
    return '{"a":' * depth + "0" + "}" * depth


def edit_json(path: Path, **changes: Any) -> None:
    """Other values for some keys of a JSON file; `agent` is changed key by key."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(values.get(name), dict)
        values[name] = values[name] | value if inner else value
    path.write_text(json.dumps(values))


def sign_manifest(path: Path) -> None:
    """Give the edited manifest of a checkpoint the checksum of its content, as whoever edits it would."""
    values = json.loads(path.read_text())
    digests = {name: x for name, x in values.pop("sha256").items() if name != path.name}
    unsigned = json.dumps(values | {"sha256": digests}, sort_keys=True)
    digests[path.name] = hashlib.sha256(unsigned.encode()).hexdigest()
    path.write_text(json.dumps(values | {"sha256": digests}))
