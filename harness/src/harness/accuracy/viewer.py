# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""All questions of a model's arms in one HTML file: texts side by side, with what differs marked, and filters.

The file needs no network and no server. What models said is hostile text: it is escaped by the template, what cannot be
seen is written out, and the page's own policy allows its one script and no address.
"""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import re
import unicodedata
from collections import Counter
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expert_maps import ExpertMapsError
from expert_maps.files import parse_json, read_bytes, write_text
from harness.accuracy.compare import Options
from harness.accuracy.config import MODELS
from harness.accuracy.data import find_data
from harness.accuracy.loading import load_config
from harness.accuracy.overview import overview
from harness.accuracy.report import gather
from harness.record.tables import page, template_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.accuracy.overview import ReportedArm
    from harness.accuracy.records import Record
    from harness.accuracy.schema import Question

_WORDS = re.compile(r"\s+|\w+|[^\w\s]")
# Longer texts are compared by lines: by words it takes a time that grows with the square.
_MOST_WORDS = 4000
_SCRIPT = "view.js"
# A text that ends in the same part so often has lost its way.
_LOOP = re.compile(r"(.{4,200}?)\1{3,}\s*\Z", re.DOTALL)


def marked(first: str, second: str) -> tuple[list[tuple[bool, str]], list[tuple[bool, str]]]:
    """Return both texts in parts, each with whether the other lacks it."""
    pieces = [_WORDS.findall(text) for text in (first, second)]
    if max(map(len, pieces)) > _MOST_WORDS:
        pieces = [text.splitlines(keepends=True) for text in (first, second)]
    sides: tuple[list[tuple[bool, str]], list[tuple[bool, str]]] = ([], [])
    matcher = difflib.SequenceMatcher(None, pieces[0], pieces[1], autojunk=False)
    for kind, *ends in matcher.get_opcodes():
        for parts, whole, (begin, end) in zip(sides, pieces, (ends[:2], ends[2:]), strict=True):
            if begin < end:
                parts.append((kind != "equal", visible("".join(whole[begin:end]))))
    return sides


def visible(text: str) -> str:
    """Return a text in which what cannot be seen, or turns the direction of others, is written out."""
    return "".join(
        letter
        if letter in "\n\t" or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        else f"⟨U+{ord(letter):04X}⟩"
        for letter in text
    )


def cluster_of(own: Question, other: Question) -> str:
    """Return what kind of error an answer is, or how it differs from the baseline's; empty where it does neither."""
    if own.text == other.text and own.is_right == other.is_right:
        return "" if own.is_right else "wrong in both, the same text"
    if own.is_cut:
        loops = _LOOP.search(own.text)
        what = "repeats itself to the limit of tokens" if loops else "cut at the limit of tokens"
    elif own.text == other.text:
        what = "scored otherwise"
    elif own.answer is None:
        what = "no answer was found"
    else:
        what = "the same answer in other words" if own.answer == other.answer else "another answer"
    if own.text == other.text:
        return f"{what}, the same text"
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own.text, other.text, strict=False)))
    share = same / max(1, min(len(own.text), len(other.text)))
    where = "at the beginning" if share < 1 / 3 else "in the middle" if share < 2 / 3 else "towards the end"
    return f"{what}, other {where}"


def rows_of(baseline: Record, arm: Record, texts: dict[str, str]) -> list[dict[str, Any]]:
    """Pair an arm's answers with the baseline's, as the template shows them.

    Args:
        baseline: complete, of the same questions.
        arm: likewise.
        texts: hash of a question → its text.

    Returns:
        Of each question its `index`, `question` (None where its text is not at hand) and `target`; the answers of the arm
        (`own`) and the baseline (`other`), None where there is none; the `kinds` of filters that show it; its `cluster`; the
        parts of both texts (`left`, `right`, as `marked`; the latter empty where they are the same); and the `largest`
        |Δ log-probability|, None where it was not measured.
    """
    others = {question.doc_hash: question for question in baseline.questions}
    forced = [{one.doc_hash: one.logprobs for one in record.logprobs or ()} for record in (baseline, arm)]
    rows = []
    for own in arm.questions:
        other = others[own.doc_hash]
        flags = {
            "changed": own.text != other.text,
            "lost": other.is_right and not own.is_right,
            "gained": own.is_right and not other.is_right,
            "cut": own.is_cut,
            "wrong": not own.is_right,
        }
        left, right = marked(other.text, own.text) if flags["changed"] else ([(False, visible(own.text))], [])
        pairs = zip(*(table.get(own.doc_hash, ()) for table in forced), strict=False)
        shown = {
            "question": texts.get(own.doc_hash),
            "target": own.target,
            "own": own.answer,
            "other": other.answer,
        }
        rows.append(
            {
                "index": own.index,
                **{name: None if text is None else visible(text) for name, text in shown.items()},
                "kinds": [name for name, holds in flags.items() if holds],
                "cluster": cluster_of(own, other),
                "left": left,
                "right": right,
                "largest": max((abs(one - two) for one, two in pairs), default=None),
            }
        )
    return rows


def read_texts(path: Path) -> dict[str, str]:
    """Return hash → question of a file of questions: the hash that a record has, so that no other's text is shown.

    Raises:
        FormatError: the file cannot be read, or a line is no JSON.
    """
    found = {}
    for line in read_bytes(path).split(b"\n"):
        row: Any = parse_json(line, str(path)) if line.strip() else None
        if isinstance(row, dict) and isinstance(row.get("question"), str):
            # As lm-eval hashes a document.
            whole = json.dumps(row, indent=2, ensure_ascii=False)
            found[hashlib.sha256(whole.encode()).hexdigest()] = row["question"]
    return found


def html(arms: Sequence[ReportedArm], texts: dict[str, str]) -> str:
    """Return the page.

    Args:
        arms: from `harness.accuracy.report.gather`, the baseline first; an arm that was not judged has its line only.
        texts: from `read_texts`; empty where questions are not at hand.
    """
    script = template_text(_SCRIPT)
    baseline = arms[0].record
    parts = []
    for arm in arms[1:]:
        if arm.comparison is not None:
            rows = rows_of(baseline, arm.record, texts)
            parts.append(
                {
                    "name": arm.name,
                    "line": arm.comparison.verdict.line,
                    "criteria": arm.comparison.verdict.criteria,
                    "rows": rows,
                    "counts": Counter(kind for row in rows for kind in row["kinds"]),
                    "clusters": Counter(row["cluster"] for row in rows if row["cluster"]).most_common(),
                }
            )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page(
        "view.html.j2",
        title=f"{arms[0].summary.model}: answers side by side",
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
        script=script,
        sheets=overview(arms),
        arms=parts,
        has_texts=bool(texts),
    )


def view_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a model, with a folder for each arm.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The HTML file; build/accuracy/MODEL.html without it.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="JSONL of the questions; that of accuracy/models/MODEL.yaml without it."),
    ] = None,
) -> None:
    """Write one HTML file of all questions: texts side by side with differences marked, filters, clusters of errors."""
    try:
        arms = gather(folder, Options())
        model = arms[0].summary.model
        path = data or _data_of(model)
        target = output or Path("build/accuracy") / f"{re.sub(r'[^A-Za-z0-9._-]', '-', model)}.html"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, html(arms, {} if path is None else read_texts(path)))
    except (ExpertMapsError, ValueError, OSError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(2) from error
    typer.echo(f"wrote {target}{'' if path else '; questions are not at hand, give them with --data'}")


def _data_of(model: str) -> Path | None:
    """Return the local questions of a model of this checkout; None where there are none."""
    if model not in {path.stem for path in MODELS.glob("*.yaml")}:
        return None
    config = load_config(model)
    found = find_data(config, config.model, None)
    return None if found is None else found["test"]
