# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import struct
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from expert_maps import FormatError, limits
from expert_maps.formats.arrays import parse_npy, parse_npz

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


def by_message(value: object) -> str:
    """Name a case; contents hold times, and ids must be the same in every process."""
    return value if isinstance(value, str) else getattr(value, "__name__", "content")


ARRAYS = [
    np.arange(6, dtype=np.int64).reshape(2, 3),
    np.arange(6, dtype=">i4").reshape(2, 3),
    np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    np.array([True, False]),
    np.float32(1.5),
    np.zeros((0, 3), dtype=np.uint8),
    np.arange(5, dtype=np.float16)[::2],
    np.array([1 + 2j]),
]


def npy(array: NDArray[Any] | np.generic, version: tuple[int, int] = (1, 0)) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(buffer, np.asanyarray(array), version=version, allow_pickle=True)
    return buffer.getvalue()


def npy_with(header: str | bytes, numbers: bytes = bytes(48)) -> bytes:
    text = header if isinstance(header, bytes) else header.encode("latin-1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + numbers


def npz(**arrays: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def archive(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as file:
        warnings.simplefilter("ignore")  # two entries of one name
        for name, content in entries:
            file.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_npy_is_read_as_numpy_reads_it(array: NDArray[Any], version: tuple[int, int]) -> None:
    content = npy(array, version)
    found, expected = parse_npy(content), np.load(io.BytesIO(content))
    np.testing.assert_array_equal(found, expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype.newbyteorder("=")
    assert not found.flags.writeable


def test_keys_of_a_header_may_come_in_any_order() -> None:
    content = npy_with('{"shape": (2, 3), "fortran_order": False, "descr": "<i8"}\n')
    assert parse_npy(content).tolist() == [[0, 0, 0], [0, 0, 0]]


def header(descr: str = "'<i8'", order: str = "False", shape: str = "(2, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as one"),
        (b"\x93NUMPY", "version"),
        (b"\x93NUMPY\7\0\0\0", r"version \[7, 0\]"),
        (b"\x93NUMPY\1\0\xff\xff", "a header of 65535 bytes"),
        (b"\x93NUMPY\2\0" + struct.pack("<I", 2**31) + b" " * 99, "a header of 2147483648 bytes"),
        (npy_with(header("()")), "the header is"),
        (npy_with(header()[:-2]), "the header is"),
        (npy_with(header() * 2), "the header is"),
        (npy_with("{" * 9000), "the header is"),
        (npy_with("(" * 9000), "the header is"),
        (npy_with(b"{'\x1b[2J'}"), r"the header is \{'\\x1b"),
        (npy_with(header("'<i8', 'descr': '<i8'")), "the header is"),
        (npy_with(header("[('a', '<i8')]")), "the header is"),
        (npy_with(header("'|O'")), "no objects"),
        (npy_with(header("'<U7'")), "no objects"),
        (npy_with(header("'<M8'")), "no objects"),
        (npy_with(header("'<i3'")), "does not know"),
        (npy_with(header(order="1")), "the header is"),
        (npy_with(header(shape="(2, -3)")), "the header is"),
        (npy_with(header(shape="(2, x)")), "the header is"),
        # What a pattern takes for a space or a digit, and int() does not, or as another number.
        (npy_with(header(shape="(2,\x1d3)")), "the header is"),
        (npy_with(header(shape="(2, 4)")), r"takes 64 bytes; expected 48"),
        (npy_with(header(shape="(2, 2)")), r"takes 32 bytes; expected 48"),
        (npy_with(header(shape=f"({2**62}, 4)")), "longest"),
        (npy_with(header(shape=f"({10**18}, 0)"), b""), "longest"),
        (npy_with(header(shape="(500000000, 500000000, 500000000)")), "takes 1000000"),
        (npy_with(header(shape="(1, 1, 1, 1, 1, 1, 1, 1, 6)")), "9 axes"),
        (npz(load=np.zeros(3)), "an .npz archive"),
    ],
    ids=by_message,
)
def test_a_damaged_npy_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        parse_npy(content)
    assert str(error.value).isprintable()


def test_nothing_is_unpickled() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return pytest.fail, ("unpickled",)

    with pytest.raises(FormatError, match="no objects"):
        parse_npy(npy(np.array([Trap()], dtype=object)))


def test_npz_keeps_names_and_order() -> None:
    arrays = parse_npz(npz(step_2=np.eye(2), step_1=np.arange(3)))
    assert list(arrays) == ["step_2", "step_1"]
    assert arrays["step_1"].tolist() == [0, 1, 2]
    assert parse_npz(npz()) == {}


def flip(content: bytes, mask: int, *, signature: bytes, offset: int) -> bytes:
    """Change a byte of each header of this signature."""
    changed = bytearray(content)
    place = changed.find(signature)
    while place >= 0:
        changed[place + offset] ^= mask
        place = changed.find(signature, place + 4)
    return bytes(changed)


ONE = archive(("a.npy", npy(np.arange(100))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a NumPy .npz"),
        (ONE[:-30], "not a NumPy .npz"),
        (ONE[:60] + bytes([ONE[60] ^ 255]) + ONE[61:], "not a NumPy .npz"),
        (archive(("a.npy", npy(np.eye(2))), method=zipfile.ZIP_LZMA), "array a is packed by method 14"),
        (archive(("a.npy", npy(np.eye(2))), method=zipfile.ZIP_BZIP2), "packed by method 12"),
        (flip(ONE, 1, signature=b"PK\x01\x02", offset=8), "array a is encrypted"),
        (archive(("a.npy", npy(np.eye(2))), ("a.npy", npy(np.eye(3)))), "stands twice"),
        (archive(("a.npy", npy(np.eye(2))), ("a", npy(np.eye(3)))), "stands twice"),
        (archive(("notes.txt", b"hello")), "array notes.txt: not a NumPy .npy"),
        (archive(("a\x1b[2J.npy", b"hello")), r"array a\\x1b"),
        (archive(("folder/", b"")), "not a NumPy .npy"),
        (npy(np.eye(2)), "not a NumPy .npz"),
    ],
    ids=by_message,
)
def test_a_damaged_npz_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as error:
        parse_npz(content)
    assert str(error.value).isprintable()


def test_what_arrays_unpack_to_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = archive(*((f"{i}.npy", npy(np.zeros(100))) for i in range(4)))
    parse_npz(content)
    monkeypatch.setattr(limits, "MAX_FILE_BYTES", 4 * len(npy(np.zeros(100))) - 1)
    with pytest.raises(FormatError, match=r"have 3712 bytes once unpacked; expected at most 3711"):
        parse_npz(content)
    monkeypatch.setattr(limits, "MAX_ARRAYS", 3)
    with pytest.raises(FormatError, match="more than 3 entries"):
        parse_npz(content)


def test_an_array_that_claims_less_than_it_has_is_refused() -> None:
    # The size in the table of contents is not believed either.
    content = bytearray(ONE)
    size = struct.pack("<I", len(npy(np.arange(100))))
    place = content.find(size, content.find(b"PK\x01\x02"))
    content[place : place + 4] = struct.pack("<I", 200)
    with pytest.raises(FormatError, match="not a NumPy"):
        parse_npz(bytes(content))
