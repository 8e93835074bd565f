# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""An expert's projections and the types of plain numbers; and what is raised where its bytes cannot be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from expert_maps._words import counted
from expert_maps.models.values import shown

if TYPE_CHECKING:
    from expert_maps.models.values import Config

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float8": 1, "int8": 1}
"""The types of plain numbers, and their bytes."""

_DTYPE_NAMES = {
    "half": "float16",
    "float": "float32",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
}


class UntoldError(Exception):
    """The bytes cannot be told; the message says why."""


def untold(reason: str) -> NoReturn:
    """Say why the bytes cannot be told."""
    raise UntoldError(reason)


@dataclass(frozen=True)
class Shape:
    """An expert's projections.

    Attributes:
        projections: of each its outputs and inputs.
        biases: numbers beside the matrices, never quantised.
    """

    projections: tuple[tuple[int, int], ...]
    biases: int

    @property
    def numbers(self) -> int:
        """How many there are, biases included."""
        return sum(outputs * inputs for outputs, inputs in self.projections) + self.biases

    @property
    def text(self) -> str:
        """The projections in a few words."""
        outputs, inputs = self.projections[0]
        biased = " and biases" if self.biases else ""
        return f"{counted(len(self.projections), 'projection')} of {inputs} x {outputs}{biased}"


def plain_type(config: Config) -> tuple[str, int]:
    """Return the type of numbers that are not quantised, and its bytes.

    Raises:
        UntoldError: the configuration does not say it.
    """
    value = next((config.get(key) for key in ("dtype", "torch_dtype") if config.has(key)), None)
    if value is None:
        untold("neither dtype nor torch_dtype says how numbers are stored")
    name = value.removeprefix("torch.") if isinstance(value, str) else ""
    name = _DTYPE_NAMES.get(name, name)
    if name not in ("bfloat16", "float16", "float32"):
        untold(f"dtype is {shown(value)}, which is not known here")
    return name, DTYPE_BYTES[name]
