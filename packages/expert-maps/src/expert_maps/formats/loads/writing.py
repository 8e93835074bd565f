# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a load, and what other packages read of NumPy files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from expert_maps.errors import FormatError, LoadError
from expert_maps.files import describe, read_bytes, write_bytes
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.loads.values import NamedLoadError, naming

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.load import ExpertLoad

EXPORT_SUFFIXES = (".npz", ".npy", ".json", ".csv")
"""What the name of a written load ends in."""

_WHOLE = 2.0**53  # up to which every whole number is a float64


def read_array(path: str | os.PathLike[str]) -> NDArray[np.generic]:
    """Read a ``.npy`` file of plain numbers, of any shape.

    Raises:
        FormatError: unreadable.
        LoadError: not such a file; it is named.
    """
    content = read_bytes(path)
    try:
        return parse_npy(content)
    except FormatError as error:
        msg = f"{describe(path)}: {error}"
        raise NamedLoadError(msg) from error


def load_keys(path: str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the arrays in an ``.npz`` file, in the file's order.

    Raises:
        FormatError: unreadable.
        LoadError: not an ``.npz`` file, or it holds something else than arrays.
    """
    content = read_bytes(path)
    with naming(describe(path)):
        try:
            return {name: array.shape for name, array in parse_npz(content).items()}
        except FormatError as error:
            raise LoadError(str(error)) from error


def write_load(load: NDArray[np.generic], path: str | os.PathLike[str]) -> None:
    """Write an expert load where `read_load` finds it, whole or not at all.

    Args:
        load: [L, E] or [steps, L, E].
        path: its name ends in ``.npz`` (compressed) or ``.npy``.

    Raises:
        FormatError: another ending, or the file cannot be written.
    """
    suffix = Path(path).suffix
    if suffix not in {".npz", ".npy"}:
        msg = f"{describe(path)}: the name ends in {suffix or 'nothing'}; expected .npz or .npy"
        raise FormatError(msg)
    write_bytes(path, _numpy_content(load, suffix))


def _numpy_content(load: NDArray[np.generic], suffix: str) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npz":
        np.savez_compressed(buffer, load=load)
    else:
        np.save(buffer, load, allow_pickle=False)
    return buffer.getvalue()


def export_load(load: ExpertLoad, path: str | os.PathLike[str], layers: Sequence[int] | None = None) -> None:
    """Write a load as ``.npz``, ``.npy``, JSON or CSV, whole or not at all; `read_load` reads each back.

    Args:
        load: the counts; whole ones are written as integers.
        path: its name says which.
        layers: numbers of the layers, which JSON and CSV can hold; those of their rows if None.

    Raises:
        FormatError: another ending, or the file cannot be written.
    """
    write_bytes(path, content_of(load, check_export_name(path), layers))


def content_of(load: ExpertLoad, suffix: str, layers: Sequence[int] | None = None) -> bytes:
    """Return what a file of a load holds.

    Args:
        load: the counts; whole ones are written as integers.
        suffix: one of `EXPORT_SUFFIXES`, which decides the form.
        layers: as `export_load`.
    """
    counts = load.counts
    is_whole = not (counts % 1).any() and float(counts.max()) < _WHOLE
    values = counts.astype(np.int64) if is_whole else counts
    labels = list(range(load.num_layers)) if layers is None else [int(layer) for layer in layers]
    shortest = values[0] if load.num_steps == 1 else values
    if suffix in {".npz", ".npy"}:
        return _numpy_content(shortest, suffix)
    if suffix == ".json":
        rows = shortest.tolist()
        document = {"load": rows} if layers is None else {"layers": labels, "load": rows}
        return (json.dumps(document) + "\n").encode()
    return _csv(values, labels).encode()


def check_export_name(path: str | os.PathLike[str]) -> str:
    """Return the ending of a name that `export_load` can write.

    Raises:
        FormatError: it can write none such.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXPORT_SUFFIXES:
        msg = (
            f"{describe(path)}: the name ends in {suffix or 'nothing'}; expected {', '.join(EXPORT_SUFFIXES)}"
        )
        raise FormatError(msg)
    return suffix


def _csv(values: NDArray[np.generic], labels: Sequence[int]) -> str:
    steps, _, experts = values.shape
    names = ["layer", *map(str, range(experts))]
    lines = [",".join(names if steps == 1 else ["step", *names])]
    for step, rows in enumerate(values.tolist()):
        for label, row in zip(labels, rows, strict=True):
            head = [str(label)] if steps == 1 else [str(step), str(label)]
            lines.append(",".join([*head, *map(repr, row)]))
    return "\n".join(lines) + "\n"
