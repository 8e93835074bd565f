# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Reading expert loads: NumPy arrays, JSON and CSV.

- ``.npy``: one array, [L, E] or [steps, L, E].
- ``.npz``: one such array, or several of the same layers and experts, whose steps are taken together.
- ``.json``: nested lists of the same shapes, or an object that holds them under one of `LOAD_KEYS`
  (``logical_count`` is SGLang's).
- ``.csv``: a line per layer, a number per expert.

Nothing is ever unpickled.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from expert_maps.errors import FormatError, LoadError
from expert_maps.files import describe, read_bytes, read_json, write_bytes
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.load import ExpertLoad

if TYPE_CHECKING:
    import os

    from numpy.typing import ArrayLike, NDArray

LOAD_KEYS = ("load", "expert_load", "logical_count")
_SUFFIXES = (".npy", ".npz", ".json", ".csv")


def read_load(path: str | os.PathLike[str], key: str | None = None) -> ExpertLoad:
    """Read an expert load.

    Args:
        path: a file whose name ends in ``.npy``, ``.npz``, ``.json`` or ``.csv``.
        key: the array's name in an ``.npz`` file or the key in a JSON object; None to take the only one
            (``.npz``: all, where they agree in layers and experts).

    Raises:
        FormatError: unreadable, of another kind, or without that key.
        LoadError: the array is no load.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        # An absent file or a folder is the more useful thing to hear first.
        read_bytes(path)
        msg = f"{describe(path)}: expected a load file that ends in {', '.join(_SUFFIXES)}"
        raise FormatError(msg)
    try:
        return ExpertLoad(_read(path, suffix, key))
    except LoadError as error:
        msg = f"{describe(path)}: {error}"
        raise LoadError(msg) from error


def _read(path: str | os.PathLike[str], suffix: str, key: str | None) -> ArrayLike:
    if suffix == ".json":
        return _from_json(read_json(path), key)
    content = read_bytes(path)
    if suffix == ".npz":
        return _from_npz(content, key)
    if key is not None:
        msg = f"key is {key!r}; expected none: a {suffix} file holds a single array"
        raise LoadError(msg)
    return _from_npy(content) if suffix == ".npy" else _from_csv(content)


def read_array(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Read a ``.npy`` file of plain numbers, of any shape.

    Raises:
        FormatError: unreadable.
        LoadError: not such a file; it is named.
    """
    content = read_bytes(path)
    try:
        return _from_npy(content)
    except LoadError as error:
        msg = f"{describe(path)}: {error}"
        raise LoadError(msg) from error


def write_load(load: NDArray[np.generic], path: str | os.PathLike[str]) -> None:
    """Write an expert load where `read_load` finds it, whole or not at all.

    Args:
        load: [L, E] or [steps, L, E].
        path: its name ends in ``.npz`` (compressed) or ``.npy``.

    Raises:
        FormatError: another ending, or the file cannot be written.
    """
    suffix = Path(path).suffix
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(buffer, load=load)
    elif suffix == ".npy":
        np.save(buffer, load, allow_pickle=False)
    else:
        msg = f"{describe(path)}: the name ends in {suffix or 'nothing'}; expected .npz or .npy"
        raise FormatError(msg)
    write_bytes(path, buffer.getvalue())


def load_keys(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the arrays in an ``.npz`` file, in the file's order.

    Raises:
        FormatError: unreadable.
        LoadError: not an ``.npz`` file, or it holds something else than arrays.
    """
    return {name: array.shape for name, array in _arrays(read_bytes(path)).items()}


def _arrays(content: bytes) -> dict[str, NDArray[np.generic]]:
    try:
        return parse_npz(content)
    except FormatError as error:
        raise LoadError(str(error)) from error


def _from_npz(content: bytes, key: str | None) -> NDArray[np.generic]:
    arrays = _arrays(content)
    if key is not None:
        if key not in arrays:
            msg = f"there is no array {key!r}; expected one of {', '.join(arrays)}"
            raise LoadError(msg)
        return arrays[key]
    if not arrays:
        msg = "the file holds no arrays; expected a load"
        raise LoadError(msg)
    loads = {name: ExpertLoad(array) for name, array in arrays.items()}
    if len({load.counts.shape[1:] for load in loads.values()}) > 1:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        msg = f"the arrays differ in layers or experts; choose one by its key: {shapes}"
        raise LoadError(msg)
    return np.concatenate([load.counts for load in loads.values()])


def _from_npy(content: bytes) -> NDArray[np.generic]:
    try:
        return parse_npy(content)
    except FormatError as error:
        raise LoadError(str(error)) from error


def _from_json(document: object, key: str | None) -> ArrayLike:
    if not isinstance(document, dict):
        if key is not None:
            msg = f"key is {key!r}; expected none: the file holds a list"
            raise LoadError(msg)
        return cast("ArrayLike", document)  # ExpertLoad checks it
    found = [name for name in ((key,) if key is not None else LOAD_KEYS) if name in document]
    if len(found) != 1:
        expected = repr(key) if key is not None else f"exactly one of {', '.join(LOAD_KEYS)}"
        msg = f"the object has keys {', '.join(map(repr, document)) or 'none'}; expected {expected}"
        raise LoadError(msg)
    return cast("ArrayLike", document[found[0]])


def _from_csv(content: bytes) -> NDArray[np.float64]:
    try:
        lines = [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        rows = [[float(cell) for cell in line.split(",")] for line in lines]
    except ValueError as error:
        msg = f"not numbers separated by commas: {_first_line(error)}"
        raise LoadError(msg) from error
    lengths = {len(row) for row in rows}
    if len(lengths) != 1:
        msg = f"lines have {sorted(lengths)} numbers; expected one line a layer, all of one length"
        raise LoadError(msg)
    return np.array(rows)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
