# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ``.pt`` files, read and written where torch happens to be installed.

They are read by torch's restricted reader (``weights_only=True``), which makes tensors and plain values and calls
nothing else. What it costs is bounded before: it works through a pickle step by step, and a tensor may claim any shape
over a few bytes. The form is that of ``torch.save`` since torch 1.6, a ZIP archive.
"""

from __future__ import annotations

import importlib.util
import io
import pickle
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps import limits
from expert_maps.errors import FormatError
from expert_maps.formats.arrays import first_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_ZIP = b"PK\x03\x04"
_ENTRY = b"PK\x01\x02"
# The one callable of those that torch's reader knows (2.13) that takes memory by a number alone.
_GREEDY = b"bytearray"
# What torch raises on damaged files and on what `weights_only` does not load, by experience.
_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)
_NOT_PLAIN = "not a PyTorch file of plain tensors (read with weights_only)"
_CONVERT = (
    "python -c \"import numpy, torch; found = torch.load('FILE.pt', weights_only=True); numpy.savez('FILE.npz', "
    "**{name: value.numpy() for name, value in found.items() if hasattr(value, 'numpy')})\""
)


def is_pt(content: bytes) -> bool:
    """Whether a ZIP archive is one of ``torch.save``, whose first entry is NAME/data.pkl."""
    length = int.from_bytes(content[26:28], "little")
    return content.startswith(_ZIP) and content[30 : 30 + length].endswith(b"/data.pkl")


def require_torch(what: str) -> None:
    """Refuse what needs torch where it is not installed.

    Raises:
        FormatError: as said.
    """
    try:
        is_there = importlib.util.find_spec("torch") is not None
    except ValueError:  # something that has no spec stands for it
        is_there = False
    if not is_there:
        msg = (
            f"{what} needs torch, and torch is not installed here; .npz and .json hold the same: convert it where torch "
            f"is: {_CONVERT}"
        )
        raise FormatError(msg)


def parse_pt(content: bytes) -> object:
    """Return what a ``.pt`` file holds.

    Args:
        content: the file's bytes.

    Returns:
        A NumPy array, or nested dict (with strings as keys) and list of arrays and plain values; bfloat16 and the
        float8 types are widened to float32.

    Raises:
        FormatError: torch is not installed, or the file is damaged, larger than `limits` allow, or holds something else
            than tensors and plain values; the message does not name the file, the caller does.
    """
    require_torch("a .pt file")
    _check_size(content)
    import torch

    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return _Plain().value(found, 0)
    except FormatError:
        raise
    except _ERRORS as error:
        msg = f"{_NOT_PLAIN}: {first_line(error)}"
        raise FormatError(msg) from error


def _check_size(content: bytes) -> None:
    if not content.startswith(_ZIP):
        msg = f"{_NOT_PLAIN}: no ZIP archive, as torch.save writes; save it anew with torch 1.6 or later"
        raise FormatError(msg)
    if content.count(_ENTRY) > limits.MAX_TENSORS:
        msg = f"the .pt file has more than {limits.MAX_TENSORS} entries; expected at most so many"
        raise FormatError(msg)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            total, steps = (sum(entry.file_size for entry in part) for part in (entries, pickles))
            is_small = total <= limits.MAX_FILE_BYTES and steps <= limits.MAX_PICKLE_BYTES
            greedy = is_small and any(_GREEDY in archive.read(entry) for entry in pickles)
    except _ERRORS as error:
        msg = f"{_NOT_PLAIN}: {first_line(error)}"
        raise FormatError(msg) from error
    if not is_small:
        msg = (
            f"the .pt file unpacks to {total} bytes, {steps} of them beside the tensors; expected at most "
            f"{limits.MAX_FILE_BYTES}, and {limits.MAX_PICKLE_BYTES} beside tensors"
        )
        raise FormatError(msg)
    if greedy:
        msg = f"{_NOT_PLAIN}: it makes a bytearray"
        raise FormatError(msg)


class _Plain:
    """Turns what torch loaded into arrays and plain values; it counts what that takes."""

    def __init__(self) -> None:
        self.values = 0
        self.numbers = 0

    def value(self, found: object, depth: int) -> object:
        """Return a value without torch in it; what is shared is counted as often as it stands."""
        import torch

        self.values += 1
        if depth > limits.MAX_DEPTH or self.values > limits.MAX_PICKLE_VALUES:
            msg = (
                f"the .pt file has more than {limits.MAX_PICKLE_VALUES} values, or they are nested more than "
                f"{limits.MAX_DEPTH} deep; expected at most so many"
            )
            raise FormatError(msg)
        if isinstance(found, torch.Tensor):
            return self._array(found)
        if isinstance(found, dict):
            return {str(key): self.value(entry, depth + 1) for key, entry in found.items()}
        if isinstance(found, list | tuple):
            return [self.value(entry, depth + 1) for entry in found]
        return found

    def _array(self, tensor: Any) -> NDArray[np.generic]:  # noqa: ANN401 - torch may be absent
        import torch

        if tensor.numel() > limits.MAX_TABLE:
            msg = f"a tensor has shape {list(tensor.shape)}; expected at most {limits.MAX_TABLE} numbers"
            raise FormatError(msg)
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            msg = f"a tensor is {tensor.dtype}, {tensor.layout}; expected plain numbers"
            raise FormatError(msg)
        tensor = tensor.detach()
        if tensor.is_floating_point() and tensor.dtype not in {torch.float16, torch.float32, torch.float64}:
            self.numbers += tensor.numel()
            if self.numbers > limits.MAX_TABLE:
                msg = f"tensors have {self.numbers} numbers of {tensor.dtype}; expected at most {limits.MAX_TABLE}"
                raise FormatError(msg)
            tensor = tensor.float()
        array: NDArray[np.generic] = tensor.numpy()
        return array


def dump_pt(arrays: Mapping[str, NDArray[np.generic]]) -> bytes:
    """Return arrays as torch saves a dict of tensors.

    Raises:
        FormatError: torch is not installed.
    """
    require_torch("writing a .pt file")
    import torch

    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, buffer)
    return buffer.getvalue()
