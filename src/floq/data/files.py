"""Open data files from strangers: never a pickle, never more than a limit, damage explained."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from floq.errors import UserError

SIZE_LIMIT = 64 * 2**30  # bytes that one npz may declare; the largest published state dataset has 3


def open_npz(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file that are named in `keys`.

    Raises:
        UserError: the file is damaged, holds pickled objects, or declares more than `SIZE_LIMIT`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
        if declared > SIZE_LIMIT:
            raise UserError(
                f"{path} declares {declared / 2**30:.0f} GiB, more than the limit of {SIZE_LIMIT / 2**30:.0f}"
            )
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {key: file[key] for key in keys if key in file}
    except UserError:
        raise
    except Exception as error:  # a damaged zip or header raises nearly anything: zlib.error, TokenError, TypeError, ...
        raise UserError(f"{path} cannot be read ({error}): delete it and fetch or collect it again") from error
