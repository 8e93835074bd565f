# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Layers are named in one way everywhere: by row, and by the model's number where that is another."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cli_runs import run

from expert_maps._layers import LayerNames

if TYPE_CHECKING:
    from pathlib import Path

HEAD = r"┃ +row ┃ +layer ┃"
ROWS = [[30, 30, 30, 10], [40, 20, 20, 20]]
CONFIG = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 4,
    "n_routed_experts": 4,
    "first_k_dense_replace": 2,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dump.json").write_text(json.dumps({"logical_count": [[0] * 4, [0] * 4, *ROWS]}))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    return tmp_path


def test_a_row_alone_is_a_layer_and_both_are_said_where_they_differ() -> None:
    for names in (LayerNames(), LayerNames((0, 1, 2))):
        assert (names.one(2), names.short(2), names.several([0, 1])) == ("layer 2", "2", "layers 0-1")
        assert (names.columns, names.cells(1), names.cells(None)) == (["layer"], ["1"], ["total"])
    names = LayerNames((3, 4, 7))
    assert (names.one(2), names.short(2)) == ("row 2 (layer 7)", "row 2 (layer 7)")
    assert (names.several([0, 1, 2]), names.several([1])) == ("rows 0-2 (layers 3-4, 7)", "row 1 (layer 4)")
    assert (names.columns, names.cells(1), names.cells(None)) == (["row", "layer"], ["1", "4"], ["total", ""])
    assert (names.listed, LayerNames().listed) == ([3, 4, 7], None)
    assert LayerNames(tuple(range(0, 400, 2))).several(range(200)).endswith("and 180 more)")


@pytest.mark.usefixtures("folder")
def test_every_command_names_layers_alike() -> None:
    plan = ("plan", "dump.json", "--ep-size", 2, "--redundant", 2)
    told = run(*plan, "--output", "map.json", "--table").stdout
    assert "row 0 (layer 2): " in told.split("worst layers: ")[1]
    assert " in row " in told.split("most copies: ")[1]
    assert re.search(HEAD, told)
    assert re.search(r"│ +1 │ +3 │", told)
    told = run("evaluate", "map.json", "dump.json", "--table", "--layer", 1).stdout
    assert re.search(HEAD, told)
    assert "ranks of row 1 (layer 3)" in told
    assert "in row 1 (layer 3) (" in told.split("hottest experts: ")[1]
    assert "row 0 (layer 2)" in run("compare", "dump.json", "--ep-size", 2, "--policies", "deepseek").stdout
    assert re.search(HEAD, run("weights", "map.json", "dump.json", "--table").stdout)
    assert "hottest of all: row 1 (layer 3), expert 0" in run("load", "dump.json").stdout
    # The map has the numbers too, for commands that read no load.
    assert "row 1 (layer 3), rank 0: 3 slots" in run("show", "map.json", "--layer", 1).stdout
    assert run(*plan, "--policy", "deepseek", "--output", "other.json").exit_code == 0
    told = run("diff", "map.json", "other.json", "--layer", 0).stdout
    assert "slots of row 0 (layer 2) that change" in told or "0 of 12 slots" in told


@pytest.mark.usefixtures("folder")
def test_json_has_rows_and_numbers_apart() -> None:
    def told(*arguments: object) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(*arguments, "--json").stdout)
        return found

    for load, said, layers in (
        ("dump.json", (), [2, 3]),
        ("rows.npy", ("--model", "config.json"), [2, 3]),
        ("rows.npy", (), None),
    ):
        plan = ("plan", load, *said, "--ep-size", 2, "--redundant", 2, "--output", "map.json")
        assert told(*plan)["layers"] == layers
        assert told("evaluate", "map.json", load, *said)["layers"] == layers
        assert told("weights", "map.json", load, *said)["layers"] == layers
        assert told("compare", load, *said, "--ep-size", 2, "--redundant", 0)["layers"] == layers
        assert told("rescale", "map.json", load, *said, "--ep-size", 3)["layers"] == layers
        assert told("load", load, *said)["layers"] == layers
        assert told("diff", "map.json", "map.json")["layers"] == layers
        shown = told("show", "map.json", "--layer", 1)
        assert (shown["layer"], shown["model_layer"]) == (1, None if layers is None else 3)


def test_a_generated_map_has_the_numbers_of_its_model(folder: Path) -> None:
    generate = ("generate", "--model", "config.json", "--ep-size", 2, "--output", "map.json")
    assert run(*generate).exit_code == 0
    assert json.loads((folder / "map.json").read_text())["expert_maps"]["layers"] == [2, 3]
    assert "row 1 (layer 3), rank 0" in run("show", "map.json", "--layer", 1).stdout
    # How many is not which.
    assert run(*generate, "--layers", 2).exit_code == 0
    assert "layers" not in json.loads((folder / "map.json").read_text())["expert_maps"]


def test_numbers_that_the_map_alone_has_are_used_and_others_are_warned_of(folder: Path) -> None:
    assert run("plan", "dump.json", "--ep-size", 2, "--output", "map.json").exit_code == 0
    assert "row 0 (layer 2)" in run("evaluate", "map.json", "rows.npy").stdout
    replanned = run("plan", "rows.npy", "--ep-size", 2, "--current", "map.json", "--output", "next.json")
    assert "row 0 (layer 2)" in replanned.stdout
    assert json.loads((folder / "next.json").read_text())["expert_maps"]["layers"] == [2, 3]
    (folder / "other.json").write_text(json.dumps({"layers": [5, 6], "load": ROWS}))
    told = run("evaluate", "map.json", "other.json")
    assert (
        "warning: the load is of layers 5-6, the map of layers 2-3: they are taken together row by row"
        in told.stderr
    )
    assert run("plan", "other.json", "--ep-size", 2, "--output", "of-others.json").exit_code == 0
    assert "warning: A is of layers 2-3, B of layers 5-6" in run("diff", "map.json", "of-others.json").stderr
