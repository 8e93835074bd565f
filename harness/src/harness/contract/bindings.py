# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Which statements may have bound a name, once a module's or a class's body is through."""

from __future__ import annotations

import ast


def bindings(body: list[ast.stmt], name: str) -> list[ast.stmt]:
    """Return the statements that may have bound a name when a module's or a class's body is through."""
    found: list[ast.stmt] = []
    for node in body:
        if _binds(node, name):
            found = [node]
            continue
        inner = [bindings(branch, name) for branch in _branches(node)]
        # Where every branch binds it, what stood before is gone.
        before = [] if inner and all(inner) else found
        found = before + [node for branch in inner for node in branch]
    return found


def _binds(node: ast.stmt, name: str) -> bool:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return node.name == name
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return any(bound_by(alias) == name for alias in node.names)
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    return any(
        isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store) and part.id == name
        for target in targets
        for part in ast.walk(target)
    )


def bound_by(alias: ast.alias) -> str:
    """Return the name that an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def _branches(node: ast.stmt) -> list[list[ast.stmt]]:
    if isinstance(node, ast.If):
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            return [node.orelse]
        return [node.body, node.orelse]
    if isinstance(node, ast.Try):
        return [node.body + node.orelse, *(handler.body for handler in node.handlers), node.finalbody]
    if isinstance(node, (ast.With, ast.AsyncWith)):
        return [node.body]
    return []
