# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in files: NumPy's ``.npy`` and ``.npz``. Nothing is ever unpickled."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What NumPy and zipfile raise on damaged files, by experience; a claimed size can exhaust memory.
_NUMPY_ERRORS = (
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)

_SAFETENSORS = {
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
}


def parse_npy(content: bytes) -> NDArray[np.generic]:
    """Return the array of a ``.npy`` file, of any shape and of plain numbers.

    Raises:
        FormatError: it is no such file; the message does not name it, the caller does.
    """
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except _NUMPY_ERRORS as error:
        msg = f"not a NumPy .npy file of plain numbers: {_first_line(error)}"
        raise FormatError(msg) from error
    if not isinstance(array, np.ndarray):
        msg = "an .npz archive under the name .npy; rename it"
        raise FormatError(msg)
    return array


def parse_npz(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a ``.npz`` file by name, in the file's order.

    Raises:
        FormatError: as `parse_npy`.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (*_NUMPY_ERRORS, AttributeError, KeyError) as error:
        msg = f"not a NumPy .npz file of plain arrays: {_first_line(error)}"
        raise FormatError(msg) from error


def parse_safetensors(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of a ``.safetensors`` file by name, in the file's order.

    Raises:
        FormatError: as `parse_npy`.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        data = memoryview(content)[8 + size :]
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                start, stop = entry["data_offsets"]
                array = np.frombuffer(data[start:stop], dtype=_SAFETENSORS[entry["dtype"]])
                arrays[name] = array.reshape(entry["shape"])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        msg = f"not a .safetensors file of plain numbers: {_first_line(error)}"
        raise FormatError(msg) from error
    return arrays


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
