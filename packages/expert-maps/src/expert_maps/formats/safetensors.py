# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors in safetensors files, read and written without its library.

A file is the length of its header in 8 bytes, the header as JSON ({name: {dtype, shape, data_offsets}}), and the numbers
(the format of the safetensors README, version 0.6). No size is believed before it has been compared with what is there.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError, printable
from expert_maps.files import parse_json
from expert_maps.formats.arrays import view

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

_PREFIX = 8

# safetensors' names of the types that NumPy has; BF16 is widened.
_TYPES = {
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


def is_safetensors(content: bytes) -> bool:
    """Whether a file starts as safetensors files do: the length of a header within the file, and its brace."""
    length = int.from_bytes(content[:_PREFIX], "little")
    return content[_PREFIX : _PREFIX + 1] == b"{" and _PREFIX + length <= len(content)


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
    length = int.from_bytes(content[:_PREFIX], "little")
    start = _PREFIX + length
    if len(content) < _PREFIX or start > len(content) or length > limits.MAX_HEADER_BYTES:
        msg = (
            f"not a safetensors file: a header of {length} bytes in a file of {len(content)}; "
            f"expected at most {limits.MAX_HEADER_BYTES}"
        )
        raise FormatError(msg)
    header = parse_json(content[_PREFIX:start], "the safetensors header")
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
    if type_name not in _TYPES:
        types = ", ".join(_TYPES)
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
    dtype = np.dtype(_TYPES[tensor.type_name])
    try:
        array = view(content, start + tensor.begin, start + tensor.end, dtype, tensor.shape)
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


def dump_safetensors(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return arrays as a safetensors file; the header is padded to 8 bytes, so that numbers are aligned."""
    names = {np.dtype(code): kind for kind, code in _TYPES.items() if kind != "BF16"}
    header, parts, offset = {}, [], 0
    for name, array in arrays.items():
        part = np.ascontiguousarray(array).tobytes()
        kind = names[array.dtype]
        header[name] = {
            "dtype": kind,
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(part)],
        }
        parts.append(part)
        offset += len(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX)
    return len(text).to_bytes(_PREFIX, "little") + text + b"".join(parts)
