# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""CSV tables of loads, as people and their tools write them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from load_files import write

from expert_maps import LoadError, read_load
from expert_maps.formats.loads import inspect_load

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "rows", "said"),
    [
        ("0,1,2,3\n30,3,3,4\n1,2,3,34\n", [[30, 3, 3, 4], [1, 2, 3, 34]], "header 0-3"),
        (",0,1\n0,5,6\n1,7,8\n", [[5, 6], [7, 8]], "header; index column"),
        ("layer,e0,e1\n4,7,8\n3,5,6\n", [[5, 6], [7, 8]], "MoE layers 3-4"),
        ('"","0","1"\n"0",5,6\n"1",7,8\n', [[5, 6], [7, 8]], "index column"),
        ("e1,e0\n5,6\n", [[6, 5]], "order of their expert ids"),
        ("e2,e1\n5,6\n", [[6, 5]], "order of their expert ids"),
        ("1,2,3,4\n30,3,3,4\n", [[30, 3, 3, 4]], "header 1-4"),
        ("1,2,3,4\n0,30,3,3,4\n1,5,6,7,8\n", [[30, 3, 3, 4], [5, 6, 7, 8]], "header 1-4; index column"),
        ("2,0,3,1\n30,3,4,5\n", [[3, 5, 30, 4]], "header 0-3; columns put in the order"),
        ("4;1;3;2\n30;3;4;5\n", [[3, 5, 4, 30]], "header 1-4; separated by ;; columns put in the order"),
        ("layer,4,1,3,2\n7,30,3,4,5\n", [[3, 5, 4, 30]], "columns put in the order"),
        ("0.0,1.0,2.0,3.0\n30,3,3,4\n", [[30, 3, 3, 4]], "header 0-3"),
        (
            "0,2,4,6,8,10,12,14\n9,1,1,1,1,1,1,1\n",
            None,
            "goes up as a header of experts does that lacks some; .*csv-rows",
        ),
        ("1,2,3,4\n", [[1, 2, 3, 4]], "CSV"),
        ("a,b\n5,6\n", [[5, 6]], "header"),
        ("0,1\n0,5,6\n1,7,8\n", [[5, 6], [7, 8]], "index column"),
        ("3,5,6\n4,7,8\n5,9,1\n", [[5, 6], [7, 8], [9, 1]], "index column 3-5"),
        ("1,5;2\n3;4,25\n", [[1.5, 2], [3, 4.25]], "separated by ;"),
        ("1\t2\n3\t4\n", [[1, 2], [3, 4]], "separated by tabs"),
        ("1,2,\n3,4,\n", [[1, 2], [3, 4]], "CSV"),
        ("layer;e0;e1;\n5;1;2;\n", [[1, 2]], "MoE layers 5"),
        ("1,2,\n3,4\n", None, "'' among its experts"),
        ("1|2\n3|4\n", [[1, 2], [3, 4]], "CSV"),
        ("1 2\n3  4\n", [[1, 2], [3, 4]], "CSV"),
        ("\ufeff# counts\r\n\r\n1,2 # first\r\n3,4\r\n", [[1, 2], [3, 4]], "CSV"),
        ("layer_3,5,6\n", None, "'layer_3' among its experts|only a header"),
        ("5,6,total\n1,2,3\n", None, "'total' among its experts"),
        ("e0,e2\n1,2\n", None, "names experts 0, 2"),
        (",0,1\n0,5,6\n0,7,8\n", [[5, 6], [7, 8]], None),
        ("layer,0,1\n3,5,6\n3,7,8\n", None, "layer 3 stands twice"),
        ("1,2\n3\n", None, r"lines have \[1, 2\] numbers"),
        ("1,x\n", None, "only a header"),
        ("1,2\n1_0,2\n", None, "line 2 has '1_0'"),
        ("1,2\nnan,2\n", None, "is nan"),
    ],
)
def test_csv_tables(tmp_path: Path, text: str, rows: list[list[float]] | None, said: str | None) -> None:
    path = tmp_path / "load.csv"
    path.write_text(text, encoding="utf-8")
    if rows is None:
        with pytest.raises(LoadError, match=said):
            read_load(path)
        return
    if said is None:
        with pytest.raises(LoadError):
            read_load(path)
        return
    found = inspect_load(path)
    assert found.load.total.tolist() == rows
    assert said in found.description


@pytest.mark.parametrize("form", ["csv", "csv-rows", "sglang-csv", "mindie"])
def test_every_form_of_csv_refuses_the_same_in_the_same_words(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "load.csv", "1,2,x\n1,3,4\n")
    known = {"format": form, "num_layers": 2 if form == "mindie" else None}
    with pytest.raises(LoadError, match=r"not numbers: line 1 has 'x'|names no experts|among its experts"):
        read_load(path, **known)  # type: ignore[arg-type] # what the options are is not what is tested
    with pytest.raises(LoadError, match="key is 'k'; expected none: a CSV file holds a single array"):
        read_load(write(path, "1,2,3\n1,3,4\n"), "k", **known)  # type: ignore[arg-type]
    (tmp_path / "load.json").write_text("[[1, 2], [3, 4]]")
    with pytest.raises(LoadError, match="not CSV but json; expected lines of "):
        read_load(tmp_path / "load.json", **known)  # type: ignore[arg-type]
    negative = write(path, "1,2,3\n1,3,-4\n")
    with pytest.raises(
        LoadError, match=r"load at (.*layer 1|layer 1, expert 3|.*expert 2).* is -4; expected a number from 0"
    ):
        read_load(negative, **known)  # type: ignore[arg-type]


def test_csv_doubts_are_said_and_can_be_decided(tmp_path: Path) -> None:
    path = write(tmp_path / "load.csv", "0,1\n5,6\n")
    found = inspect_load(path)
    assert found.load.total.tolist() == [[5, 6]]
    assert "taken as a header" in found.warnings[0]
    assert read_load(path, format="csv-rows").total.tolist() == [[0, 1], [5, 6]]
    for doubtful in ("1,2\n5,6\n", "1,0\n5,6\n", "3,1,2\n5,6,7\n"):
        found = inspect_load(write(path, doubtful))
        assert found.load.num_layers == 2
        assert any("is taken as counts, not as a header" in text for text in found.warnings)
    found = inspect_load(write(path, "1,2,3,4\n30,3,3,4\n"))
    assert "the header names experts 1-4; they are taken as experts 0-3" in found.warnings
    assert read_load(path, format="csv-rows").total.tolist() == [[1, 2, 3, 4], [30, 3, 3, 4]]
    rows = "0,2,4,6,8,10,12,14\n9,1,1,1,1,1,1,1\n"
    assert read_load(write(path, rows), format="csv-rows").num_layers == 2
    write(path, "0,1\n5,6\n")
    assert "layer of 3 experts" in inspect_load(write(path, "10,20,30\n40,50,60\n")).warnings[0]
    steps = write(path, "step,layer,0,1\n1,3,5,6\n1,4,7,8\n0,4,3,4\n0,3,1,2\n")
    assert read_load(steps).counts.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert inspect_load(steps).layers == (3, 4)
    with pytest.raises(LoadError, match="the index column has inf"):
        read_load(write(path, "layer,0,1\ninf,5,6\n2,3,4\n"))
    with pytest.raises(LoadError, match="expected the same layers in each step"):
        read_load(write(path, "step,layer,0,1\n1,3,5,6\n1,4,7,8\n0,4,3,4\n"))
