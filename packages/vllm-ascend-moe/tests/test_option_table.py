# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_ascend_moe import option_table
from vllm_ascend_moe.cli import app
from vllm_ascend_moe.core.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "options.md"


def test_every_option_is_tried() -> None:
    tried = {name for options in option_table.TRIED.values() for name in options}
    assert tried == set(Settings.model_fields)


def test_the_page_has_exactly_the_table() -> None:
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("<!-- options -->\n")
    table, _, _ = rest.partition("<!-- /options -->")
    assert before
    assert table == option_table.markdown()


def test_what_a_platform_refuses_is_refused_with_the_reason() -> None:
    rows = {name: cells for name, *cells in option_table.rows()}
    cpu, gpu, ascend, second = rows["load_collection_phase"]
    assert cpu == option_table.WORKS
    assert gpu.startswith("refused: load_collection_phase is decode; expected 'all'")
    assert ascend.startswith("works from 0.23.0 on; before, refused: load_collection_phase is decode")
    assert second.startswith(
        "refused: load_collection_phase is decode; expected 'all': vllm-ascend's runner V2"
    )
    assert all(cell == option_table.WORKS or "expected" in cell for cells in rows.values() for cell in cells)


@pytest.mark.parametrize("option", [[], ["--markdown"]])
def test_the_command_line_shows_it(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["options", *option])
    assert result.exit_code == 0
    for name, *cells in option_table.rows():
        assert name in result.stdout
        assert all(cell in result.stdout for cell in cells)
