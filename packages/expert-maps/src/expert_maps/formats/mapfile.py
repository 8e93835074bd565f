# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What readers of maps take and give: `Asked`, what the caller says of a file, and `MapFile`, what was found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from expert_maps import limits
from expert_maps._layers import layers_text
from expert_maps.errors import FormatError
from expert_maps.layered import AnyPlacement, from_flat
from expert_maps.placement import Placement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from expert_maps._layers import Layers
    from expert_maps.errors import Violation, ViolationGroup
    from expert_maps.formats.contradictions import Listing

Form: TypeAlias = Literal[
    "expert-maps",
    "vllm-ascend",
    "golden",
    "sglang",
    "tensorrt-llm",
    "vllm",
    "deepseek",
    "omni",
    "vllm-plugin-das",
]


class RanksUnsaidError(FormatError):
    """The file does not say how many ranks there are, and nobody else did."""


@dataclass(frozen=True)
class MapFile:
    """A map as it stands in a file, with what the file says beside it.

    Attributes:
        placement: the placement; a `LayeredPlacement` where ranks have other slots in some layers.
        form: the format.
        description: what was found, in words, such as ``SGLang map, 61 layers of 288 slots``.
        warnings: what may be meant otherwise, or was left out; a line each.
        layers: the absolute index of each row among all layers of the model; None if nobody said.
        has_dense_rows: whether the rows are all layers of a model, dense ones too, and nobody said which are MoE.
        num_hidden_layers: all layers of the model, dense ones too; None if unknown.
        model: the model's name, if the file says it.
        num_shared_experts: how many of the experts, the last, are shared ones that are mixed in.
        provenance: how the map was made, if the file says it.
    """

    placement: AnyPlacement
    form: Form
    description: str
    warnings: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    has_dense_rows: bool = False
    num_hidden_layers: int | None = None
    model: str | None = None
    num_shared_experts: int = 0
    provenance: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What the caller says of a map file, because the file may not.

    Attributes:
        num_logical_experts: E; None: as the file says, or one more than the largest id.
        ep_size: R; None: as the file says.
        layers: the absolute indices of the model's MoE layers, ``"all"``, or None if unknown.
        num_hidden_layers: all layers of the model; None if unknown.
        key: which of several maps in the file.
        ignore_digest: take a file of the project's own though it was changed after it was written.
        allow_uneven: as in `Placement`.
        allow_duplicates: as in `Placement`.
        listing: takes down all that is wrong, and reading goes on; None: the first is raised.
    """

    num_logical_experts: int | None = None
    ep_size: int | None = None
    layers: Layers | None = None
    num_hidden_layers: int | None = None
    key: str | None = None
    ignore_digest: bool = False
    allow_uneven: bool = False
    allow_duplicates: bool = False
    listing: Listing | None = None

    def contradict(self, violation: Violation, hint: str = "") -> None:
        """Take down where the file contradicts itself.

        Args:
            violation: what is found, and what was expected.
            hint: what may be done about it, for whom it is an error.

        Raises:
            FormatError: nobody takes it down.
        """
        if self.listing is None:
            raise FormatError(violation.message + hint)
        self.listing.add((violation,))

    def contradict_each(self, group: ViolationGroup) -> None:
        """Take down where a table of the file contradicts its slots; as `contradict`, but for nothing there is no error."""
        if self.listing is not None:
            self.listing.add(group)
        elif len(group):
            raise FormatError(group[0].message + (f" ({len(group)} differ)" if len(group) > 1 else ""))

    def arrange(
        self, experts: NDArray[np.int64], per_rank: NDArray[np.int64], num_experts: int | None
    ) -> AnyPlacement:
        """Make a placement of the experts of all slots.

        Args:
            experts: int64 [slots of all layers], in the order of layers, ranks and local slots.
            per_rank: int64 [L, R].
            num_experts: E; if None, one more than the largest id.

        Returns:
            A `Placement` where ranks own the same slots in every layer. Where violations are taken down, it may break
            rules, and what follows from it may be asked of `is_derivable` layers only.

        Raises:
            PlacementError: it breaks rules, and nobody takes them down.
        """
        flags = {"allow_uneven": self.allow_uneven, "allow_duplicates": self.allow_duplicates}
        if self.listing is not None:
            return self.listing.arrange(experts, per_rank, num_experts, **flags)
        return from_flat(experts, per_rank, num_logical_experts=num_experts, **flags)

    def check_ranks(self, found: int) -> None:
        """Refuse a number of ranks that is not the file's."""
        if self.ep_size is not None and self.ep_size != found:
            msg = f"the file has {found} ranks; expected {self.ep_size}, as ep_size (--ep-size) says"
            raise FormatError(msg)

    def name_rows(self, num_rows: int, found: Sequence[int] | None = None) -> tuple[int, ...] | None:
        """Return the absolute layer of each row, where rows are MoE layers only.

        Args:
            num_rows: rows of the file.
            found: the absolute layers by the file itself, if it says them.

        Raises:
            FormatError: the caller names another number of layers, or others than the file.
        """
        if self.layers is None:
            return None if found is None else tuple(found)
        layers = tuple(range(num_rows)) if self.layers == "all" else self.layers
        if len(layers) != num_rows:
            msg = (
                f"the file has {num_rows} rows, one for each MoE layer; expected {len(layers)}, for the layers "
                f"{layers_text(layers)}"
            )
            raise FormatError(msg)
        if found is not None and tuple(found) != layers:
            msg = f"the file is for the layers {layers_text(found)}; expected {layers_text(layers)}, as asked"
            raise FormatError(msg)
        return layers

    def place(self, table: NDArray[np.int64], num_experts: int | None = None) -> AnyPlacement:
        """Make a placement of a flat table, whose file does not say how many ranks there are.

        Args:
            table: int64 [L, P]; P / R consecutive slots belong to each rank.
            num_experts: E, if the file says it.

        Raises:
            FormatError: the number of ranks is not given or does not divide the slots, or E is another than asked.
            PlacementError: the slots are no valid placement.
        """
        slots = table.shape[1]
        if self.ep_size is None:
            msg = f"the file does not say how many ranks share its {slots} slots; give ep_size (--ep-size)"
            raise RanksUnsaidError(msg)
        if not 1 <= self.ep_size <= limits.MAX_RANKS or slots % self.ep_size:
            msg = f"{slots} slots of a layer do not divide by ep_size {self.ep_size} (--ep-size)"
            raise FormatError(msg)
        wanted = self.num_logical_experts
        if num_experts is not None and wanted is not None and wanted != num_experts:
            msg = f"the file has {num_experts} experts; expected {wanted}, as asked"
            raise FormatError(msg)
        per_rank = np.full((len(table), self.ep_size), slots // self.ep_size)
        return self.arrange(table.ravel(), per_rank, wanted if num_experts is None else num_experts)


def choose_rows(
    layers: Layers, ids: Sequence[int], what: str
) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """Choose the rows of the MoE layers, where the file says the absolute layer of each row.

    Args:
        layers: the absolute layers asked for, or ``"all"``.
        ids: the absolute layer of each row.
        what: the format, for the message.

    Returns:
        The rows, the layers they are for, and the layers that are left out.

    Raises:
        FormatError: a layer is not in the file.
    """
    row_of = {layer: row for row, layer in enumerate(ids)}
    wanted = tuple(ids) if layers == "all" else layers
    absent = [layer for layer in wanted if layer not in row_of]
    if absent:
        msg = f"{what} has no layers {layers_text(absent)}; it has {layers_text(ids)}"
        raise FormatError(msg)
    chosen = set(wanted)
    return [row_of[layer] for layer in wanted], wanted, tuple(layer for layer in ids if layer not in chosen)


def counts_text(placement: AnyPlacement) -> str:
    """Say the counts of a placement in words."""
    if isinstance(placement, Placement):
        slots = f"{placement.num_physical_experts} slots"
    else:
        found = placement.num_physical_experts
        slots = f"{found.min()} … {found.max()} slots"
    return (
        f"{placement.num_layers} MoE layers of {slots}, {placement.num_logical_experts} experts, "
        f"{placement.ep_size} ranks"
    )


__all__ = ["AnyPlacement", "Asked", "Form", "MapFile", "choose_rows", "counts_text"]
