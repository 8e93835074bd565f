# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What is taken of a load file, what looks wrong in it, its containers, and writing it."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from load_files import ROWS, SLOT_COUNTS, model, sglang, write, write_safetensors

from expert_maps import FormatError, LoadError, read_load
from expert_maps.files import Source
from expert_maps.formats.loads import FORM_NAMES, export_load, inspect_load

if TYPE_CHECKING:
    from pathlib import Path

# Arrays, several files, choices


def test_maps_beside_loads_are_not_taken_for_steps(tmp_path: Path) -> None:
    path = tmp_path / "dump.npz"
    np.savez(path, counts=np.array([SLOT_COUNTS]), physical_to_logical_map=np.array([[0, 1, 2, 3, 0, 1]]))
    with pytest.raises(LoadError, match="has physical_to_logical_map, so it is a map"):
        read_load(path)
    assert read_load(path, "counts").num_experts == 6
    names: dict[str, Any] = {"\x1b[2J": np.array(ROWS), "b": np.array([[1, 2]])}
    np.savez(path, **names)
    with pytest.raises(LoadError, match=r"'\\x1b\[2J' \[3, 4\], b \[1, 2\]|x1b") as caught:
        read_load(path)
    assert "\x1b" not in str(caught.value)
    np.savez(path, layer_0=np.array([1, 2]), layer_1=np.array([3, 4]))
    with pytest.raises(LoadError, match="an array of one axis"):
        read_load(path)


def test_several_files_are_what_is_said(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.json", ROWS) for name in "ab"]
    with pytest.raises(LoadError, match=r"2 files; expected --files ranks .* or --files steps"):
        read_load(paths)
    assert read_load(paths, files="ranks").counts.tolist() == [[[2 * n for n in row] for row in ROWS]]
    assert read_load(paths, files="steps").counts.tolist() == [ROWS, ROWS]
    with pytest.raises(LoadError, match="files differ"):
        read_load([paths[0], write(tmp_path / "c.json", [[1, 2]])], files="steps")
    with pytest.raises(LoadError, match="of several forms"):
        read_load([paths[0], write(tmp_path / "d.json", sglang(ROWS))])
    with pytest.raises(LoadError, match="files is 'cards'; expected ranks or steps"):
        read_load(paths, files="cards")  # type: ignore[arg-type]
    with pytest.raises(LoadError, match="no load file"):
        read_load([])
    dumps = [write(tmp_path / f"{name}.json", sglang([[0] * 4, *ROWS])) for name in "ef"]
    assert read_load(dumps).counts.tolist() == [ROWS, ROWS]


def test_layers_and_steps_are_chosen(tmp_path: Path) -> None:
    path = write(tmp_path / "load.json", [[[10 * step + layer] for layer in range(4)] for step in range(3)])
    assert read_load(path, layers="1,3", steps="1-2").counts[..., 0].tolist() == [[11, 13], [21, 23]]
    assert read_load(path, layers=[0], steps="2-").counts[..., 0].tolist() == [[20]]
    assert read_load(path, steps=range(2)).num_steps == 2
    assert read_load(path, layers="1–2").shape == (3, 2, 1)
    idle = write(tmp_path / "idle.json", {"logical_count": [[0, 0], [1, 2]]})
    assert inspect_load(idle, layers="all").layers == (0, 1)
    assert inspect_load(idle).layers == (1,)
    for choice, message in (
        ({"layers": "2-4"}, "layer 4 is not in the file; it has 0-3"),
        ({"layers": "3-1"}, "expected absolute layer numbers like 3-60"),
        ({"layers": "1,1"}, "layers have 1 after 1; expected each once, in ascending order"),
        ({"layers": "0-99999999"}, "expected absolute"),
        ({"layers": "0-9999"}, "at most 4096 of them"),
        ({"layers": ""}, "expected absolute layer numbers"),
        ({"steps": "1-3"}, "steps are 1-3; the file has 3 steps, 0-2"),
        ({"steps": "3-"}, "the file has 3"),
        ({"steps": "x"}, "expected all, a step"),
        ({"num_layers": 3}, "load has 4 layers; expected 3, as said"),
        ({"num_experts": 0}, "num_experts is 0; expected at least 1"),
        ({"format": "sgl"}, "format is 'sgl'; expected one of sglang"),
    ):
        with pytest.raises(LoadError, match=message):
            read_load(path, **cast("Any", choice))


def test_arrays_of_all_layers_are_chosen_by_the_model(tmp_path: Path) -> None:
    path = write(tmp_path / "load.json", [[0] * 4, *ROWS])
    assert "layer 0 has no tokens" in inspect_load(path).warnings[0]
    found = inspect_load(path, model=model((1, 2, 3), 4))
    assert found.load.total.tolist() == ROWS
    assert found.description == "array, 4 layers, 1 of them dense, 4 experts; MoE layers 1-3; dense are 0"
    with pytest.raises(LoadError, match="load has 4 layers; expected 3, as tiny has"):
        read_load(path, model=model((1, 2, 3), 5))
    with pytest.raises(LoadError, match="looks transposed"):
        read_load(write(path, np.array(ROWS).T.tolist()), model=model((0, 1, 2), 3))
    with pytest.raises(
        LoadError, match=r"load has 6 experts; expected 4, as tiny has: counts by physical slot need --map"
    ):
        read_load(write(path, [SLOT_COUNTS]), model=model((0,), 1))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0, 0], [1, 2]], "layer 0 has no tokens"),
        (np.array(ROWS).T.tolist(), "transposed"),
        ([[1, 0, 0, 1], [0, 1, 1, 0]], "0 or 1"),
        ([[10, 10], [10, 11]], "unequal tokens, layer 0 20 and layer 1 21"),
        ([[5, 0, 0], [1, 2, 2]], "a single expert has every token in layer 0"),
        ([[1] * 288] * 2, "may be physical slots, 256 experts and 32 redundant"),
        ([[0, 0]], "every count is 0, there is nothing to balance"),
        ([[2, 3]] * 300, "300 layers"),
        (ROWS, None),
        ([[10000, 10000], [10000, 10005]], None),
        ([[2] * 256, [2] * 256], None),
    ],
)
def test_what_looks_wrong_is_warned_of(tmp_path: Path, rows: list[list[int]], words: str | None) -> None:
    warnings = inspect_load(write(tmp_path / "load.json", {"load": rows})).warnings
    assert (words is None and not warnings) or any(words in text for text in warnings if words)


# Containers


@pytest.mark.parametrize("name", ["dump.json.gz", "load.csv.gz", "no_name"])
def test_text_may_be_compressed(tmp_path: Path, name: str) -> None:
    text = "1,2\n3,0\n" if "csv" in name else json.dumps(sglang([[1, 2], [3, 0]]))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    assert read_load(path).total.tolist() == [[1, 2], [3, 0]]
    path.write_bytes(gzip.compress(text.encode(), mtime=0)[:-9])
    with pytest.raises(FormatError, match=name):
        read_load(path)


def test_standard_input_is_recognised_by_its_content(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array(ROWS))
    np.savez(tmp_path / "a.npz", load=np.array(ROWS))
    write_safetensors(tmp_path / "a.safetensors", {"3_0": np.array(ROWS[0])})
    write(tmp_path / "a.json", ROWS)
    write(tmp_path / "a.csv", "0,1,2,3\n30,3,3,4\n")
    for path in tmp_path.iterdir():
        found = read_load(Source("standard input", path.read_bytes()))
        assert found.total[0].tolist() == ROWS[0]
    for content in (b"", b"\x00\x01\x02", b"\x80\x81", b"hello"):
        with pytest.raises((LoadError, FormatError), match="standard input"):
            read_load(Source("standard input", content))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([[1, 2], [3]], "ragged"),
        ([[1, [2]], [3, 4]], "ragged"),
        ([[1, "x"]], "'x' at \\[0, 1\\], of type str; expected integers or floats"),
        ([["x" * 1000, 1]], "expected integers or floats"),
        ([[True, 1]], "True at .*, of type bool"),
        ([[None, 1]], "None"),
        ([[[[[1]]]]], "nested more than 4 deep"),
        ([1, 2], r"shape \[2\]"),
        ([[]], r"shape \[1, 0\]"),
        ([[10**400, 1]], "expected numbers of 64 bits"),
        ({"load": 5}, "is 5, of type int"),
        ({}, "has keys none"),
        ({"\x1b[2J": 1}, r"x1b"),
    ],
)
def test_json_that_is_no_load(tmp_path: Path, document: object, message: str) -> None:
    path = write(tmp_path / "load.json", document)
    with pytest.raises(LoadError, match=message) as caught:
        read_load(path)
    assert str(caught.value).startswith(str(path))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_form_that_is_said_must_fit(tmp_path: Path) -> None:
    csv = write(tmp_path / "load.csv", "1,2\n3,4\n")
    array = write(tmp_path / "load.json", ROWS)
    needs: dict[str, Any] = {"num_experts": 4, "num_layers": 1}
    for name in FORM_NAMES:
        path = csv if name not in {"csv", "csv-rows", "mindie", "sglang-csv"} else array
        with pytest.raises(LoadError):
            read_load(path, format=name, **needs)


# Writing


@pytest.mark.parametrize("name", ["load.npz", "load.npy", "load.json", "load.csv"])
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("divisor", [1, 3])
def test_what_is_exported_is_read_back(tmp_path: Path, name: str, steps: int, divisor: int) -> None:
    source = write(tmp_path / "source.json", sglang([([[0] * 4, *ROWS])] * steps))
    found = inspect_load(source)
    counts = found.load.counts / divisor
    load = type(found.load)(counts)
    export_load(load, tmp_path / name, found.layers)
    again = inspect_load(tmp_path / name)
    np.testing.assert_array_equal(again.load.counts, counts)
    assert again.layers == ((1, 2, 3) if name.endswith(("json", "csv")) else None)
    with pytest.raises(FormatError, match=r"name ends in \.txt"):
        export_load(load, tmp_path / "load.txt")


def test_steps_without_tokens_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "load.json", {"logical_count": [ROWS, [[0] * 4] * 3, [[0] * 4] * 3]})
    assert "2 of 3 steps have no tokens" in " ".join(inspect_load(path).warnings)
    assert not inspect_load(path, steps="0").warnings


def test_one_file_is_counted_once_whatever_its_name(tmp_path: Path) -> None:
    path = write(tmp_path / "load.json", ROWS)
    (tmp_path / "link.json").symlink_to(path)
    for other in (path, tmp_path / "link.json"):
        with pytest.raises(LoadError, match=r"is the same file as .*load.json; expected each once"):
            read_load([path, other], files="ranks")
