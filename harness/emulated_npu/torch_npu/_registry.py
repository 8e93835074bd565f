# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The ops that are given, and their registration under the schemas of a release."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import torch

from torch_npu import _names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    Function = Callable[..., Any]
    F = TypeVar("F", bound=Function)

NPU = "npu"
CUSTOM = "_C_ascend"
ATB = "atb"


class Given(NamedTuple):
    """An op in plain torch.

    Attributes:
        function: takes the schema's arguments by their names, or fewer; its first is the schema's first.
        ignored: arguments that change nothing here, such as how something is communicated.
    """

    function: Function
    ignored: frozenset[str]


# (namespace, op with its overload's name) → the op. Ops of `atb` have no schema: they are called as they are.
GIVEN: dict[tuple[str, str], Given] = {}


def given(namespace: str, *names: str, ignored: Collection[str] = ()) -> Callable[[F], F]:
    """Make a function the op of these names.

    Args:
        namespace: NPU, CUSTOM or ATB.
        names: of the op, with an overload's after a dot.
        ignored: arguments of the schema that change nothing here.
    """

    def add(function: F) -> F:
        for name in names:
            GIVEN[namespace, name] = Given(function, frozenset(ignored))
        return function

    return add


def define(namespace: str, schemas: Mapping[str, str]) -> torch.library.Library:
    """Define all ops of a namespace: those that are given run, the others refuse by their name.

    Args:
        namespace: in torch.ops.
        schemas: op → schema.

    Returns:
        What keeps them defined.
    """
    library = torch.library.Library(namespace, "FRAGMENT")  # type: ignore[no-untyped-call]
    for name, schema in schemas.items():
        library.define(schema)  # type: ignore[no-untyped-call]
        # Not for a key of one device: an op that only makes tensors has none to be found by.
        library.impl(name, implementation(namespace, name, schema), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def implementation(namespace: str, name: str, schema: str) -> Function:
    """Return what an op does when it is called with the arguments of a schema."""
    found = GIVEN.get((namespace, name))
    return (
        absent(f"{namespace}.{name}") if found is None else _by_schema(f"{namespace}.{name}", found, schema)
    )


def absent(name: str) -> Function:
    """Return a function that refuses by its name."""

    def refuse(*_: object, **__: object) -> NoReturn:
        msg = f"{name} is not emulated"
        raise NotImplementedError(msg)

    return refuse


def counted(name: str, function: Function) -> Function:
    """Return a function that lists its name when it is called."""

    def call(*args: object, **kwargs: object) -> object:
        _names.used(name)
        return function(*args, **kwargs)

    return call


def _by_schema(name: str, op: Given, schema: str) -> Function:
    arguments = torch._C.parse_schema(schema).arguments  # noqa: SLF001 - torch has no public parser
    names = [argument.name for argument in arguments]
    defaults = {
        argument.name: argument.default_value for argument in arguments if argument.has_default_value()
    }
    taken = list(inspect.signature(op.function).parameters)
    if names and taken and taken[0] not in names:
        # Versions disagree on whether the first argument is called self or input.
        names[0] = taken[0]
    known = frozenset(taken)
    # Versions disagree on defaults too: the schema's hold.
    known_defaults = {key: value for key, value in defaults.items() if key in known}

    def call(*args: object, **kwargs: object) -> object:
        _names.used(name)
        values = dict(known_defaults)
        for key, value in (*zip(names, args, strict=False), *kwargs.items()):
            if key in known:
                values[key] = value
            elif key not in op.ignored:
                _require_default(name, key, value, defaults.get(key))
        return op.function(**values)

    return call


def _require_default(name: str, argument: str, value: object, default: object) -> None:
    if value is None or (not isinstance(value, (torch.Tensor, list)) and value == default):
        return
    if isinstance(value, list) and (not value or value == default):
        return
    shown = "a tensor" if isinstance(value, torch.Tensor) else value
    msg = f"{name}: {argument} is {shown}; expected {default!r}: nothing else is emulated"
    raise NotImplementedError(msg)
