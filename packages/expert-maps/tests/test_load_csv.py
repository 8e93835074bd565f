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
        ("a,b\n5,6\n", [[5, 6]], "header"),
        ("0,1\n0,5,6\n1,7,8\n", [[5, 6], [7, 8]], "index column"),
        ("3,5,6\n4,7,8\n5,9,1\n", [[5, 6], [7, 8], [9, 1]], "index column 3-5"),
        ("1,5;2\n3;4,25\n", [[1.5, 2], [3, 4.25]], "separated by ;"),
        ("1\t2\n3\t4\n", [[1, 2], [3, 4]], "separated by tabs"),
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


def test_csv_doubts_are_said_and_can_be_decided(tmp_path: Path) -> None:
    path = write(tmp_path / "load.csv", "0,1\n5,6\n")
    found = inspect_load(path)
    assert found.load.total.tolist() == [[5, 6]]
    assert "taken as a header" in found.warnings[0]
    assert read_load(path, format="csv-rows").total.tolist() == [[0, 1], [5, 6]]
    assert "layer of 3 experts" in inspect_load(write(path, "10,20,30\n40,50,60\n")).warnings[0]
    steps = write(path, "step,layer,0,1\n1,3,5,6\n1,4,7,8\n0,4,3,4\n0,3,1,2\n")
    assert read_load(steps).counts.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]
    assert inspect_load(steps).layers == (3, 4)
    with pytest.raises(LoadError, match="expected the same layers in each step"):
        read_load(write(path, "step,layer,0,1\n1,3,5,6\n1,4,7,8\n0,4,3,4\n"))
