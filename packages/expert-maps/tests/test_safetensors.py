# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from expert_maps import FormatError, limits
from expert_maps.formats.safetensors import dump_safetensors, is_safetensors, parse_safetensors


def by_message(value: object) -> str:
    """Name a case; contents are too long."""
    return value if isinstance(value, str) else "content"


def tensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float32", "bool"])
def test_what_is_written_as_safetensors_is_read_back(dtype: str) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.ones((1, 2, 2), dtype=dtype)}
    content = dump_safetensors(arrays)
    assert is_safetensors(content)
    found = parse_safetensors(content)
    assert list(found) == ["a", "b"]
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    length = int.from_bytes(content[:8], "little")
    assert json.loads(content[8 : 8 + length])["b"]["data_offsets"][1] == len(content) - 8 - length


def test_safetensors_are_read() -> None:
    data = np.arange(4, dtype="<i8").tobytes() + b"\xc0\x3f\x00\xc0"  # 1.5 and -2 as bfloat16
    content = tensors(
        {
            "__metadata__": {"format": "pt"},
            "3_0": {"dtype": "BF16", "shape": [2], "data_offsets": [32, 36]},
            "3_1": {"dtype": "I64", "shape": [2, 2], "data_offsets": [0, 32]},
            "empty": {"dtype": "F64", "shape": [0, 2], "data_offsets": [36, 36]},
        },
        data,
    )
    arrays = parse_safetensors(content)
    assert list(arrays) == ["3_0", "3_1", "empty"]
    assert arrays["3_0"].tolist() == [1.5, -2.0]
    assert arrays["3_0"].dtype == np.float32
    assert arrays["3_1"].tolist() == [[0, 1], [2, 3]]
    assert arrays["empty"].shape == (0, 2)
    assert not any(array.flags.writeable for array in arrays.values())


def one(**changes: object) -> dict[str, dict[str, object]]:
    return {"t": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], **changes}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a safetensors file"),
        (b"\xff" * 64, "a header of 18446744073709551615 bytes"),
        (struct.pack("<Q", limits.MAX_HEADER_BYTES + 1) + bytes(limits.MAX_HEADER_BYTES + 1), "at most"),
        (tensors(b"{"), "the safetensors header: not valid JSON"),
        (tensors(b"[" * 5000), "nested"),
        (tensors([]), "no object"),
        (tensors({"t": 5}), "tensor t is malformed"),
        (tensors({"t\x1b": 5}), r"tensor t\\x1b is malformed"),
        (tensors(one(dtype=7), bytes(4)), "malformed"),
        (tensors(one(shape=[True, 4]), bytes(4)), "malformed"),
        (tensors(one(shape=[-4]), bytes(4)), "malformed"),
        (tensors(one(data_offsets=[0]), bytes(4)), "malformed"),
        (tensors(one(dtype="F8_E4M3"), bytes(4)), "dtype F8_E4M3; expected one of BOOL"),
        (tensors(one(shape=[5]), bytes(4)), "tensor t: .*takes 5 bytes; expected 4"),
        (tensors(one(shape=[2**62, 4]), bytes(4)), "tensor t: the shape"),
        (tensors(one(data_offsets=[0, 5]), bytes(4)), "the tensors take 5 bytes; expected 4"),
        (tensors(one(data_offsets=[4, 0]), bytes(4)), "expected 0 first"),
        (tensors(one(), bytes(5)), "take 4 bytes; expected 5"),
        (tensors({**one(), "u": one()["t"]}, bytes(8)), "tensor u has data_offsets"),
    ],
    ids=by_message,
)
def test_a_damaged_safetensors_file_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        parse_safetensors(content)
    assert str(error.value).isprintable()


def test_widened_numbers_count(monkeypatch: pytest.MonkeyPatch) -> None:
    content = tensors({"t": {"dtype": "BF16", "shape": [50], "data_offsets": [0, 100]}}, bytes(100))
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 199)
    with pytest.raises(FormatError, match="200 bytes as float32"):
        parse_safetensors(content)
