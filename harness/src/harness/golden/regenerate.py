# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Rewrite the golden data and say what changed; never part of a test run."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from expert_maps.files import write_text
from expert_maps.formats.golden import dumps
from harness.golden.build import build
from harness.golden.cases import CASES, Case
from harness.golden.check import MANIFEST, check_published

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def regenerate(root: Path, cases: Sequence[Case] = CASES) -> list[str]:
    """Build every case anew, write what differs, and return a line for each change.

    Everything is built, and compared with what is published, before the first file is written.

    Raises:
        GoldenError: a case contradicts its publication; nothing is written.
    """
    texts = {}
    for case in cases:
        document = json.loads(json.dumps(build(case.kind, case.parameters, root)))
        for claim in case.published:
            check_published(case.as_manifest(""), json.loads(json.dumps(claim)), document)
        texts[case.file] = dumps(document)
    entries = [case.as_manifest(hashlib.sha256(texts[case.file].encode()).hexdigest()) for case in cases]
    manifest = json.dumps({"version": 1, "cases": entries}, indent=1) + "\n"
    (root / "maps").mkdir(exist_ok=True)
    changes = []
    for name, text in {**texts, MANIFEST: manifest}.items():
        path = root / name
        before = path.read_text(encoding="utf-8") if path.exists() else None
        if before != text:
            changes.append(f"{name}: {_describe(before, text)}")
            write_text(path, text)
    for path in sorted((root / "maps").glob("*")):
        if path.relative_to(root).as_posix() not in texts:
            changes.append(f"{path.relative_to(root).as_posix()}: removed, no case has it")
            path.unlink()
    return changes


def _describe(before: str | None, after: str) -> str:
    if before is None:
        return "new"
    try:
        old: dict[str, Any] = json.loads(before)
    except ValueError:
        return "was not JSON"
    new: dict[str, Any] = json.loads(after)
    if "cases" in new:
        return "updated"
    changed = []
    for key, value in new.items():
        if old.get(key) != value:
            changed.append(_describe_table(key, old.get(key), value))
    return ", ".join(changed) or "formatting"


def _describe_table(key: str, old: object, new: object) -> str:
    try:
        left, right = np.array(old), np.array(new)
    except ValueError:
        return f"{key} changed"
    if left.shape != right.shape:
        return f"{key} {list(left.shape)} → {list(right.shape)}"
    different = np.argwhere(np.atleast_1d(left != right))
    first = tuple(different[0].tolist()) if left.ndim else ()
    return f"{key} {len(different)} entries, first at {list(first)}: {left[first]} → {right[first]}"
