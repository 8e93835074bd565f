# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A load file opened: its container undone, its meaning still open."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Literal

from expert_maps import limits
from expert_maps._json import text_width
from expert_maps.errors import FormatError, LoadError
from expert_maps.files import Source, describe, read_bytes, read_json, unpack_once
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.loads.values import NamedLoadError, naming
from expert_maps.formats.safetensors import is_safetensors, parse_safetensors
from expert_maps.formats.torch_files import is_pt, parse_pt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps.files import AnyPath

Kind = Literal["npy", "npz", "safetensors", "pt", "json", "csv"]

_SUFFIXES: dict[str, Kind] = {
    ".npy": "npy",
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".pt": "pt",
    ".pth": "pt",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
}
_ZIP, _NPY, _GZIP = b"PK\x03\x04", b"\x93NUMPY", b"\x1f\x8b"


@dataclass(frozen=True)
class Document:
    """One file.

    Attributes:
        name: what messages call it.
        base: its own name in lower case, without folder and ``.gz``; empty for standard input.
        kind: its container.
        value: an array or nested lists, where it holds just one.
        named: arrays, lists or objects by name, where it holds such; else None.
        text: the text of a CSV file.
    """

    name: str
    base: str
    kind: Kind
    value: object = None
    named: Mapping[str, object] | None = None
    text: str = ""


def open_document(path: AnyPath) -> Document:
    """Read a file; its ending says the container, for other names and standard input its content does.

    Raises:
        FormatError: unreadable, or of no known kind.
        LoadError: not of the kind that its name says.
    """
    name = describe(path)
    base = "" if isinstance(path, Source) else PurePath(os.fspath(path)).name.lower()
    content = read_bytes(path)
    if base.endswith(".gz") or content.startswith(_GZIP):
        base = base.removesuffix(".gz")
        content = unpack_once(content, name)
    if not content[:64].strip() and not content.strip():
        msg = f"{name}: the file is empty; expected a load"
        raise NamedLoadError(msg)
    kind = _SUFFIXES.get(PurePath(base).suffix) or _kind_of(content)
    if kind is None:
        endings = ", ".join(_SUFFIXES)
        msg = f"{name}: neither arrays, JSON nor CSV; expected a load file that ends in {endings}, or one of these with .gz"
        raise FormatError(msg)
    if kind == "json":
        value = read_json(Source(name, content))
        return _document(name, base, kind, value)
    with naming(name):
        if kind == "csv":
            return Document(name, base, kind, text=_text(content))
        return _document(name, base, kind, _parse(kind, content))


def _document(name: str, base: str, kind: Kind, value: object) -> Document:
    if isinstance(value, dict):
        return Document(name, base, kind, named=value)
    return Document(name, base, kind, value=value)


def _parse(kind: Kind, content: bytes) -> object:
    try:
        if kind == "npy":
            return parse_npy(content)
        if kind == "npz":
            return parse_npz(content)
        if kind == "safetensors":
            return parse_safetensors(content)
        return parse_pt(content)
    except FormatError as error:
        raise LoadError(str(error)) from error


def _kind_of(content: bytes) -> Kind | None:
    if content.startswith(_NPY):
        return "npy"
    if content.startswith(_ZIP):
        return "pt" if is_pt(content) else "npz"
    if is_safetensors(content):
        return "safetensors"
    start = content[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in {b"{", b"["}:
        return "json"
    # Text is told by having no control characters; what it says is the business of its reader.
    return "csv" if start and not any(byte < 32 and byte not in b"\t\r\n" for byte in start) else None  # noqa: PLR2004


def _text(content: bytes) -> str:
    size = len(content) * text_width(content)
    if size > limits.MAX_CSV_BYTES:
        msg = f"{size} bytes of CSV text; expected at most {limits.MAX_CSV_BYTES}: use .npy or .npz"
        raise LoadError(msg)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"not numbers: no UTF-8 text at byte {error.start}; expected a CSV file"
        raise LoadError(msg) from error
