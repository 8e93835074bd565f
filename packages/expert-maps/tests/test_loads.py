# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import pickle
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import FormatError, LoadError, read_load
from expert_maps.formats.loads import load_keys

if TYPE_CHECKING:
    from pathlib import Path

LOAD = np.arange(24).reshape(2, 3, 4)


def test_arrays_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", LOAD)
    np.savez(tmp_path / "one.npz", anything=LOAD)
    (tmp_path / "list.json").write_text(json.dumps(LOAD.tolist()))
    for key in ("load", "expert_load", "logical_count"):
        (tmp_path / f"{key}.json").write_text(json.dumps({key: LOAD.tolist(), "rank": 0}))
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_load(path).counts, LOAD)


def test_csv_is_a_line_per_layer(tmp_path: Path) -> None:
    path = tmp_path / "load.csv"
    path.write_text("1,2,3\n\n4, 5.5 ,6\n")
    assert read_load(path).total.tolist() == [[1, 2, 3], [4, 5.5, 6]]
    for text, message in (
        ("1,2\n3\n", r"lines have \[1, 2\] numbers"),
        ("a,b\n", "not numbers"),
        ("", "lines"),
    ):
        path.write_text(text)
        with pytest.raises(LoadError, match=message):
            read_load(path)


def test_several_arrays_are_taken_together_or_chosen(tmp_path: Path) -> None:
    path = tmp_path / "load.npz"
    np.savez(path, first=LOAD, second=LOAD[0] + 1)
    assert read_load(path).num_steps == 3
    assert load_keys(path) == {"first": (2, 3, 4), "second": (3, 4)}
    np.testing.assert_array_equal(read_load(path, "second").counts[0], LOAD[0] + 1)
    with pytest.raises(LoadError, match="there is no array 'third'; expected one of first, second"):
        read_load(path, "third")
    np.savez(path, first=LOAD, second=LOAD[:, :, :2])
    with pytest.raises(LoadError, match=r"choose one by its key: first \[2, 3, 4\], second \[2, 3, 2\]"):
        read_load(path)
    np.savez(path)
    with pytest.raises(LoadError, match="holds no arrays"):
        read_load(path)


def test_keys_where_there_are_none_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", LOAD)
    (tmp_path / "load.json").write_text(json.dumps(LOAD.tolist()))
    for name in ("load.npy", "load.json"):
        with pytest.raises(LoadError, match="key is 'x'; expected none"):
            read_load(tmp_path / name, "x")
    (tmp_path / "object.json").write_text(json.dumps({"rows": LOAD.tolist()}))
    assert read_load(tmp_path / "object.json", "rows").num_steps == 2
    with pytest.raises(LoadError, match="has keys 'rows'; expected exactly one of load"):
        read_load(tmp_path / "object.json")
    with pytest.raises(LoadError, match="expected 'x'"):
        read_load(tmp_path / "object.json", "x")


class Trap:
    """Fails the test if it is ever unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a file was unpickled",))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "load.npz", load=np.array([Trap()], dtype=object))
    (tmp_path / "plain.npy").write_bytes(pickle.dumps(Trap()))
    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    for path in tmp_path.iterdir():
        with pytest.raises(LoadError, match="plain"):
            read_load(path)


@pytest.mark.parametrize("name", ["load.npy", "load.npz", "load.json", "load.csv"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"PK\x03\x04nonsense", b"\x93NUMPY\x01\x00v\x00{"])
def test_broken_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises((LoadError, FormatError), match=name):
        read_load(path)


def test_an_archive_under_another_name_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "load.npz", load=LOAD)
    (tmp_path / "load.npz").rename(tmp_path / "load.npy")
    with pytest.raises(LoadError, match="rename it"):
        read_load(tmp_path / "load.npy")
    np.save(tmp_path / "array.npy", LOAD)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    with pytest.raises(LoadError, match=r"not a NumPy \.npz"):
        read_load(tmp_path / "array.npz")


def test_other_names_and_absent_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        read_load(tmp_path / "load.pt")
    with pytest.raises(FormatError, match="is a folder"):
        read_load(tmp_path)
    (tmp_path / "load.pt").write_bytes(b"")
    with pytest.raises(FormatError, match=r"ends in \.npy, \.npz, \.json, \.csv"):
        read_load(tmp_path / "load.pt")


def test_bad_values_name_file_and_place(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.array([[1.0, -2.0]]))
    with pytest.raises(LoadError, match=r"load.npy: load at layer 0, expert 1 is -2"):
        read_load(tmp_path / "load.npy")
