# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Whether everything that is installed here has a hash, without looking anything up: `nox -s lint`.

Each line of a requirement file must pin a version and have a SHA-256. Each place that installs must do so by such a file
(``--require-hashes``) or install what this checkout holds (``--no-deps --no-build-isolation``); what does not stands in a
list, with a reason. Nothing but Python's own library is imported: nox reads this folder before anything is installed.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Installations by other words than a hash, by file and function, or by file and line.
ALLOWED = {
    "CONTRIBUTING.md::$ pip install nox": "the reader's own, before there is anything of this project",
    "harness/src/harness/sessions/environments.py::install": "members of this checkout, by `_editable`",
    "harness/src/harness/sessions/environments.py::Shared.install": "hands to pip what those who call it say",
    "harness/src/harness/sessions/environments.py::Shared.under": "its words, with --require-hashes, stand in a variable",
    "harness/src/harness/sessions/environments.py::_install_shared": "pins come from its callers, with --require-hashes",
    "harness/src/harness/contract/fetching.py::_download": "wheels of other projects, which are read and not run",
}
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z,_-]+\])?==[^\s;]+( ; [^\\]+)?")
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# Where commands stand as text.
_TEXTS = (".ci/*", ".github/**/*.yml", ".devcontainer/*", "CONTRIBUTING.md", ".pre-commit-config.yaml")
_CODE = ("noxfile.py", "harness/src/harness/**/*.py", "packages/*/hatch_build.py")


def audit(root: Path) -> list[str]:
    """Return what is installed without a hash, or allowed without need; empty where all is well.

    Args:
        root: of the checkout.
    """
    found = [line for path in sorted((root / "requirements").glob("*.txt")) for line in _unpinned(path, root)]
    places = dict(_installations(root))
    found += [
        f"{place}: installs without a hash ({words}); pin it in requirements/, or say why not in {Path(__file__).name}"
        for place, words in sorted(places.items())
        if place not in ALLOWED
    ]
    return found + [
        f"{place}: allowed, and installs nothing without a hash" for place in sorted({*ALLOWED} - {*places})
    ]


def _unpinned(path: Path, root: Path) -> Iterator[str]:
    """Yield what is wrong with a requirement file, a line each."""
    name = path.relative_to(root)
    text = re.sub(r"[ \t]*\\\n\s*", " ", path.read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        yield f"{name}: pins nothing"
    for line in lines:
        pin, *rest = line.split(" --hash=")
        hashes = [f"--hash={word}".strip() for word in rest]
        if not _PIN.fullmatch(pin.strip()):
            yield f"{name}: {pin[:80]!r}; expected NAME==VERSION, perhaps with a marker"
        elif not hashes or not all(map(_HASH.fullmatch, hashes)):
            yield f"{name}: {pin} has no SHA-256"


def _installations(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the places that install without a hash, and the words by which."""
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            yield from _in_code(path, str(path.relative_to(root)))
    for pattern in _TEXTS:
        for path in sorted(path for path in root.glob(pattern) if path.is_file()):
            for line in path.read_text(encoding="utf-8").splitlines():
                for command in re.split(r"&&|;", line):
                    if re.search(r"\b(pip|uv pip|pipx|npm) (install|i)\b", command) and not _is_hashed(
                        command.split()
                    ):
                        yield f"{path.relative_to(root)}::{command.strip()}", command.strip()


def _in_code(path: Path, name: str) -> Iterator[tuple[str, str]]:
    for where, function in _functions(ast.parse(path.read_text(encoding="utf-8")), ""):
        for node in ast.walk(function):
            words = _words(node)
            if words is None:
                continue
            is_call = isinstance(node, ast.Call)
            installs = is_call or ("pip" in words and ({"install", "download", "wheel"} & {*words}))
            # A list may be added to in the function that holds it.
            if installs and not _is_hashed(words if is_call else _all_words(function)):
                yield f"{name}::{where}", " ".join(words) or ast.unparse(node)


def _functions(node: ast.AST, above: str) -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions of a module with their names, those of classes with the class's in front."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{above}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{above}{child.name}.")


def _words(node: ast.AST) -> list[str] | None:
    """Return the literal words of a call of ``install``, or of a list; None of anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "install":
        # Of a hook, or of a backend: without an argument.
        return _all_words(node) if node.args else None
    if isinstance(node, (ast.List, ast.Tuple)):
        return [
            each.value for each in node.elts if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
    return None


def _all_words(node: ast.AST) -> list[str]:
    return [
        each.value
        for each in ast.walk(node)
        if isinstance(each, ast.Constant) and isinstance(each.value, str)
    ]


def _is_hashed(words: list[str]) -> bool:
    return "--require-hashes" in words or {"--no-deps", "--no-build-isolation"} <= {*words}


def main() -> int:
    """Print what is wrong; 1 where something is."""
    found = audit(Path.cwd())
    sys.stdout.write("".join(f"{line}\n" for line in found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
