# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Every place in the plugin that calls an op of torch_npu, read from its source."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class CallSite:
    """One call.

    Attributes:
        where: file:line.
        name: the op.
        num_positional: how many arguments are given by position.
        keywords: the names of those given by keyword.
    """

    where: str
    name: str
    num_positional: int
    keywords: frozenset[str]


def find_calls(folder: Path) -> list[CallSite]:
    """Return the calls in all Python files below a folder, ordered by file and line."""
    return [
        call
        for path in sorted(folder.rglob("*.py"))
        for call in parse_calls(path.read_text(encoding="utf-8"), path.relative_to(folder).as_posix())
    ]


def parse_calls(source: str, name: str) -> Iterator[CallSite]:
    """Yield the calls of `npu_…`, `ops.npu_…`, `torch_npu.npu_…` and `torch.ops.npu.npu_…` in one file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Attribute, ast.Name)):
            continue
        op_name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        if not op_name.startswith("npu_"):
            continue
        keywords = [keyword.arg for keyword in node.keywords]
        if None in keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
            # Arguments that the source does not show cannot be checked; shown as an impossible keyword.
            keywords.append("**")
        yield CallSite(
            f"{name}:{node.lineno}",
            op_name,
            len(node.args),
            frozenset(keyword for keyword in keywords if keyword is not None),
        )
