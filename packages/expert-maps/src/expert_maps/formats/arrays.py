# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in NumPy's files, ``.npy`` and ``.npz``. Nothing is ever unpickled.

The formats are NumPy's own (``numpy/lib/format.py``, versions 1.0 to 3.0). Headers are read by a grammar of their own:
only plain numbers are wanted, and nothing is evaluated. No size is believed before it has been compared with what is
there.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_PIECE = 2**20

# NumPy's header: a dictionary of three keys, in any order.
_NPY_MAGIC = b"\x93NUMPY"
_MOST_NPY_HEADER = 2**16
_ITEM = re.compile(
    r"""\s*(?P<quote>['"])(?P<key>descr|fortran_order|shape)(?P=quote)\s*:\s*"""
    r"""(?:(?P<quoted>['"])(?P<descr>[<>|=]?[a-zA-Z]\d{0,4})(?P=quoted)"""
    r"""|(?P<order>True|False)|\((?P<shape>\s*(?:\d{1,19}\s*(?:,\s*\d{1,19}\s*){0,31},?\s*)?)\))\s*(?:,|$)""",
    re.ASCII,  # spaces and digits that int() takes, and no others
)
_MOST_AXES = 8
_NUMBER_KINDS = "biufc"

# What an .npz file written by NumPy has: stored or deflated.
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
_ENCRYPTED = 0x1
_ZIP_ERRORS = (
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def parse_npy(content: bytes) -> Array:
    """Return the array of a ``.npy`` file, of any shape and of plain numbers.

    Args:
        content: the file's bytes; the array is a read-only view of them.

    Raises:
        FormatError: it is no such file; the message does not name it, the caller does.
    """
    if content.startswith(b"PK\x03\x04"):
        msg = "an .npz archive under the name .npy; rename it"
        raise FormatError(msg)
    header, start = _npy_header(content)
    dtype, is_fortran, shape = _npy_items(header)
    return view(content, start, len(content), dtype, shape, is_fortran=is_fortran)


def _npy_header(content: bytes) -> tuple[str, int]:
    """Return the text of the header, and where the numbers start."""
    if not content.startswith(_NPY_MAGIC):
        msg = "not a NumPy .npy file of plain numbers: it does not begin as one"
        raise FormatError(msg)
    version = content[6:8]
    if version not in {b"\1\0", b"\2\0", b"\3\0"}:
        msg = f"not a NumPy .npy file of plain numbers: version {list(version)}; expected [1, 0] to [3, 0]"
        raise FormatError(msg)
    width = 2 if version == b"\1\0" else 4
    length = int.from_bytes(content[8 : 8 + width], "little")
    start = 8 + width + length
    if start > len(content) or length > _MOST_NPY_HEADER:
        msg = (
            f"not a NumPy .npy file of plain numbers: a header of {length} bytes in a file of {len(content)}; "
            f"expected at most {_MOST_NPY_HEADER}"
        )
        raise FormatError(msg)
    return content[8 + width : start].decode("latin-1"), start


def _npy_items(header: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """Return dtype, order and shape."""
    text = header.strip()
    items: dict[str, str] = {}
    if text.startswith("{") and text.endswith("}"):
        inner, place = text[1:-1].rstrip(), 0
        while place < len(inner) and (item := _ITEM.match(inner, place)):
            value = (
                item["descr"]
                if item["key"] == "descr"
                else item["order" if item["key"] != "shape" else "shape"]
            )
            if value is None or item["key"] in items:
                break
            items[item["key"]] = value
            place = item.end()
        else:
            items = items if place == len(inner) else {}
    if set(items) != {"descr", "fortran_order", "shape"}:
        msg = (
            f"not a NumPy .npy file of plain numbers: the header is {printable(text, 100)}; "
            "expected descr of a number, fortran_order and shape"
        )
        raise FormatError(msg)
    shape = tuple(int(axis) for axis in items["shape"].split(",") if axis.strip())
    return _dtype(items["descr"]), items["fortran_order"] == "True", shape


def _dtype(name: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError) as error:
        msg = f"not a NumPy .npy file of plain numbers: entries of type {name}, which NumPy does not know"
        raise FormatError(msg) from error
    if dtype.kind not in _NUMBER_KINDS:
        msg = f"not a NumPy .npy file of plain numbers: entries of type {name}; expected no objects, texts or times"
        raise FormatError(msg)
    return dtype


def view(
    content: bytes,
    start: int,
    end: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    is_fortran: bool = False,
) -> Array:
    """Return the array that fills some bytes, without a copy; read-only.

    Raises:
        FormatError: its shape takes other bytes than there are, or has more axes than any array of this package.
    """
    if len(shape) > _MOST_AXES or max(shape, default=0) > limits.MAX_FILE_BYTES:
        msg = f"the shape has {len(shape)} axes, the longest of {max(shape)}; expected at most {_MOST_AXES} axes"
        raise FormatError(msg)
    size = prod(shape)
    if size * dtype.itemsize != end - start:
        msg = f"shape {list(shape)} of {dtype} takes {size * dtype.itemsize} bytes; expected {end - start}, as there are"
        raise FormatError(msg)
    flat = np.frombuffer(content, dtype, size, start) if size else np.empty(0, dtype)
    array = flat.reshape(shape[::-1]).T if is_fortran else flat.reshape(shape)
    native = array if dtype.isnative else array.astype(dtype.newbyteorder("="))
    native.flags.writeable = False
    return native


def parse_npz(content: bytes) -> dict[str, Array]:
    """Return the arrays of a ``.npz`` file by name, in the file's order; read-only.

    Raises:
        FormatError: as `parse_npy`; or encrypted, with two arrays of one name, with something else than arrays, or
            larger than `limits` allow once unpacked.
    """
    # Each entry of the table of contents begins so; Python's zipfile makes an object of each.
    if content.count(b"PK\x01\x02") > limits.MAX_ARRAYS:
        msg = f"the archive has more than {limits.MAX_ARRAYS} entries; expected at most so many"
        raise FormatError(msg)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _refuse_entries(entries)
            return {_array_name(entry): _read_entry(archive, entry) for entry in entries}
    except FormatError:
        raise
    except _ZIP_ERRORS as error:
        msg = f"not a NumPy .npz file of plain arrays: {first_line(error)}"
        raise FormatError(msg) from error


def _refuse_entries(entries: list[zipfile.ZipInfo]) -> None:
    total = sum(entry.file_size for entry in entries)
    if total > limits.MAX_FILE_BYTES:
        msg = f"the arrays have {total} bytes once unpacked; expected at most {limits.MAX_FILE_BYTES}"
        raise FormatError(msg)
    names: set[str] = set()
    for entry in entries:
        name = _array_name(entry)
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
            how = "encrypted" if entry.flag_bits & _ENCRYPTED else f"packed by method {entry.compress_type}"
            msg = f"array {printable(name)} is {how}; expected it stored or deflated, as NumPy writes it"
            raise FormatError(msg)
        if name in names:
            msg = f"array {printable(name)} stands twice in the archive; expected every name once"
            raise FormatError(msg)
        names.add(name)


def _array_name(entry: zipfile.ZipInfo) -> str:
    return entry.filename.removesuffix(".npy")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    # Its buffer grows in place and becomes the result: the content is never held twice.
    unpacked = io.BytesIO()
    with archive.open(entry) as stream:
        while piece := stream.read(_PIECE):
            unpacked.write(piece)
            if unpacked.tell() > entry.file_size:
                msg = f"array {printable(_array_name(entry))} unpacks to more than the {entry.file_size} bytes it claims"
                raise FormatError(msg)
    try:
        return parse_npy(unpacked.getvalue())
    except FormatError as error:
        msg = f"array {printable(_array_name(entry))}: {error}"
        raise FormatError(msg) from error


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, as a message may show it."""
    return printable((str(error).splitlines() or [type(error).__name__])[0], 200)
