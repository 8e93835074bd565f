# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""PyTorch's ``.pt`` files, read by torch with ``weights_only=True`` where torch happens to be installed."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import TYPE_CHECKING

from expert_maps import limits
from expert_maps.errors import LoadError

if TYPE_CHECKING:
    import torch

# What torch raises on damaged files and on what `weights_only` does not load, by experience.
_ERRORS = (
    ArithmeticError,
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


def parse_pt(content: bytes) -> object:
    """Return what a ``.pt`` file holds, its tensors as NumPy arrays; dictionaries have strings as keys.

    Raises:
        LoadError: torch is not installed, or the file holds something else than tensors and plain values.
    """
    try:
        import torch
    except ImportError as error:
        msg = (
            "a PyTorch file, and torch is not installed here; convert it where torch is: python -c "
            "\"import numpy, torch; numpy.save('load.npy', torch.load('FILE.pt', weights_only=True)"
            "['logical_count'].numpy())\", then read load.npy with --format sglang"
        )
        raise LoadError(msg) from error
    try:
        _check_size(content)
        document = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return _plain(document, torch, 0)
    except LoadError:
        raise
    except _ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        msg = f"not a PyTorch file of plain tensors (read with weights_only): {reason}"
        raise LoadError(msg) from error


def _check_size(content: bytes) -> None:
    stream = io.BytesIO(content)
    if not zipfile.is_zipfile(stream):
        return
    with zipfile.ZipFile(stream) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > limits.MAX_FILE_BYTES:
        msg = f"the file unpacks to {size} bytes; expected at most {limits.MAX_FILE_BYTES}"
        raise LoadError(msg)


def _plain(value: object, torch_: object, depth: int) -> object:
    import torch

    if depth > limits.MAX_DEPTH:
        msg = f"nested more than {limits.MAX_DEPTH} deep"
        raise LoadError(msg)
    if isinstance(value, torch.Tensor):
        return _array(value)
    if isinstance(value, dict):
        return {str(key): _plain(item, torch_, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, torch_, depth + 1) for item in value]
    return value


def _array(tensor: torch.Tensor) -> object:
    # A tensor may claim any shape over a small storage.
    if tensor.numel() > limits.MAX_LOAD_NUMBERS:
        msg = f"a tensor has shape {list(tensor.shape)}; expected at most {limits.MAX_LOAD_NUMBERS} numbers"
        raise LoadError(msg)
    tensor = tensor.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).numpy()
