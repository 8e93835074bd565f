# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Replica weights in files: `.npz` or JSON, with the digest of the map that they are for.

Weights say which share of an expert's tokens each of its copies takes; on another map the copies are others, and the
shares wrong without a sign. So a file names its map, and is refused for another.

| key | `.npz` | JSON |
|---|---|---|
| `weights` | float64 [L, E, X], ordered as `Placement.logical_to_physical`, 0 where there is no copy | the same in lists |
| `digest` | uint8 [32], `Placement.digest` | the same in 64 hexadecimal digits |
| `version` | int64, 1 | 1 |
"""

from __future__ import annotations

import io
import json
import os
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from expert_maps import limits
from expert_maps._frozen import Frozen
from expert_maps.errors import FormatError
from expert_maps.files import Source, describe, read_bytes, read_json, write_bytes
from expert_maps.formats.arrays import parse_npz
from expert_maps.formats.checks import show
from expert_maps.placement import as_placement
from expert_maps.validation import array_of_lists, check_product, first_true

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from expert_maps.files import AnyPath
    from expert_maps.placement import PlacementLike
    from expert_maps.splitting import ReplicaWeights

    Float64Array = NDArray[np.float64]

VERSION = 1
SUFFIXES = (".npz", ".json")

_KEYS = ("weights", "digest", "version")
_HOW = "`expert-maps weights MAP LOAD --output weights.npz` writes them"
# Far below one token of any period.
_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class StoredWeights(Frozen):
    """What a file of weights says. Read-only.

    Attributes:
        weights: float64 [L, E, X].
        digest: of the map that they are for, in hexadecimal.
        name: of the file.
    """

    weights: Float64Array
    digest: str
    name: str

    def require(self, placement: PlacementLike) -> Float64Array:
        """Return the weights, for the placement that they are for.

        Raises:
            FormatError: they are for another one, whose digest is named, or are no shares of its copies.
        """
        plain = as_placement(placement)
        if self.digest != plain.digest:
            msg = (
                f"{self.name} holds weights for the map {self.digest[:12]}; expected {plain.digest[:12]}, the map that "
                f"is used: weights hold for one map ({_HOW})"
            )
            raise FormatError(msg)
        _check_shares(self.name, self.weights, plain.logical_to_physical)
        return self.weights

    def __repr__(self) -> str:
        """Name the shape and the map."""
        return (
            f"StoredWeights(shape={list(self.weights.shape)}, digest={self.digest[:12]}, name={self.name!r})"
        )


def read_weights(path: AnyPath, placement: PlacementLike) -> Float64Array:
    """Read the weights of a map.

    Args:
        path: an ``.npz`` or JSON file; its content decides, not its name.
        placement: the map, or a result that has one.

    Returns:
        float64 [L, E, X], read-only: each copy's share of its expert's tokens, ordered as
        `Placement.logical_to_physical`.

    Raises:
        FormatError: absent, unreadable, of another form or version, for another map, or no shares.
    """
    return read_stored(path).require(placement)


def read_stored(path: AnyPath) -> StoredWeights:
    """Read weights whose map is looked at later.

    Raises:
        FormatError: absent, unreadable, or of another form or version.
    """
    name = describe(path)
    content = read_bytes(path)
    try:
        weights, digest = _parse(name, content)
    except FormatError as error:
        text = str(error)
        raise FormatError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error
    return StoredWeights(weights, digest, name)


def write_weights(weights: ReplicaWeights, path: str | os.PathLike[str]) -> None:
    """Write weights with the digest of their map, whole or not at all.

    Args:
        weights: what `split_replicas` returned.
        path: ends in ``.npz`` or ``.json``, which decides the form.

    Raises:
        FormatError: another ending, weights that are no shares of the placement's copies, or it cannot be written.
    """
    check_output_name(path)
    write_bytes(path, content_of(weights, PurePath(path).suffix))


def content_of(weights: ReplicaWeights, suffix: str = ".npz") -> bytes:
    """Return what a file of weights holds.

    Args:
        weights: what `split_replicas` returned.
        suffix: ``.npz`` or ``.json``, which decides the form.

    Raises:
        FormatError: they are no shares of the placement's copies.
    """
    _check_shares("replica weights", weights.weights, weights.placement.logical_to_physical)
    digest = weights.placement.digest
    if suffix == ".json":
        document = {"version": VERSION, "digest": digest, "weights": weights.weights.tolist()}
        return (json.dumps(document) + "\n").encode()
    stream = io.BytesIO()
    number = np.frombuffer(bytes.fromhex(digest), dtype=np.uint8)
    np.savez(stream, weights=weights.weights, digest=number, version=np.int64(VERSION))
    return stream.getvalue()


def check_output_name(path: str | os.PathLike[str]) -> None:
    """Refuse a name from which the form cannot be told.

    Raises:
        FormatError: it ends neither in ``.npz`` nor in ``.json``.
    """
    suffix = PurePath(path).suffix
    if suffix not in SUFFIXES:
        why = ": a bare .npy array cannot say which map it is for" if suffix == ".npy" else ""
        msg = f"the output is {os.fspath(path)!r}; expected a name that ends in {' or '.join(SUFFIXES)}{why}"
        raise FormatError(msg)


def _parse(name: str, content: bytes) -> tuple[Float64Array, str]:
    if content.startswith(b"\x93NUMPY"):
        msg = f"a bare .npy array, which does not say which map it is for; expected .npz or JSON ({_HOW})"
        raise FormatError(msg)
    if content.startswith(b"PK"):
        return _from_arrays(parse_npz(content))
    return _from_json(read_json(Source(name, content)))


def _from_arrays(arrays: dict[str, NDArray[np.generic]]) -> tuple[Float64Array, str]:
    _check_keys(list(arrays))
    weights, digest, version = (arrays[key] for key in _KEYS)
    if version.shape != () or version.dtype.kind not in "iu":
        msg = f"version is {version.dtype} {list(version.shape)}; expected one integer"
        raise FormatError(msg)
    _check_version(version.item())
    if digest.dtype != np.uint8 or digest.shape != (32,):
        msg = f"digest is {digest.dtype} {list(digest.shape)}; expected uint8 [32]"
        raise FormatError(msg)
    if weights.dtype.kind not in "iuf":
        msg = f"weights are {weights.dtype}; expected numbers [L, E, X]"
        raise FormatError(msg)
    _check_size(weights.shape)
    return weights.astype(np.float64), digest.tobytes().hex()


def _from_json(document: object) -> tuple[Float64Array, str]:
    if not isinstance(document, dict):
        msg = f"not a file of weights; expected an object with {', '.join(_KEYS)} ({_HOW})"
        raise FormatError(msg)
    _check_keys(list(document))
    weights, digest, version = (document[key] for key in _KEYS)
    _check_version(version)
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        msg = "digest is no SHA-256; expected 64 hexadecimal digits"
        raise FormatError(msg)
    if not isinstance(weights, list):
        msg = f"weights are {show(weights)}; expected lists of numbers [L, E, X]"
        raise FormatError(msg)
    table = array_of_lists("weights", weights, FormatError, check_shape=_check_size)
    return table.astype(np.float64, copy=False), digest


def _check_keys(found: list[str]) -> None:
    if sorted(found) != sorted(_KEYS):
        shown = ", ".join(repr(key)[:40] for key in found[:6]) + (", …" if len(found) > 6 else "")  # noqa: PLR2004
        msg = f"holds {shown or 'nothing'}; expected replica weights: {', '.join(_KEYS)} ({_HOW})"
        raise FormatError(msg)


def _check_version(version: object) -> None:
    if isinstance(version, bool) or version != VERSION:
        msg = f"version is {show(version)}; expected {VERSION}, all that this expert-maps reads"
        raise FormatError(msg)


def _check_size(shape: Sequence[int]) -> None:
    if len(shape) != 3 or 0 in shape:  # noqa: PLR2004 - as said
        msg = f"weights have shape {list(shape)}; expected [L, E, X], none of them empty"
        raise FormatError(msg)
    axes = dict(zip(("L", "E", "X"), shape, strict=True))
    check_product("a file of weights", axes, limits.MAX_COPIES, FormatError)


def _check_shares(name: str, weights: Float64Array, slots: NDArray[np.int32]) -> None:
    """Refuse what is no share of each copy: of another shape, negative, without a copy, or that do not sum to 1."""
    if weights.shape != slots.shape:
        msg = f"{name}: weights are {list(weights.shape)}; expected {list(slots.shape)}, as the map's copies"
        raise FormatError(msg)
    bad = first_true(~(weights >= 0) | ((slots < 0) & (weights != 0)))
    if bad is not None:
        layer, expert, copy = bad[0]
        exists = slots[layer, expert, copy] >= 0
        expected = "at least 0" if exists else "0, because there is no such copy"
        found = weights[layer, expert, copy]
        msg = f"{name}: weight of layer {layer}, expert {expert}, copy {copy} is {found}; expected {expected}"
        raise FormatError(msg)
    total = weights.sum(axis=2)
    wrong = first_true(~(np.abs(total - 1) <= _ROUNDING))
    if wrong is not None:
        layer, expert = wrong[0]
        msg = f"{name}: weights of layer {layer}, expert {expert} sum to {total[layer, expert]}; expected 1"
        raise FormatError(msg)
