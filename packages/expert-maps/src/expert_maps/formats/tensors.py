# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Named tensors in files: safetensors, read and written without its library, and PyTorch's `.pt`, where torch is.

A safetensors file is the length of its header as 8 bytes, the header as JSON ({name: {dtype, shape, data_offsets}}),
and the numbers (safetensors' format description, version 0.6).
"""

from __future__ import annotations

import importlib.util
import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.files import Source, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_DTYPES = {
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1",
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BOOL": "|b1",
}  # fmt: skip
_MAX_HEADER = 16 * 2**20
_PREFIX = 8
_MAX_TENSORS = 2**16


def is_safetensors(content: bytes) -> bool:
    """Whether a file starts as safetensors files do: the length of a header within the file, and its brace."""
    length = int.from_bytes(content[:_PREFIX], "little")
    return content[_PREFIX : _PREFIX + 1] == b"{" and _PREFIX + length <= len(content)


def parse_safetensors(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Return the tensors of a safetensors file by name.

    Raises:
        FormatError: it is damaged, or holds a type that NumPy does not have; the caller names the file.
    """
    length = int.from_bytes(content[:_PREFIX], "little")
    if length > _MAX_HEADER or not is_safetensors(content):
        msg = f"not a safetensors file: its header of {length} bytes is longer than the file or {_MAX_HEADER}"
        raise FormatError(msg)
    header = read_json(Source("the safetensors header", content[_PREFIX : _PREFIX + length]))
    if not isinstance(header, dict) or len(header) > _MAX_TENSORS:
        msg = f"not a safetensors file: the header is no object of at most {_MAX_TENSORS} tensors"
        raise FormatError(msg)
    body = memoryview(content)[_PREFIX + length :]
    return {name: _tensor(name, entry, body) for name, entry in header.items() if name != "__metadata__"}


def _tensor(name: str, entry: object, body: memoryview) -> NDArray[np.generic]:
    facts: dict[str, Any] = entry if isinstance(entry, dict) else {}
    kind: Any = facts.get("dtype")
    shape: Any = facts.get("shape")
    offsets: Any = facts.get("data_offsets")
    if not isinstance(kind, str) or kind not in _DTYPES:
        msg = f"tensor {name!r} has dtype {kind!r}; expected one of {', '.join(_DTYPES)}"
        raise FormatError(msg)
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:  # noqa: PLR2004 - from, to
        msg = f"tensor {name!r} has shape {shape!r} at {offsets!r}; expected lists of integers"
        raise FormatError(msg)
    dtype = np.dtype(_DTYPES[kind])
    size = dtype.itemsize
    for axis in shape:
        size *= axis
    begin, end = offsets
    if end - begin != size or end > len(body):
        msg = f"tensor {name!r} of {size} bytes stands at {begin} … {end} of {len(body)}; the file is damaged"
        raise FormatError(msg)
    return np.frombuffer(body[begin:end], dtype=dtype).reshape(shape)


def _are_counts(value: Any) -> bool:  # noqa: ANN401 - anything that JSON holds
    return (
        isinstance(value, list)
        and len(value) <= 32  # noqa: PLR2004 - as many axes as NumPy 1 has
        and all(
            isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 for count in value
        )
    )


def dump_safetensors(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return arrays as a safetensors file; the header is padded to 8 bytes, so that numbers are aligned."""
    names = {np.dtype(code): kind for kind, code in _DTYPES.items()}
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


def require_torch(what: str) -> None:
    """Refuse what needs torch where it is not installed.

    Raises:
        FormatError: as said.
    """
    if importlib.util.find_spec("torch") is None:
        msg = f"{what} needs torch, which is not installed here; .json or .npz holds the same"
        raise FormatError(msg)


def parse_pt(content: bytes) -> dict[str, NDArray[np.generic]] | NDArray[np.generic]:
    """Return what `torch.save` wrote: one tensor, or a dict of tensors (other entries are left out).

    Read by torch's restricted reader (`weights_only`), which makes tensors and plain values and calls nothing else.

    Raises:
        FormatError: torch is not installed, or the file is damaged, too large, or holds something else.
    """
    require_torch("a .pt file")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        msg = f"not a file of torch.save: {error}"
        raise FormatError(msg) from error
    if size > limits.MAX_FILE_BYTES:
        msg = f"the .pt file unpacks to {size} bytes; expected at most {limits.MAX_FILE_BYTES}"
        raise FormatError(msg)
    import torch

    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        # torch does not say what it raises on damaged or forbidden content: pickle's, zip's and its own.
        first = (str(error).splitlines() or [""])[0][:120]
        msg = f"not a .pt file of tensors and plain values: {type(error).__name__}: {first}"
        raise FormatError(msg) from error
    if isinstance(found, torch.Tensor):
        return _as_array("the tensor", found)
    if not isinstance(found, dict):
        msg = f"the .pt file holds {type(found).__name__}; expected a dict of tensors"
        raise FormatError(msg)
    tensors = {str(name): value for name, value in found.items() if isinstance(value, (torch.Tensor, list))}
    return {
        name: _as_array(repr(name), value) if isinstance(value, torch.Tensor) else _from_list(name, value)
        for name, value in tensors.items()
    }


def _as_array(name: str, tensor: Any) -> NDArray[np.generic]:  # noqa: ANN401 - torch may be absent
    # A tensor may claim any size over a few bytes that it repeats.
    if tensor.numel() > limits.MAX_TABLE:
        msg = f"{name} has {tensor.numel()} numbers; expected at most {limits.MAX_TABLE}"
        raise FormatError(msg)
    if tensor.layout != _torch().strided or tensor.is_quantized or tensor.dtype in _unknown_to_numpy():
        msg = f"{name} is {tensor.dtype}, {tensor.layout}; expected plain numbers"
        raise FormatError(msg)
    array: NDArray[np.generic] = tensor.detach().numpy()
    return array


def _from_list(name: str, value: list[object]) -> NDArray[np.generic]:
    from expert_maps.formats.checks import int_table

    return int_table(value, name)


def _torch() -> Any:  # noqa: ANN401 - torch may be absent
    import torch

    return torch


def _unknown_to_numpy() -> set[object]:
    torch = _torch()
    names = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    return {getattr(torch, name) for name in names if hasattr(torch, name)}


def dump_pt(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return arrays as torch saves a dict of tensors.

    Raises:
        FormatError: torch is not installed.
    """
    require_torch("writing a .pt file")
    torch = _torch()
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, buffer)
    return buffer.getvalue()
