# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--model` is read once in a command, warned of once, and completed by what the caller says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import numpy as np
import pytest
from cli_runs import run

from expert_maps import models

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = [[30, 30, 30, 10], [40, 20, 20, 20]]
DENSE_FIRST = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 3,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
}
UNTOLD = {"num_hidden_layers": 3, "num_experts": 4, "layer_pattern": "AEE"}
ASSUMED = {"num_hidden_layers": 2, "num_experts": 4}
MAP_OF_ALL = {"physical_to_logical_map": [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 1], [0, 1, 2, 3, 2, 1]]}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "rows.npy", np.array(ROWS))
    (tmp_path / "sglang.json").write_text(json.dumps(MAP_OF_ALL))

    def make(config: dict[str, Any]) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))

    return make


@pytest.mark.parametrize(
    "command",
    [
        ("load", "rows.npy"),
        ("compare", "rows.npy", "--ep-size", 2, "--redundant", 2),
        ("plan", "rows.npy", "--ep-size", 2, "--current", "sglang.json", "--physical", 6),
        ("evaluate", "sglang.json", "rows.npy", "--ep-size", 2),
        ("weights", "sglang.json", "rows.npy", "--ep-size", 2),
        ("rescale", "sglang.json", "rows.npy", "--ranks-now", 2, "--ep-size", 3),
        ("diff", "sglang.json", "sglang.json", "--ep-size", 2),
        ("show", "sglang.json", "--ep-size", 2),
    ],
    ids=lambda command: str(command[0]),
)
def test_a_model_is_read_once_also_from_standard_input(
    command: tuple[Any, ...], write: Callable[[dict[str, Any]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write({**DENSE_FIRST, "hidden_size": 8, "moe_intermediate_size": 4, "dtype": "bfloat16"})
    counting = Mock(side_effect=models.model_counts)
    monkeypatch.setattr(models, "model_counts", counting)
    monkeypatch.setattr("expert_maps.formats.loads.reading.model_counts", counting)
    by_file = run(*command, "--model", "config.json", "--json")
    assert by_file.exit_code == 0, by_file.stderr
    assert counting.call_count == 1
    by_input = run(*command, "--model", "-", "--json", given=Path("config.json").read_bytes())
    assert by_input.exit_code == 0, by_input.stderr
    if command[0] != "compare":  # which has seconds in it
        assert by_input.stdout == by_file.stdout


def test_bytes_that_a_model_does_not_tell_are_asked_for(write: Callable[[dict[str, Any]], None]) -> None:
    write(
        {**DENSE_FIRST, "hidden_size": 8, "moe_intermediate_size": 4, "dtype": "bfloat16", "quantize": "w4a8"}
    )
    plan = (
        "plan",
        "rows.npy",
        "--ep-size",
        2,
        "--current",
        "sglang.json",
        "--physical",
        6,
        "--model",
        "config.json",
    )
    assert (
        "bytes that are fetched are unknown (quantize is 'w4a8', which is not known here" in run(*plan).stdout
    )
    assert "are unknown" not in run(*plan, "--expert-bytes", 7).stdout


def test_assumed_layers_are_warned_of_by_every_command(write: Callable[[dict[str, Any]], None]) -> None:
    write(ASSUMED)
    assert run("plan", "rows.npy", "--ep-size", 2, "--output", "map.json").exit_code == 0
    for command in (
        ("load", "rows.npy"),
        ("evaluate", "map.json", "rows.npy"),
        ("plan", "rows.npy", "--ep-size", 2),
    ):
        told = run(*command, "--model", "config.json").stderr
        assert told.count("no key says which layers are MoE; 2 of 2 layers (0-1) taken") == 1, command
        assert "no key says" not in run(*command, "--model", "config.json", "--moe-layers", 2).stderr


def test_what_the_caller_says_stands_in_for_what_a_model_does_not(
    write: Callable[[dict[str, Any]], None],
) -> None:
    write(UNTOLD)
    load = ("load", "rows.npy", "--model", "config.json")
    refused = run(*load)
    assert refused.exit_code == 2
    assert "cannot tell the MoE layers of this model from layer_pattern ('AEE')" in refused.stderr
    assert refused.stderr.endswith("give --layers\n")
    for said in (("--layers", "0-1"), ("--moe-layers", 2), ("--layers", "all", "--moe-layers", 2)):
        assert run(*load, *said).exit_code == 0, said
    # What is known of it is still compared.
    assert "load has 2 layers; expected 3" in run(*load, "--layers", "all").stderr
    np.save("wide.npy", np.ones((2, 5)))
    assert (
        "load has 5 experts; expected 4"
        in run("load", "wide.npy", "--layers", "all", "--moe-layers", 2, "--model", "config.json").stderr
    )
    shown = ("show", "sglang.json", "--ep-size", 2, "--model", "config.json")
    assert "cannot tell" in run(*shown).stderr
    assert run(*shown, "--layers", "1-2").exit_code == 0


def test_rows_of_a_map_of_all_layers_are_chosen_for_counts_by_slot(
    write: Callable[[dict[str, Any]], None],
) -> None:
    write(DENSE_FIRST)
    slots = np.array([[10, 1, 3, 4, 20, 2], [1, 2, 3, 4, 5, 6]])
    np.savez("slots.npz", expert_load_pass=slots)
    np.savez("all.npz", expert_load_pass=np.vstack([np.zeros((1, 6)), slots]))
    expected = [[4, 3 + 2, 1 + 20, 10], [1, 2 + 6, 3 + 5, 4]]
    for said in (
        ("slots.npz", "--model", "config.json"),
        ("all.npz", "--layers", "1-2"),
        ("all.npz", "--model", "config.json"),
    ):
        told = run("load", *said, "--map", "sglang.json", "--output", "by-expert.npy")
        assert told.exit_code == 0, told.stderr
        assert np.load("by-expert.npy").tolist() == expected, said
    refused = run("load", "slots.npz", "--map", "sglang.json")
    assert "expected 3 layers of 6 slots, as the map has" in refused.stderr
