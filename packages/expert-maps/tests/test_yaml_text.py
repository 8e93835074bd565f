# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""YAML of a stranger: values as they are meant, or one `FormatError`, and soon."""

from __future__ import annotations

import time

import pytest
import yaml

from expert_maps import FormatError
from expert_maps.formats import yaml_text
from expert_maps.formats.yaml_text import parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (
            "num_slots: 8\nrows:\n  3: [1, 2]\n  4: [2, -1]\n",
            {"num_slots": 8, "rows": {3: [1, 2], 4: [2, -1]}},
        ),
        ("{3: [1, 2]}", {3: [1, 2]}),
        (
            "- 1\n- '2'\n- true\n- ~\n- 2020-13-45\n- 1.5\n- 0x10",
            [1, "2", True, None, "2020-13-45", "1.5", "0x10"],
        ),
        ("a:\n  - b: 1\n    c: []\n  - {}", {"a": [{"b": 1, "c": []}, {}]}),
        ("\ufeffa: 1", {"a": 1}),
        ("007", 7),
    ],
)
def test_plain_values_are_read(text: str, value: object) -> None:
    assert parse_yaml(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "the anchor &a"),
        ("a: *b", "the alias [*]b|undefined alias"),
        ("&a [*a]", "the anchor &a"),
        ("a: !!int 'x'", "the tag"),
        ("a: !!python/object/apply:os.system ['true']", "the tag"),
        ("[" * 3000 + "]" * 3000, "nest"),
        ("[" * 100_000, "nest"),
        ("[" * 70 + "]" * 70, "line 1: nested deeper than 64 levels"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice"),
        ("3: 1\n3: 2", "the key 3 stands twice"),
        ("{[1]: 2}", "as a key"),
        ("{1: {}, ~: 2}", "the key None"),
        ("a: 1\n---\nb: 2", "2 documents"),
        ("", "0 documents"),
        ("a: [1, 2", "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("<<: {a: 1}\n<<: {b: 1}", "stands twice"),
    ],
)
def test_what_is_no_map_ends_in_one_error(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_yaml(text.encode())


def test_no_text_takes_long() -> None:
    begin = time.process_time()
    keys = "".join(f"k{index}: 0\n" for index in range(20_000))
    assert len(parse_yaml(keys.encode())) == 20_000  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="bytes; expected at most"):
        parse_yaml(b"- 1\n" * (yaml_text.MAX_BYTES // 4 + 1))
    with pytest.raises(FormatError, match="not UTF-8 text at byte 0"):
        parse_yaml(b"\xff")
    assert time.process_time() - begin < 8


def test_values_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yaml_text, "MAX_VALUES", 5)
    with pytest.raises(FormatError, match="more than 5 values"):
        parse_yaml(b"[1, 2, 3, 4, 5]")


@pytest.mark.parametrize("text", ["a: [1, 2]\nb: {3: 4}", "[" * 3000, BOMB])
def test_without_libyaml_it_is_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def outcome() -> object:
        try:
            return parse_yaml(text.encode())
        except FormatError:
            return "refused"

    before = outcome()
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert outcome() == before
