# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`--model` on the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from expert_maps.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

GENERATE = ["generate", "--ep-size", "4", "--json"]
ERNIE = {"num_hidden_layers": 5, "moe_num_experts": 8, "moe_layer_start_index": 2, "moe_layer_end_index": 4}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ERNIE))
    return path


def test_generate_and_check_take_a_configuration(config: Path) -> None:
    runner = CliRunner()
    for model, text in ((str(config), None), (str(config.parent), None), ("-", json.dumps(ERNIE))):
        result = runner.invoke(app, [*GENERATE, "--model", model], input=text)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert (found["num_layers"], found["num_logical_experts"]) == (3, 8)
        assert not result.stderr
    out = str(config.parent / "map.json")
    assert runner.invoke(app, [*GENERATE, "--model", str(config), "-o", out]).exit_code == 0
    assert runner.invoke(app, ["check", out, "--model", str(config)]).exit_code == 0
    other = runner.invoke(app, ["check", out, "--model", "mixtral-8x7b"])
    assert (other.exit_code, "num_layers is 3; expected 32" in other.stderr) == (1, True)


def test_what_cannot_be_told_is_asked_and_what_is_assumed_is_said(config: Path) -> None:
    runner = CliRunner()
    config.write_text('{"num_hidden_layers": 6, "num_experts": 8, "moe_layer_stride": 2}')
    refused = runner.invoke(app, [*GENERATE, "--model", str(config)])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(
        f"error: {config}: cannot tell the MoE layers of this model from moe_layer_stride"
    )
    assert refused.stderr.count("\n") == 1
    given = runner.invoke(app, [*GENERATE, "--model", str(config), "--layers", "3"])
    assert (given.exit_code, json.loads(given.stdout)["num_layers"], given.stderr) == (0, 3, "")
    config.write_text('{"num_hidden_layers": 6, "num_experts": 8}')
    assumed = runner.invoke(app, [*GENERATE, "--model", str(config)])
    assert (assumed.exit_code, json.loads(assumed.stdout)["num_layers"]) == (0, 6)
    assert assumed.stderr.startswith("warning: ")
    assert "6 of 6 layers (0-5) taken" in assumed.stderr
