# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What a caller says about a load file, because the file does not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from expert_maps.errors import LoadError

if TYPE_CHECKING:
    from expert_maps._layers import Layers
    from expert_maps.models import ModelCounts
    from expert_maps.placement import Placement

Files = Literal["ranks", "steps"]


@dataclass(frozen=True)
class ModelShape:
    """What a load is compared with.

    Attributes:
        name: the model.
        num_layers: L, its MoE layers.
        num_experts: E.
        moe_layers: their absolute indices, or None where only their number is known.
        num_hidden_layers: all layers, or None.
    """

    name: str
    num_layers: int
    num_experts: int
    moe_layers: tuple[int, ...] | None
    num_hidden_layers: int | None

    @classmethod
    def of(cls, counts: ModelCounts) -> ModelShape:
        """Take over what is known of a model."""
        return cls(
            counts.name,
            counts.num_layers,
            counts.num_experts,
            counts.moe_layers or None,
            counts.num_hidden_layers or None,
        )


@dataclass(frozen=True)
class LoadOptions:
    """What was said; None where nothing was.

    Attributes:
        key: the array in a file of several, or the key in a JSON object.
        layers: the rows to take, by the file's own numbers where it has them, else by position; or ``"all"``.
        steps: the steps to take; given at all, it says that the first of three axes is steps.
        files: what several files are.
        placement: the placement whose slots the counts belong to.
        model: the model that was served.
        num_experts: E.
        num_layers: L.
        window: tokens that are counted together, of a trace of routed experts.
    """

    key: str | None = None
    layers: Layers | None = None
    steps: slice | None = None
    files: Files | None = None
    placement: Placement | None = None
    model: ModelShape | None = None
    num_experts: int | None = None
    num_layers: int | None = None
    window: int | None = None

    @property
    def known_experts(self) -> int | None:
        """E, if it was said."""
        return self.num_experts or (self.model.num_experts if self.model else None)

    @property
    def known_layers(self) -> int | None:
        """L, if it was said."""
        return self.num_layers or (self.model.num_layers if self.model else None)


def layers_if_untold(layers: Layers | None, num_layers: int | None) -> int | Literal["all"] | None:
    """Return how many MoE layers the caller says there are, for a model of which that cannot be told.

    Args:
        layers: the rows to take.
        num_layers: L, if it was said.
    """
    if num_layers is not None or layers is None:
        return num_layers
    return "all" if layers == "all" else len(layers)


def parse_steps(text: str | range | slice) -> slice:
    """Return the steps to take from ``all``, ``10-99``, ``10-`` or ``5``, or a range.

    Raises:
        LoadError: anything else.
    """
    if isinstance(text, slice):
        return text
    if isinstance(text, range):
        return slice(text.start, text.stop, text.step)
    if text.strip().lower() == "all":
        return slice(0, None)
    match = re.fullmatch(r"\s*(\d{1,12})\s*(?:([-–])\s*(\d{1,12})?\s*)?", text)
    first = int(match[1]) if match else 0
    last = None if match and match[2] and not match[3] else int(match[3] or match[1]) if match else -1
    if last is not None and last < first:
        msg = f"steps are {text!r}; expected all, a step, or a range like 10-99 or 10-"
        raise LoadError(msg)
    return slice(first, None if last is None else last + 1)
