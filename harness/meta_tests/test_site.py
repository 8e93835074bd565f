# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The site's generated pages hold what they are generated from."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from harness.site.reference import attributes, commands, releases, schemas, settings
from vllm_ascend_moe.core.settings import Settings
from vllm_ascend_moe.releases import RELEASES

if TYPE_CHECKING:
    import pytest


def test_every_setting_is_described_with_its_default() -> None:
    page = settings()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `([^`]+)` \| (\S.*) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == list(Settings.model_fields)
    for name, variable, default, _ in rows:
        assert variable == f"VLLM_ASCEND_MOE_{name.upper()}"
        assert json.loads(default) == Settings.model_fields[name].default
    schema = json.loads(page.split("```json\n", 1)[1].split("\n```", 1)[0])
    assert set(schema["properties"]) == set(Settings.model_fields)


def test_a_docstring_is_read_to_the_end_of_its_attributes() -> None:
    found = attributes(
        "About.\n\nAttributes:\n    one: first,\n        and more.\n    two: second.\n\nRaises:\n    E: no."
    )
    assert found == {"one": "first, and more.", "two": "second."}


def test_all_releases_and_schemas_are_shown() -> None:
    page = releases()
    assert all(f"| {release.vllm_ascend}" in page for release in RELEASES)
    assert {"## expert-map-1", "## expert-map-2"} <= set(schemas().splitlines())


def test_each_command_has_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    from expert_maps.cli import commands as table

    monkeypatch.setattr(table, "COMMANDS", dict(list(table.COMMANDS.items())[:1]))
    page = commands()
    assert page.startswith("## expert-maps\n\n```text\nUsage: expert-maps ")
    assert len(re.findall("^## ", page, re.MULTILINE)) == 2
