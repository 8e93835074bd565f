# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Functions in a release's source, found as an import would find them, but nothing is imported."""

from __future__ import annotations

import ast
import tarfile
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.contract.bindings import bindings, bound_by
from harness.contract.fetching import ContractError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


class SourceError(LookupError):
    """What was looked for is not there, or not in a way that can be followed; the message says where."""


@dataclass(frozen=True)
class Definition:
    """What a name stands for.

    Attributes:
        module: in which it is written.
        path: of that module in the release.
        node: a function or class, or the whole module; any other statement is one that is not followed.
    """

    module: str
    path: str
    node: ast.stmt | ast.Module

    @property
    def where(self) -> str:
        """File and line."""
        return f"{self.path}:{getattr(self.node, 'lineno', 1)}"


def read_sources(path: Path) -> Sources:
    """Read the texts of a wheel or of a source distribution.

    Raises:
        ContractError: the file cannot be read as one.
    """
    try:
        if path.name.endswith(".whl"):
            with zipfile.ZipFile(path) as wheel:
                names = [name for name in wheel.namelist() if _is_read(name)]
                return Sources({name: wheel.read(name) for name in names})
        files = {}
        with tarfile.open(path) as archive:
            for member in archive:
                # All of it lies in one folder, which bears the version.
                name = member.name.partition("/")[2]
                if member.isfile() and _is_read(name):
                    opened = archive.extractfile(member)
                    assert opened is not None
                    files[name] = opened.read()
        return Sources(files)
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        msg = f"{path.name}: cannot be read as a wheel or a source distribution: {error}"
        raise ContractError(msg) from error


# What lies beside the package in a source distribution, and is not installed.
_BESIDE = frozenset({"benchmarks", "csrc", "docs", "examples", "tests", "tools"})


def _is_read(name: str) -> bool:
    return (name.endswith(".py") and name.partition("/")[0] not in _BESIDE) or name == "PKG-INFO"


class Sources:
    """The Python modules of a release, parsed when they are asked for."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Keep the texts.

        Args:
            files: by their paths; packages lie at the top.
        """
        self._files = files
        self._paths = {name for name in files if name.endswith(".py")}
        self._trees: dict[str, ast.Module] = {}
        self._underway: set[tuple[str, str]] = set()

    def path(self, module: str) -> str | None:
        """Return a module's file; None if the release has no such module."""
        stem = module.replace(".", "/")
        return next((path for path in (f"{stem}/__init__.py", f"{stem}.py") if path in self._paths), None)

    def text(self, path: str) -> str:
        """Return a file's text.

        Raises:
            SourceError: there is no such file.
        """
        if path not in self._files:
            msg = f"{path} is not there"
            raise SourceError(msg)
        return self._files[path].decode("utf-8", errors="replace")

    def module_text(self, module: str) -> str:
        """Return a module's text.

        Raises:
            SourceError: there is no such module.
        """
        return self.text(self.path(module) or f"{module.replace('.', '/')}.py")

    def __contains__(self, path: object) -> bool:
        """Whether a file is here."""
        return path in self._files

    def has_package(self, module: str) -> bool:
        """Whether a module's outermost package is here."""
        top = module.partition(".")[0]
        return any(path.startswith((f"{top}/", f"{top}.py")) for path in self._paths)

    def parse(self, module: str) -> ast.Module:
        """Return a module's syntax tree.

        Raises:
            SourceError: the release has no such module, or it is not Python.
        """
        path = self.path(module)
        if path is None:
            msg = f"{module.replace('.', '/')}.py is not there"
            raise SourceError(msg)
        if path not in self._trees:
            try:
                with warnings.catch_warnings():
                    # Of others' escape sequences and the like.
                    warnings.simplefilter("ignore")
                    self._trees[path] = ast.parse(self._files[path], path)
            except (SyntaxError, ValueError) as error:
                msg = f"{path} cannot be parsed: {error}"
                raise SourceError(msg) from error
        return self._trees[path]

    def mentioning(self, word: str) -> Iterator[str]:
        """Yield the modules whose text has a word, by name."""
        for path in sorted(self._paths):
            if word.encode() in self._files[path]:
                yield path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find(self, module: str, name: str) -> list[Definition]:
        """Return what a name may stand for: several definitions where a module chooses among them.

        Imports are followed within the release, and base classes depth first, which is Python's order unless
        classes share a base. What stands under ``if TYPE_CHECKING`` is not there at run time.

        Args:
            module: where to begin.
            name: of a function or class, or with dots a member of one.

        Raises:
            SourceError: see the class.
        """
        owner, _, attribute = name.rpartition(".")
        if not owner:
            return self._in_module(module, name)
        return [found for each in self.find(module, owner) for found in self._member(each, attribute)]

    def _in_module(self, module: str, name: str) -> list[Definition]:
        tree = self.parse(module)
        if (module, name) not in self._underway:
            # A package may import its own submodule by name, which leads back here.
            self._underway.add((module, name))
            try:
                found = self._bound(module, tree, name)
            finally:
                self._underway.remove((module, name))
            if found:
                return found
        if self.path(f"{module}.{name}") is not None:
            return [self._whole(f"{module}.{name}")]
        msg = f"{self.path(module)} has no {name}"
        raise SourceError(msg)

    def _bound(self, module: str, tree: ast.Module, name: str) -> list[Definition]:
        nodes = bindings(tree.body, name)
        if nodes:
            return [found for node in nodes for found in self._follow(module, node, name)]
        for star in bindings(tree.body, "*"):
            try:
                return self._in_module(self._origin(module, star), name)
            except SourceError:
                continue
        return []

    def _whole(self, module: str) -> Definition:
        return Definition(module, self.path(module) or module, self.parse(module))

    def _follow(self, module: str, node: ast.stmt, name: str) -> list[Definition]:
        """Go on from a statement that binds a name, as long as it only passes on something else."""
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            alias = next(alias for alias in node.names if bound_by(alias) == name)
            if isinstance(node, ast.Import):
                # Without `as` it is the outermost package that is bound.
                return [self._whole(alias.name if alias.asname else name)]
            origin = self._origin(module, node)
            if not self.has_package(origin):
                # Another project's: that the name is there is all that can be said.
                return [Definition(module, self.path(module) or module, node)]
            return self._in_module(origin, alias.name)
        if isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Attribute)):
            return self.find(module, ast.unparse(node.value))
        return [Definition(module, self.path(module) or module, node)]

    def _origin(self, module: str, node: ast.stmt) -> str:
        """Return the full name of the module that an import names."""
        assert isinstance(node, ast.ImportFrom)
        if not node.level:
            return node.module or ""
        package = module.split(".")
        is_package = (self.path(module) or "").endswith("__init__.py")
        package = package[: len(package) + is_package - node.level]
        return ".".join([*package, *([node.module] if node.module else [])])

    def _member(self, owner: Definition, name: str) -> list[Definition]:
        if isinstance(owner.node, ast.Module):
            return self._in_module(owner.module, name)
        if not isinstance(owner.node, ast.ClassDef):
            msg = f"{owner.where} is not a class; {name} was looked for in it"
            raise SourceError(msg)
        own = bindings(owner.node.body, name)
        if own:
            return [Definition(owner.module, owner.path, node) for node in own]
        for base in owner.node.bases:
            generic = base.value if isinstance(base, ast.Subscript) else base
            try:
                return self.find(owner.module, f"{ast.unparse(generic)}.{name}")
            except SourceError:
                # Not in this base, or a base from another package, whose members are nothing to rely on.
                continue
        msg = f"{owner.where}: class {owner.node.name} has no {name}, nor has a base in the release"
        raise SourceError(msg)


def parameters(definition: Definition) -> tuple[str, ...]:
    """Return the names of a function's parameters, as `inspect.signature` gives them.

    A decorator is taken to keep the signature, as those that use `functools.wraps` do.

    Raises:
        SourceError: it is no function.
    """
    node = definition.node
    if not isinstance(node, Function):
        msg = f"{definition.where}: expected a function; found {type(node).__name__}"
        raise SourceError(msg)
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    if decorators & {"property", "cached_property"}:
        msg = f"{definition.where}: expected a function; found a property"
        raise SourceError(msg)
    takes = node.args
    every = [*takes.posonlyargs, *takes.args, takes.vararg, *takes.kwonlyargs, takes.kwarg]
    names = tuple(argument.arg for argument in every if argument is not None)
    return names[1:] if "classmethod" in decorators else names
