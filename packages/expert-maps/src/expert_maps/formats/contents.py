# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What kind of file it is, by its first bytes, and what it holds: an object, an array or named arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from expert_maps.errors import FormatError
from expert_maps.files import Source, describe, read_bytes, read_json, unpack_once
from expert_maps.formats.arrays import parse_npy, parse_npz
from expert_maps.formats.safetensors import is_safetensors, parse_safetensors
from expert_maps.formats.torch_files import is_pt, parse_pt
from expert_maps.formats.yaml_text import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from expert_maps.files import AnyPath

Kind = Literal["json", "yaml", "npy", "npz", "safetensors", "pt"]


@dataclass(frozen=True)
class Content:
    """The content of a file.

    Attributes:
        kind: what kind of file it is.
        value: nested dict and list (``json``, ``yaml``), an array (``npy``, ``pt``), or a dict of arrays.
    """

    kind: Kind
    value: object

    def mapping(self) -> Mapping[str, object]:
        """Return the keys and values.

        Raises:
            FormatError: it is one list or array.
        """
        if not isinstance(self.value, dict):
            from expert_maps.formats.checks import show

            what = (
                f"one array of shape {list(self.value.shape)}"
                if isinstance(self.value, np.ndarray)
                else show(self.value)
            )
            msg = f"the file is {what}; expected an object with named lists"
            raise FormatError(msg)
        return self.value


def read_content(path: AnyPath, *, as_yaml: bool = False) -> Content:
    """Read a file by what its first bytes say it is; what gzip has packed is unpacked first.

    Args:
        path: the file.
        as_yaml: whether text that is no JSON is YAML, though it starts as JSON does.

    Raises:
        FormatError: unreadable or damaged; the file is named.
    """
    name = describe(path)
    content = unpack_once(read_bytes(path), name)
    if content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        msg = f"{name}: is a Python pickle, which may run code and is never read; save it as .npz or .json"
        raise FormatError(msg)
    try:
        if content.startswith(b"\x93NUMPY"):
            return Content("npy", parse_npy(content))
        if content.startswith(b"PK\x03\x04"):
            return Content("pt", parse_pt(content)) if is_pt(content) else Content("npz", parse_npz(content))
        if is_safetensors(content) and b"\0" in content[:8]:
            return Content("safetensors", parse_safetensors(content))
    except FormatError as error:
        msg = f"{name}: {error}"
        raise FormatError(msg) from error
    return _from_text(Source(name, content), as_yaml=as_yaml)


def _from_text(source: Source, *, as_yaml: bool) -> Content:
    start = source.content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if (start in {b"{", b"["} and not as_yaml) or not start:
        return Content("json", read_json(source))
    try:
        value = parse_yaml(source.content)
    except FormatError as error:
        if not as_yaml and start not in {b"{", b"["}:
            # Most text that is neither was meant as JSON; both readers' reasons are of use.
            _json_or_raise(source, error)
        msg = f"{source.name}: {error}"
        raise FormatError(msg) from error
    if isinstance(value, dict):
        return Content("yaml", value)
    # One word or number is YAML to YAML; here it is a broken JSON file, or null and the like.
    return Content("json", read_json(source))


def _json_or_raise(source: Source, error: FormatError) -> None:
    try:
        read_json(source)
    except FormatError as reason:
        msg = f"{reason}; and as YAML: {error}"
        raise FormatError(msg) from error
