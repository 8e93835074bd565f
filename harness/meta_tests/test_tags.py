# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""A tag is published only where version and changelog say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.sessions.tags import VERSIONS, problems_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in VERSIONS:
        path = tmp_path / "packages" / name
        path.parent.mkdir(parents=True)
        path.write_text('__version__ = "1.2.0"\n', encoding="utf-8")
    (tmp_path / "CHANGELOG.md").write_text(
        "# Changelog\n\n## 1.2.0 - 2026-01-31\n\n### Added\n\n- A thing.\n\n## 1.1.0 - 2025-12-24\n\n- Another.\n",
        encoding="utf-8",
    )
    return tmp_path


def test_a_tag_that_all_agree_on_is_published(checkout: Path) -> None:
    assert problems_of("v1.2.0", checkout) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        (f"packages/{VERSIONS[1]}", "1.2.0", "1.3.0", "the tag is v1.2.0, and packages/vllm-ascend-moe"),
        (
            "CHANGELOG.md",
            "2026-01-31",
            "unreleased",
            "'unreleased' as the date of 1.2.0; expected YYYY-MM-DD",
        ),
        ("CHANGELOG.md", "## 1.2.0", "## 1.3.0", "begins with 1.3.0; expected 1.2.0"),
        ("CHANGELOG.md", "- A thing.\n", "", "says nothing about 1.2.0"),
    ],
)
def test_what_disagrees_is_named(checkout: Path, file: str, old: str, new: str, said: str) -> None:
    path = checkout / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    [problem] = problems_of("v1.2.0", checkout)
    assert said in problem


def test_another_tag_is_refused_by_each(checkout: Path) -> None:
    assert len(problems_of("1.2.0", checkout)) == len(problems_of("v1.2.0rc1", checkout)) == 3


def test_this_checkout_has_what_is_read() -> None:
    found = problems_of("v0", ROOT)
    assert len(found) == 3
    assert not any("none" in problem or "no version" in problem for problem in found)
