# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The picture of the README is what the planner answers: its words, and those that stand for it where it is not seen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from expert_maps import PlanResult, evaluate, generate_placement, plan, read_load
from expert_maps.plots import picture

ROOT = Path(__file__).parents[2]
PICTURE = ROOT / "docs/images/rank_loads.svg"
# By which it is drawn again; README.md plans the same.
COMMAND = "plan accuracy/loads/tiny_moe.npz --redundant 4 --ep-size 4 --plot docs/images/rank_loads.svg"


@pytest.fixture(scope="module")
def result() -> PlanResult:
    return plan(read_load(ROOT / "accuracy/loads/tiny_moe.npz"), ep_size=4, num_redundant_experts=4)


def words_of(svg: str) -> list[str]:
    """What is written in a picture, in order: matplotlib notes it beside the letters' shapes."""
    return re.findall(r"<!-- (.*?) -->", svg)


def test_the_picture_is_that_of_its_command(result: PlanResult) -> None:
    pytest.importorskip("matplotlib")
    drawn = words_of(picture(result.plot(), ".svg").decode())
    assert words_of(PICTURE.read_text(encoding="utf-8")) == drawn, f"draw it again: expert-maps {COMMAND}"
    assert sum("balancedness" in words for words in drawn) == 2


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_what_stands_for_it_says_what_it_shows(name: str, result: PlanResult) -> None:
    found = re.search(r"!\[(.*?)\]\(docs/images/rank_loads\.svg\)", (ROOT / name).read_text(encoding="utf-8"))
    assert found is not None
    assert result.load is not None
    linear = generate_placement("linear", num_experts=16, ep_size=4, num_layers=result.load.num_layers)
    before = 1 / evaluate(linear, result.load).overall_balancedness
    after = 1 / result.overall_balancedness
    assert re.findall(r"\d\.\d+", found[1]) == [f"{before:.1f}", f"{after:.3f}"]
