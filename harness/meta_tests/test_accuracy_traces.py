# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, as vLLM's client gets them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from harness.accuracy.streams import Stream

if TYPE_CHECKING:
    from pathlib import Path


def test_prompts_of_a_trace_are_as_long_as_it_says_and_begin_alike_where_it_does(tmp_path: Path) -> None:
    def line(**changed: object) -> str:
        row = {"timestamp": 0.5, "input_length": 40, "output_length": 4} | changed
        return json.dumps({name: value for name, value in row.items() if value is not None}) + "\n"

    path = tmp_path / "trace.jsonl"
    path.write_text(
        line(hash_ids=[7, 8])
        + line(hash_ids=[7, 9], input_length=100)
        + line()
        + line(input_length=5, hash_ids=[])
    )
    stream = Stream(trace=str(path), requests=4)
    stream.check()
    stream.write_trace(tmp_path / "made.jsonl")
    made = [json.loads(one) for one in (tmp_path / "made.jsonl").read_text().splitlines()]
    # 16 tokens for each id, the last one cut.
    assert [len(row["hash_ids"]) for row in made] == [3, 7, 3, 1]
    assert [row["input_length"] for row in made] == [40, 100, 40, 5]
    first, second, third, _ = (row["hash_ids"] for row in made)
    assert first == second[:3]
    assert len({*first, *second, *third}) == 7 + 3
    path.write_text(line(hash_ids=7) * 4)
    with pytest.raises(ValueError, match="line 1"):
        stream.check()


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        '{"timestamp": 0, "input_length": 2}',
        '{"timestamp": 0, "input_length": 0, "output_length": 1}',
        '{"timestamp": -1, "input_length": 1, "output_length": 1}',
        "{",
        '{"timestamp": 0, "input_length": true, "output_length": 1}',
    ],
)
def test_a_trace_is_read_before_a_server_starts(line: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = '{"timestamp": 0.5, "input_length": 2, "output_length": 1, "hash_ids": [1]}\n'
    path.write_text(good * 2, encoding="utf-8")
    stream = Stream(trace=str(path), requests=2)
    stream.check()
    with pytest.raises(ValueError, match="2 requests; expected at least 3"):
        stream.model_copy(update={"requests": 3}).check()
    path.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"trace\.jsonl, line 2"):
        stream.check()
