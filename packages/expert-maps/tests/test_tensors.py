# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import numpy as np
import pytest

from expert_maps import FormatError, limits
from expert_maps.formats import tensors


def safetensors(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32", "bool"])
def test_what_is_written_as_safetensors_is_read_back(dtype: str) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((1, 2, 2), dtype=dtype)}
    content = tensors.dump_safetensors(arrays)
    assert tensors.is_safetensors(content)
    found = tensors.parse_safetensors(content)
    assert list(found) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["b"]["data_offsets"][1] == len(content) - 8 - length


ENTRY: dict[str, Any] = {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (safetensors({"a": ENTRY}, b"\0" * 15), "the file is damaged"),
        (safetensors({"a": ENTRY | {"shape": [2**40, 2**40]}}, b"\0" * 16), "the file is damaged"),
        (safetensors({"a": ENTRY | {"shape": [-2]}}, b"\0" * 16), "expected lists of integers"),
        (safetensors({"a": ENTRY | {"shape": [True, 2]}}, b"\0" * 16), "expected lists of integers"),
        (safetensors({"a": ENTRY | {"dtype": "F8_E4M3"}}, b"\0" * 16), "expected one of I64"),
        (safetensors({"a": [1]}), "dtype None"),
        (safetensors({"a": ENTRY | {"data_offsets": [16, 0]}}, b"\0" * 16), "the file is damaged"),
        (b"\xff" * 7 + b"\x7f{}", "header of"),
        (struct.pack("<Q", 3) + b"{]}", "not valid JSON"),
    ],
)
def test_damaged_safetensors_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        tensors.parse_safetensors(content)


def test_pt_files_go_through_torch_and_nothing_is_called() -> None:
    torch = pytest.importorskip("torch")
    arrays = {"a": np.arange(6).reshape(2, 3)}
    found = tensors.parse_pt(tensors.dump_pt(arrays))
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["a"], arrays["a"])

    def saved(value: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    assert tensors.parse_pt(saved(torch.ones(2, 2))).shape == (2, 2)  # type: ignore[union-attr]
    listed = tensors.parse_pt(saved({"a": [[1, 2]], "rank": 3}))
    assert isinstance(listed, dict)
    assert {name: array.tolist() for name, array in listed.items()} == {"a": [[1, 2]]}
    for value, message in (
        ("text", "holds str"),
        ({"a": torch.zeros(1).expand(2**30)}, "numbers; expected at most"),
        ({"a": torch.zeros(1, dtype=torch.bfloat16)}, "expected plain numbers"),
        ({"a": pytest.raises}, "UnpicklingError"),
    ):
        with pytest.raises(FormatError, match=message):
            tensors.parse_pt(saved(value))


def test_damaged_pt_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    content = tensors.dump_pt({"a": np.arange(3)})
    for damaged in (content[:-30], content[:40] + b"\xff" * 40 + content[80:], b"PK\x03\x04"):
        with pytest.raises(FormatError, match=r"not a (file|\.pt)"):
            tensors.parse_pt(damaged)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(1))
        archive.writestr("archive/data/0", bytes(2**20))
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 2**20)
    with pytest.raises(FormatError, match="unpacks to"):
        tensors.parse_pt(buffer.getvalue())


def test_without_torch_pt_files_say_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors.importlib.util, "find_spec", lambda _: None)  # type: ignore[attr-defined]
    for use in (lambda: tensors.parse_pt(b"PK"), lambda: tensors.dump_pt({})):
        with pytest.raises(FormatError, match=r"needs torch, which is not installed here; \.json or \.npz"):
            use()
