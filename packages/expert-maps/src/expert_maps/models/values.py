# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""The values of a configuration, read strictly: a wrong one is refused by its key, value and what was expected."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from expert_maps import limits
from expert_maps.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = 60


class UntoldLayersError(FormatError):
    """Nothing that is known here tells which layers of the model are MoE."""


@dataclass(frozen=True)
class Config:
    """A language model's configuration.

    Attributes:
        name: the model or file, for messages.
        values: keys and values, as in its ``config.json``; null means absent.
    """

    name: str
    values: Mapping[str, object]

    @property
    def model_type(self) -> str:
        """The model's type, such as ``deepseek_v3``; empty where it is not stated."""
        value = self.values.get("model_type")
        return value if isinstance(value, str) else ""

    def has(self, key: str) -> bool:
        """Whether the key is there with a value."""
        return self.values.get(key) is not None

    def get(self, key: str) -> object:
        """Return the value as it is, None for an absent one."""
        return self.values.get(key)

    def present(self, keys: Sequence[str]) -> list[str]:
        """Return those of the keys that are there with a value."""
        return [key for key in keys if self.has(key)]

    def refuse(self, key: str, expected: str) -> NoReturn:
        """Refuse a key's value."""
        msg = f"{self.name}: {key} is {shown(self.values.get(key))}; expected {expected}"
        raise FormatError(msg)

    def whole(self, key: str, least: int = 0, most: int | None = None) -> int | None:
        """Return a whole number, None for an absent one.

        Raises:
            FormatError: it is no whole number, or below `least` or above `most`.
        """
        value = self.values.get(key)
        if value is None:
            return None
        if type(value) is not int or value < least or (most is not None and value > most):
            bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
            self.refuse(key, f"a whole number {bounds}")
        return value

    def flag(self, key: str) -> bool | None:
        """Return true or false, None for an absent one."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, "true or false")
        return value

    def indices(self, key: str, count: int) -> list[int]:
        """Return a list of different layer indices below `count`."""
        value = self.values.get(key)
        items = value if isinstance(value, (list, tuple)) and len(value) <= count else [None]
        found = [item for item in items if type(item) is int and 0 <= item < count]
        if len(found) != len(items) or len(set(found)) != len(found):
            self.refuse(key, f"different layer indices from 0 to {count - 1}")
        return found

    def one_of_layers(
        self, key: str, layers: int | None, least: int = 0, most: int | None = None
    ) -> int | None:
        """Return a whole number that is the same in all layers: itself, or a list of one a layer.

        Raises:
            FormatError: wrong, of another length, or different in different layers.
        """
        value = self.values.get(key)
        if not isinstance(value, (list, tuple)):
            return self.whole(key, least, most)
        if layers is None and len(value) > limits.MAX_LAYERS:
            self.refuse(key, f"at most {limits.MAX_LAYERS} numbers")
        if layers is not None and len(value) != layers:
            self.refuse(key, f"one number, or a list of {layers}, one for each layer")
        if not value or any(type(item) is not int or item < least for item in value):
            self.refuse(key, f"whole numbers of at least {least}")
        if most is not None and max(value) > most:
            self.refuse(key, f"whole numbers up to {most}")
        if len(set(value)) != 1:
            smallest, largest = min(value), max(value)
            msg = (
                f"{self.name}: {key} differs between layers, from {smallest} to {largest}; "
                "expected the same in all, as a placement has"
            )
            raise FormatError(msg)
        return int(value[0])


def shown(value: object) -> str:
    """Return a value as a message shows it, short however large it is."""
    return _SHORT.repr(value)
