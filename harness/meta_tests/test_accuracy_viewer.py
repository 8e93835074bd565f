# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The page of all questions: nothing that a model says becomes a part of it, and what differs is marked."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from forking import run_module
from made_records import Arm, eplb, make, questions_of, summary_of

from harness.accuracy.compare import Options
from harness.accuracy.records import write_record
from harness.accuracy.report import gather
from harness.accuracy.schema import Question, Summary
from harness.accuracy.viewer import cluster_of, html, marked, read_texts, visible

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = (
    "</pre></article><script>alert(1)</script>",
    '"><img src=http://evil.example/x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% for %}",
    "<!-- & &lt; <style>*{display:none}</style>",
    "right\u202eto left\u0000\u001b[2J\u2028",
)
# None of these may stand in the page but in the one script and the style of its own.
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "details", "summary", "p", "table"),
    *("thead", "tbody", "tr", "th", "td", "nav", "label", "select", "option", "input", "output", "section"),
    *("article", "pre", "div", "small", "del", "ins", "script"),
}
VOID = {"meta", "input"}


class Page(HTMLParser):
    """Tags with their attributes and texts; a tag that is not closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, tag: str) -> str:
        return "".join(text for where, text in self.texts if where == tag)


def hostile(folder: Path) -> Path:
    """Records in which all that a model, or a file, can say is hostile."""
    count = len(HOSTILE) * 4
    for arm in (Arm(questions=count, shift=None), eplb(questions=count, shift=None, wrong=[2], cut=[3])):
        questions = [
            Question(
                **one.model_dump()
                | {
                    "text": f"say {HOSTILE[one.index % len(HOSTILE)]} {arm.name if one.index % 2 else ''}",
                    "target": HOSTILE[one.index % len(HOSTILE)],
                    "answer": HOSTILE[one.index % len(HOSTILE)],
                }
            )
            for one in questions_of(arm)
        ]
        summary: dict[str, Any] = summary_of(arm) | {"model": HOSTILE[0]}
        write_record(folder / arm.name, Summary.model_validate(summary), questions)
    return folder


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    texts = {f"doc{index}": HOSTILE[index % len(HOSTILE)] for index in range(24)}
    content = html(gather(hostile(tmp_path), Options()), texts)
    page = Page(content)
    assert {tag for tag, _ in page.tags} <= TAGS
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert [tag for tag, _ in page.tags].count("style") == 1
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in {"src", "href", "style"} for name in attributes)
    # All of it can still be read, as text.
    shown = "".join(page.text(tag) for tag in ("pre", "del", "ins"))
    for text in HOSTILE:
        assert visible(text) in shown
    for letter in ("\u202e", "\u0000", "\u001b", "\u2028"):
        assert letter not in content
    assert "⟨U+202E⟩" in content


def test_the_page_may_run_its_own_script_and_load_nothing(tmp_path: Path) -> None:
    content = html(gather(hostile(tmp_path), Options()), {})
    page = Page(content)
    (policy,) = (attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(page.text("script").encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "The texts of the questions are not at hand" in content


def test_filters_find_what_differs(tmp_path: Path) -> None:
    make(tmp_path, Arm(questions=40, wrong=[1], shift=None))
    make(tmp_path, eplb(questions=40, wrong=[2], changed=[2, 3], cut=[4], shift=None))
    page = Page(html(gather(tmp_path, Options()), {}))
    rows = [attributes for tag, attributes in page.tags if tag == "article"]
    kinds = {index: row["data-kinds"] for index, row in enumerate(rows) if row["data-kinds"]}
    assert kinds == {1: "gained", 2: "changed lost wrong", 3: "changed", 4: "lost cut wrong"}
    clusters = [text for where, text in page.texts if where == "option" and ": " in text]
    assert "no answer was found, other towards the end: 1" in clusters
    assert "the same answer in other words, other towards the end: 1" in clusters
    assert "cut at the limit of tokens, the same text: 1" in clusters
    assert page.text("ins") == " or so" * 2
    assert page.text("del") == ""


def test_what_differs_is_marked() -> None:
    left, right = marked("It is 12 apples.", "It is 13 apples.")
    assert left == [(False, "It is "), (True, "12"), (False, " apples.")]
    assert right == [(False, "It is "), (True, "13"), (False, " apples.")]
    assert marked("", "new") == ([], [(True, "new")])
    # Long texts take no time that grows with the square of their words.
    long = "word " * 20_000
    assert "".join(text for _, text in marked(long, long + "\nend")[1]) == long + "\nend"


@pytest.mark.parametrize(
    ("changes", "cluster"),
    [
        ({}, ""),
        ({"correct": 0}, "scored otherwise, the same text"),
        ({"text": "x", "answer": "2"}, "another answer, other at the beginning"),
        ({"text": "so it is 1 as", "answer": "1"}, "the same answer in other words, other towards the end"),
        ({"text": "so. " * 90, "finish_reason": "length"}, "repeats itself to the limit of tokens"),
    ],
)
def test_clusters(changes: dict[str, Any], cluster: str) -> None:
    good = Question(
        index=0,
        doc_hash="d",
        prompt_hash="p",
        target="1",
        text="so it is 1",
        answer="1",
        correct=1,
        finish_reason="stop",
    )
    found = cluster_of(good.model_copy(update=changes), good)
    assert found.startswith(cluster)
    assert bool(found) == bool(cluster or changes)


def test_questions_are_shown_only_where_they_are_the_record_s(tmp_path: Path) -> None:
    """The committed records of the embedded model, through the command."""
    done = run_module(
        *("harness.accuracy", "view", "accuracy/results/tiny-moe", "--output", str(tmp_path / "v.html")),
        cwd=ROOT,
        seconds=120,
    )
    assert done.returncode == 0, done.stderr
    content = (tmp_path / "v.html").read_text(encoding="utf-8")
    held_out = ROOT / "accuracy" / "tiny-moe" / "held_out.jsonl"
    first = json.loads(held_out.read_text(encoding="utf-8").partition("\n")[0])["question"]
    page = Page(content)
    assert first in page.text("pre")
    assert [tag for tag, _ in page.tags].count("article") == 2 * 1319
    changed = tmp_path / "other.jsonl"
    changed.write_text(json.dumps({"question": first + "!", "answer": "#### 1"}) + "\n", encoding="utf-8")
    assert list(read_texts(changed).values()) == [first + "!"]
    records = tmp_path / "empty"
    records.mkdir()
    done = run_module("harness.accuracy", "view", str(records), cwd=ROOT, seconds=120)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
