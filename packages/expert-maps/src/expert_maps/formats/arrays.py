# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in files: NumPy's ``.npy`` and ``.npz``, and safetensors. Nothing is ever unpickled.

The formats are NumPy's own (``numpy/lib/format.py``, versions 1.0 to 3.0) and that of the safetensors README. Headers
are read by a grammar of their own: only plain numbers are wanted, and nothing is evaluated. No size is believed before
it has been compared with what is there.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
import zlib
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError, printable
from expert_maps.files import parse_json

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
    r"""|(?P<order>True|False)|\((?P<shape>\s*(?:\d{1,19}\s*(?:,\s*\d{1,19}\s*){0,31},?\s*)?)\))\s*(?:,|$)"""
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

# safetensors' names of the types that NumPy has; BF16 is widened.
_SAFETENSORS_TYPES = {
    "BOOL": "|b1",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "U32": "<u4",
    "I32": "<i4",
    "U64": "<u8",
    "I64": "<i8",
    "F16": "<f2",
    "BF16": "<u2",
    "F32": "<f4",
    "F64": "<f8",
}


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
    return _view(content, start, len(content), dtype, shape, is_fortran=is_fortran)


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


def _view(
    content: bytes,
    start: int,
    end: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    *,
    is_fortran: bool = False,
) -> Array:
    """Return the array that fills these bytes, without a copy."""
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
        msg = f"not a NumPy .npz file of plain arrays: {_first_line(error)}"
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


class _Tensor(NamedTuple):
    begin: int
    end: int
    name: str
    type_name: str
    shape: tuple[int, ...]


def parse_safetensors(content: bytes) -> dict[str, Array]:
    """Return the tensors of a safetensors file by name, in the header's order; read-only.

    Args:
        content: the file's bytes; the arrays are views of them, but for BF16, which becomes float32.

    Raises:
        FormatError: it is no such file, its tensors overlap, leave gaps or are not as large as they claim, or have a
            type that NumPy lacks; the message does not name the file, the caller does.
    """
    length = int.from_bytes(content[:8], "little")
    start = 8 + length
    if len(content) < 8 or start > len(content) or length > limits.MAX_HEADER_BYTES:  # noqa: PLR2004 - the length itself
        msg = (
            f"not a safetensors file: a header of {length} bytes in a file of {len(content)}; "
            f"expected at most {limits.MAX_HEADER_BYTES}"
        )
        raise FormatError(msg)
    header = parse_json(content[8:start], "the safetensors header")
    if not isinstance(header, dict):
        msg = "not a safetensors file: the header is no object"
        raise FormatError(msg)
    if len(header) > limits.MAX_ARRAYS:
        msg = f"{len(header)} tensors; expected at most {limits.MAX_ARRAYS}"
        raise FormatError(msg)
    tensors = [_tensor(name, entry) for name, entry in header.items() if name != "__metadata__"]
    _refuse_gaps(tensors, len(content) - start)
    return {tensor.name: _tensor_view(content, start, tensor) for tensor in tensors}


def _tensor(name: str, entry: object) -> _Tensor:
    known = entry if isinstance(entry, dict) else {}
    type_name, shape, offsets = (
        known.get("dtype"),
        _sizes(known.get("shape")),
        _sizes(known.get("data_offsets")),
    )
    if not isinstance(type_name, str) or shape is None or offsets is None or len(offsets) != 2:  # noqa: PLR2004 - begin, end
        msg = f"tensor {printable(name)} is malformed; expected dtype, shape and two data_offsets"
        raise FormatError(msg)
    if type_name not in _SAFETENSORS_TYPES:
        types = ", ".join(_SAFETENSORS_TYPES)
        msg = f"tensor {printable(name)} has dtype {printable(type_name)}; expected one of {types}"
        raise FormatError(msg)
    return _Tensor(*offsets, name, type_name, shape)


def _sizes(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        return None
    return tuple(value)


def _refuse_gaps(tensors: list[_Tensor], size: int) -> None:
    """Refuse tensors that do not follow each other to the end of the file, as the format demands."""
    place = 0
    for tensor in sorted(tensors):
        if tensor.begin != place or tensor.end < tensor.begin:
            msg = f"tensor {printable(tensor.name)} has data_offsets [{tensor.begin}, {tensor.end}]; expected {place} first"
            raise FormatError(msg)
        place = tensor.end
    if place != size:
        msg = f"the tensors take {place} bytes; expected {size}, as there are"
        raise FormatError(msg)
    widened = sum(
        (tensor.end - tensor.begin) * (2 if tensor.type_name == "BF16" else 1) for tensor in tensors
    )
    if widened > limits.MAX_FILE_BYTES:
        msg = f"the tensors have {widened} bytes as float32; expected at most {limits.MAX_FILE_BYTES}"
        raise FormatError(msg)


def _tensor_view(content: bytes, start: int, tensor: _Tensor) -> Array:
    dtype = np.dtype(_SAFETENSORS_TYPES[tensor.type_name])
    try:
        array = _view(content, start + tensor.begin, start + tensor.end, dtype, tensor.shape)
    except FormatError as error:
        msg = f"tensor {printable(tensor.name)}: {error}"
        raise FormatError(msg) from error
    if tensor.type_name != "BF16":
        return array
    # A bfloat16 is the upper half of a float32.
    wide = array.astype(np.uint32)
    wide <<= 16
    wide.flags.writeable = False
    return wide.view(np.float32)


def _first_line(error: BaseException) -> str:
    return printable((str(error).splitlines() or [type(error).__name__])[0], 200)
