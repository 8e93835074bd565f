# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Modules that are made when they are asked for, and changes right after a module's own import."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from typing import TYPE_CHECKING, Any, NoReturn

from torch_npu import _names

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class ImportedOnly:
    """A name that is imported, or read on the way to another; calling it is refused by its name."""

    def __init__(self, name: str) -> None:
        """Take the dotted name."""
        self.__name__ = self.__qualname__ = name

    def __call__(self, *_: object, **__: object) -> NoReturn:
        """Refuse.

        Raises:
            NotImplementedError: always.
        """
        msg = f"{self.__name__} is not emulated; it is there to be imported only"
        raise NotImplementedError(msg)

    def __getattr__(self, name: str) -> ImportedOnly:
        if name.startswith("__"):
            raise AttributeError(name)
        return ImportedOnly(f"{self.__name__}.{name}")

    def __repr__(self) -> str:
        return f"<{self.__name__}, imported only>"


def add_module(name: str, **attributes: object) -> types.ModuleType:
    """Make a module of that name, below its parent if that is there."""
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(attributes)

    def refuse(attribute: str) -> NoReturn:
        raise AttributeError(
            attribute if attribute.startswith("__") else f"{name}.{attribute} is not emulated"
        )

    module.__dict__["__getattr__"] = refuse
    sys.modules[name] = module
    parent, _, child = name.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)
    return module


class Supplied:
    """Finds one module, which is made rather than read; where there is a file of that name it is not read."""

    def __init__(self, name: str, fill: Callable[[types.ModuleType, Sequence[str]], None]) -> None:
        """Take the module's name, and what fills it, given its package's folders."""
        self._name, self._fill = name, fill
        self._path: Sequence[str] = ()

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: object = None,  # noqa: ARG002 - importlib's signature
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module, and no other."""
        if fullname != self._name:
            return None
        self._path = path or ()
        return importlib.machinery.ModuleSpec(fullname, self)  # type: ignore[arg-type]

    def create_module(self, spec: object) -> None:
        """Leave that to importlib."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Fill it."""
        _names.used(self._name)
        self._fill(module, self._path)


class AfterImport:
    """Calls a function with a module right after the module was imported."""

    def __init__(self, name: str, then: Callable[[Any], None]) -> None:
        """Take the module's name and what is called."""
        self._name, self._then, self._busy = name, then, False

    def find_spec(
        self,
        fullname: str,
        path: object = None,  # noqa: ARG002 - importlib's signature
        target: object = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module as it is found without this, and wrap what reads it."""
        if fullname != self._name or self._busy:
            return None
        self._busy = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._busy = False
        if spec is None or spec.loader is None:
            return None
        exec_module, then = spec.loader.exec_module, self._then

        def run(module: types.ModuleType) -> None:
            exec_module(module)
            then(module)

        spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def find_first(finder: Supplied | AfterImport) -> None:
    """Ask a finder before all others."""
    sys.meta_path.insert(0, finder)
