# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Groups of options: a class holds what several commands take in the same words."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable


def spread(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command in which a parameter of a dataclass's type is one option for each of its fields.

    Fields of the same name, in two classes or of the command's own, are one option, whose value all of them get.

    Args:
        command: a function; typer makes its parameters arguments and options.
    """
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    groups = {
        name: hints[name] for name in signature.parameters if dataclasses.is_dataclass(hints.get(name, str))
    }
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = {
        name: parameter.replace(annotation=hints[name], kind=keyword)
        for name, parameter in signature.parameters.items()
        if name not in groups
    }
    for group in groups.values():
        of_fields = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            option = inspect.Parameter(
                field.name, keyword, default=field.default, annotation=of_fields[field.name]
            )
            taken.setdefault(field.name, option)

    def call(**given: Any) -> Any:  # noqa: ANN401 - the command's
        own = {name: given[name] for name in signature.parameters if name not in groups}
        for name, group in groups.items():
            own[name] = group(**{field.name: given[field.name] for field in dataclasses.fields(group)})
        return command(**own)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {name: parameter.annotation for name, parameter in taken.items()}
    call.__signature__ = inspect.Signature(list(taken.values()))  # type: ignore[attr-defined] # what inspect looks for
    return call
