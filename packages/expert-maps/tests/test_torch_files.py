# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import sys
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import FormatError, limits
from expert_maps.formats.torch_files import dump_pt, is_pt, parse_pt

if TYPE_CHECKING:
    from collections.abc import Callable


def saved(value: object) -> bytes:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_pickle(pickled: bytes, *, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive as torch saves it, but with another pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in (("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")):
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def test_tensors_are_read_and_nothing_is_called() -> None:
    torch = pytest.importorskip("torch")
    content = dump_pt({"a": np.arange(6).reshape(2, 3)})
    assert is_pt(content)
    found = parse_pt(content)
    assert isinstance(found, dict)
    np.testing.assert_array_equal(found["a"], np.arange(6).reshape(2, 3))
    assert parse_pt(saved(torch.ones(2, 2))).shape == (2, 2)  # type: ignore[attr-defined]
    mixed = parse_pt(saved({"a": [[1, 2]], 3: (torch.tensor([1.5, -2.0], dtype=torch.bfloat16), None)}))
    assert isinstance(mixed, dict)
    assert mixed["a"] == [[1, 2]]
    wide, nothing = mixed["3"]
    assert (wide.dtype, wide.tolist(), nothing) == (np.float32, [1.5, -2.0], None)
    with pytest.raises(FormatError, match=r"not a PyTorch file of plain tensors \(read with weights_only\)"):
        parse_pt(saved({"a": pytest.raises}))


@pytest.mark.parametrize("kind", ["strided", "sparse", "meta"])
def test_what_a_tensor_claims_is_bounded(kind: str) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros(1).expand(2**30)
    if kind == "sparse":
        tensor = torch.sparse_coo_tensor([[0], [0]], [1.0], (9, 9), check_invariants=True)
    elif kind == "meta":
        tensor = torch.zeros(2, 2, device="meta")
    message = {"strided": "at most 134217728 numbers", "sparse": "expected plain", "meta": "expected plain"}
    with pytest.raises(FormatError, match=message[kind]):
        parse_pt(saved({"a": tensor}))


def test_what_is_widened_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    narrow = torch.zeros(1, dtype=torch.bfloat16).expand(60)
    monkeypatch.setattr(limits, "MAX_TABLE", 100)
    with pytest.raises(
        FormatError, match=r"tensors have 120 numbers of torch.bfloat16; expected at most 100"
    ):
        parse_pt(saved([narrow, narrow]))


# A list that holds the one before it twice, forty times over.
_DOUBLED = b"\x80\x02]q\x00K\x01a" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40)) + b"."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_pickle(b"\x80\x02]q\x00(" + b"}" * (limits.MAX_PICKLE_BYTES) + b"e."), "beside tensors"),
        (with_pickle(b"N" * 2**23, method=zipfile.ZIP_DEFLATED), "beside tensors"),
        (with_pickle(b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R."), "it makes a bytearray"),
        (with_pickle(_DOUBLED), "values, or they are nested"),
        (with_pickle(b""), "not a PyTorch file"),
        (b"PK\x03\x04", "not a PyTorch file"),
        (b"\x80\x02]q\x00.", "no ZIP archive"),
    ],
    ids=lambda value: value if isinstance(value, str) else "content",
)
def test_hostile_and_damaged_files_are_refused(content: bytes, message: str) -> None:
    pytest.importorskip("torch")
    with pytest.raises(FormatError, match=message):
        parse_pt(content)


def test_without_torch_it_is_said_what_else_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    uses: tuple[Callable[[], object], ...] = (lambda: parse_pt(b"PK\x03\x04"), lambda: dump_pt({}))
    for use in uses:
        with pytest.raises(FormatError, match=r"torch is not installed here; .npz and .json hold the same"):
            use()
