# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from expert_maps import FormatError, LoadError, read_load
from expert_maps.formats.loads import load_keys, read_array, write_load

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

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
        ("", "the file is empty"),
        ("# only a comment\n", r"lines have \[\] numbers"),
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
    with pytest.raises(LoadError, match="there is no array 'x'; expected one of rows"):
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
        read_load(tmp_path / "load.bin")
    with pytest.raises(FormatError, match="is a folder"):
        read_load(tmp_path)
    (tmp_path / "load.bin").write_bytes(b"\x00\x01")
    with pytest.raises(FormatError, match=r"ends in \.npy, \.npz, \.safetensors, \.pt, \.pth, \.json, \.csv"):
        read_load(tmp_path / "load.bin")


def test_bad_values_name_file_and_place(tmp_path: Path) -> None:
    np.save(tmp_path / "load.npy", np.array([[1.0, -2.0]]))
    with pytest.raises(LoadError, match=r"load.npy: load at layer 0, expert 1 is -2"):
        read_load(tmp_path / "load.npy")


# Arrays of any shape


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4), (1, 2, 1, 3)])
@pytest.mark.parametrize("dtype", ["int64", "float32", "float64", "bool"])
def test_an_array_is_read_as_it_is(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    np.save(tmp_path / "array.npy", array)
    found = read_array(tmp_path / "array.npy")
    assert (found.dtype, found.shape) == (array.dtype, shape)
    np.testing.assert_array_equal(found, array)
    # The content decides, not the name; a load's signs are not looked at.
    np.save(tmp_path / "array.npy", -array if dtype != "bool" else array)
    (tmp_path / "array.npy").rename(tmp_path / "weights")
    assert read_array(str(tmp_path / "weights")).shape == shape


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02", b"0.5,0.5", b"\x93NUMPY\x01\x00v\x00{"])
def test_what_is_no_array_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.npy"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=r"weights\.npy: not a NumPy \.npy file of plain numbers"):
        read_array(path)


def test_archives_pickles_and_absent_files_are_no_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "load.npz", load=LOAD)
    with pytest.raises(LoadError, match=r"load\.npz: an \.npz archive under the name \.npy"):
        read_array(tmp_path / "load.npz")
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(LoadError, match=r"trap\.npy: not a NumPy \.npy file of plain numbers"):
        read_array(tmp_path / "trap.npy")
    with pytest.raises(FormatError, match=r"none\.npy: no such file"):
        read_array(tmp_path / "none.npy")
    with pytest.raises(FormatError, match="is a folder"):
        read_array(tmp_path)


# Writing


@pytest.mark.parametrize("name", ["load.npz", "load.npy"])
@pytest.mark.parametrize(
    "load",
    [LOAD, LOAD[0], LOAD.astype(np.float64) / 3, LOAD.astype(np.int32)],
    ids=["3d", "2d", "float", "int32"],
)
def test_what_is_written_is_read_back(tmp_path: Path, name: str, load: NDArray[np.generic]) -> None:
    path = tmp_path / name
    # Over an old file too, and by either kind of path.
    for target in (path, str(path)):
        write_load(load, target)
        np.testing.assert_array_equal(read_load(path).counts, load.reshape(-1, 3, 4))
    stored = np.load(path)["load"] if name.endswith("z") else np.load(path)
    assert (stored.dtype, stored.shape) == (load.dtype, load.shape)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_is_compressed(tmp_path: Path) -> None:
    write_load(np.zeros((10, 10, 10), dtype=np.int64), tmp_path / "load.npz")
    with zipfile.ZipFile(tmp_path / "load.npz") as archive:
        (entry,) = archive.infolist()
    assert entry.compress_type == zipfile.ZIP_DEFLATED
    assert load_keys(tmp_path / "load.npz") == {"load": (10, 10, 10)}


@pytest.mark.parametrize(
    ("name", "found"),
    [("load.json", ".json"), ("load.csv", ".csv"), ("load.npz.bak", ".bak"), ("load", "nothing")],
)
def test_other_endings_are_refused_and_nothing_is_written(tmp_path: Path, name: str, found: str) -> None:
    message = rf"{name}: the name ends in {found}; expected \.npz or \.npy"
    with pytest.raises(FormatError, match=message):
        write_load(LOAD, tmp_path / name)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).write_text("old")
    with pytest.raises(FormatError, match=message):
        write_load(LOAD, tmp_path / name)
    assert (tmp_path / name).read_text() == "old"


@pytest.mark.parametrize("name", ["load.npz", "load.npy"])
def test_a_load_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    with pytest.raises(FormatError, match="there is no folder"):
        write_load(LOAD, tmp_path / "none" / name)
    assert not list(tmp_path.iterdir())
    write_load(LOAD, path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FormatError, match=rf"{name}: cannot be written: No space left"):
        write_load(LOAD + 1, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
