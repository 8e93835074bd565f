# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `check` looks at: the file itself, the counts and layers that are expected, and the golden map."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._layers import LayerNames, as_layers, layers_text
from expert_maps.cli.mapping import FORMS, MapOptions, read_any_map
from expert_maps.cli.model import read_model
from expert_maps.cli.options import as_choice
from expert_maps.cli.output import warn
from expert_maps.cli.reading import as_input
from expert_maps.errors import FormatError, Violation, Violations
from expert_maps.files import describe
from expert_maps.formats.examining import examine_map
from expert_maps.formats.mapfile import RanksUnsaidError
from expert_maps.layered import layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from expert_maps._layers import Layers
    from expert_maps.errors import ViolationGroup
    from expert_maps.files import AnyPath
    from expert_maps.formats.examining import Examined
    from expert_maps.formats.mapfile import Asked
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement

JSON_VERSION = 1
"""Of what `--json` prints; it is raised when a key goes or changes its meaning."""

_COUNTS = ("num_layers", "num_logical_experts", "num_physical_experts", "num_redundant_experts", "ep_size")


@dataclass(frozen=True)
class Expected:
    """What the map ought to be.

    Attributes:
        counts: by the names of a placement's properties.
        layers: the model's MoE layers; None if nobody said which they are.
        num_hidden_layers: all layers of the model; None if unknown.
        num_experts: of the model; None if unknown.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    layers: Layers | None = None
    num_hidden_layers: int | None = None
    num_experts: int | None = None


@dataclass(frozen=True)
class Checked:
    """What was found.

    Attributes:
        placement: the slots; None where the file does not say which rank has which. They may break rules.
        violations: what is wrong with the file by itself.
        is_valid: whether the slots break no rule.
        layers: the absolute index of each row among all layers of the model; None if unknown.
    """

    placement: AnyPlacement | None
    violations: Violations
    is_valid: bool
    layers: tuple[int, ...] | None


def expect(counts: Mapping[str, int], layers: str | None, model: str | None) -> Expected:
    """Put together what the options say.

    Args:
        counts: those that an option names.
        layers: `--layers`: how many MoE layers, or which.
        model: `--model`.

    Raises:
        ExpertMapsError: an option says what cannot be, or two contradict each other.
    """
    number, listed = _number_or_list(layers)
    named = {} if number is None else {"num_layers": number}
    if model is None:
        return Expected({**counts, **named}, listed)
    said = read_model(model, number, if_untold=listed)
    of_model = {"num_logical_experts": said.num_experts, "num_layers": said.num_layers}
    # Where no key of the model says which layers are MoE, they are a guess.
    known = said.moe_layers if said.moe_layers and not said.is_assumed else None
    if isinstance(listed, tuple) and known is not None and listed != known:
        msg = f"--layers is {layers}; --model {said.name} has other MoE layers: leave one of them out"
        raise FormatError(msg)
    return Expected(
        {**of_model, **counts, **named}, listed or known, said.num_hidden_layers or None, said.num_experts
    )


def _number_or_list(text: str | None) -> tuple[int | None, Layers | None]:
    from expert_maps.validation import as_count

    if text is None:
        return None, None
    number = text.strip()
    if number.isascii() and number.isdigit():
        return as_count("--layers", int(number) if len(number) < len(str(2**63)) else 2**63, 1), None
    return None, as_layers(text)


def read_golden(golden: Path, ep_size: int | None) -> AnyPlacement:
    """Read the map that is expected.

    Raises:
        ExpertMapsError: it cannot be read, or contradicts itself.
    """
    either_way = MapOptions(allow_uneven=True, allow_duplicates=True)
    source = as_input(golden)
    try:
        return read_any_map(source, either_way).placement
    except RanksUnsaidError:
        return read_any_map(source, replace(either_way, ep_size=ep_size)).placement


def examine(file: Path, said: Asked, form: str | None, expected: Expected) -> Checked:
    """Read a map and list what is wrong with it; what it may mean otherwise goes to standard error.

    Raises:
        FormatError: it cannot be read as a map.
    """
    if form is not None:
        as_choice("--from", form, FORMS)
    source = as_input(file)
    examined = _examine(source, said, form, expected)
    found = examined.found
    if found is None:
        return Checked(None, examined.violations, is_valid=False, layers=None)
    for warning in found.warnings:
        warn(f"{describe(source)}: {warning}")
    layers = found.layers
    if layers is None and isinstance(expected.layers, tuple):
        layers = expected.layers if len(expected.layers) == found.placement.num_layers else None
    return Checked(found.placement, examined.violations, not examined.breaks_rules, layers)


def _examine(source: AnyPath, said: Asked, form: str | None, expected: Expected) -> Examined:
    """Read a map; ranks and layers are told to the reader only where it asks for them: elsewhere they are checked."""
    bare = replace(said, ep_size=None)
    try:
        return examine_map(source, bare, form)
    except RanksUnsaidError:
        if said.ep_size is None:
            raise
    examined = examine_map(source, said, form)
    found = examined.found
    if expected.layers is None or found is None:
        return examined
    if found.form == "tensorrt-llm" and (
        expected.layers == "all" or not set(expected.layers) < set(found.layers or ())
    ):
        return examined
    if found.form not in {"sglang", "tensorrt-llm"}:
        return examined
    # The rows of dense and draft layers are no part of the map.
    chosen = replace(
        said,
        layers=expected.layers,
        num_hidden_layers=expected.num_hidden_layers,
        num_logical_experts=expected.num_experts,
    )
    return examine_map(source, chosen, form)


def compare(checked: Checked, expected: Expected, golden: AnyPlacement | None) -> Violations:
    """Return all that is wrong: with the file itself, with what is expected of it, and beside the golden map."""
    groups: list[ViolationGroup] = [checked.violations]
    placement = checked.placement
    if placement is not None:
        groups += [
            (_count(name, count_of(placement, name), count),)
            for name, count in expected.counts.items()
            if count_of(placement, name) != count
        ]
        groups += [(violation,) for violation in _compare_layers(placement, checked.layers, expected)]
        if golden is not None:
            groups += _compare_slots(placement, golden)
    return Violations(groups)


def _count(name: str, found: int | str, expected: int | str) -> Violation:
    return Violation("count", f"{name} is {found}; expected {expected}", found=found, expected=expected)


def _compare_layers(
    placement: AnyPlacement, layers: tuple[int, ...] | None, expected: Expected
) -> list[Violation]:
    if not isinstance(expected.layers, tuple):
        return []
    if len(expected.layers) != placement.num_layers:
        if "num_layers" in expected.counts:  # said already
            return []
        return [_count("num_layers", placement.num_layers, len(expected.layers))]
    if layers in {None, expected.layers}:
        return []
    return [_count("layers", layers_text(layers or ()), layers_text(expected.layers))]


def _compare_slots(placement: AnyPlacement, golden: AnyPlacement) -> list[ViolationGroup]:
    for name in ("num_layers", "num_logical_experts", "ep_size", "num_physical_experts"):
        found, expected = count_of(placement, name), count_of(golden, name)
        if found != expected:
            text = f"{name} is {found}; expected {expected} (golden)"
            return [(Violation("golden", text, found=found, expected=expected),)]
    if not np.array_equal(placement.slots_per_rank, golden.slots_per_rank):
        return [(Violation("golden", "slots_per_rank differs from the golden map's"),)]
    layers = enumerate(zip(layers_of(placement), layers_of(golden), strict=True))
    return [_OtherSlots(layer, one, other) for layer, (one, other) in layers]


class _OtherSlots:
    """The slots of a layer that hold another expert than in the golden map."""

    def __init__(self, layer: int, one: Placement, other: Placement) -> None:
        self.layer, self.one, self.other = layer, one, other
        self.which = np.flatnonzero(one.physical_to_logical != other.physical_to_logical)

    def __len__(self) -> int:
        return len(self.which)

    def __getitem__(self, index: int, /) -> Violation:
        physical = int(self.which[index])
        rank, slot = int(self.one.slot_rank[physical]), int(self.one.slot_index[physical])
        expert = int(self.one.physical_to_logical[0, physical])
        expected = int(self.other.physical_to_logical[0, physical])
        text = f"layer {self.layer}, rank {rank}, slot {slot}: expert {expert}; expected {expected} (golden)"
        return Violation("golden", text, self.layer, rank, slot, expert, expert, expected)


def count_of(placement: AnyPlacement, name: str) -> int | str:
    """Return a count; as a range where it differs by layer."""
    value = getattr(placement, name)
    if isinstance(value, int):
        return value
    least, most = int(value.min()), int(value.max())
    return least if least == most else f"{least}…{most}"


def explain(violation: Violation, layers: tuple[int, ...] | None) -> str:
    """Return the message, with the model's number of the layer where it is known."""
    if layers is None or violation.layer is None or violation.layer >= len(layers):
        return violation.message
    named = LayerNames(layers).one(violation.layer)
    return re.sub(rf"\blayer {violation.layer}\b", lambda _: named, violation.message, count=1)


def document(file: str, checked: Checked, violations: Violations, most: int | None) -> dict[str, object]:
    """Return what `--json` prints; counts and digest are null where the slots are no valid placement."""
    placement = checked.placement if checked.is_valid else None
    return {
        "version": JSON_VERSION,
        "file": file,
        "ok": not violations,
        "num_violations": len(violations),
        "violations": [violation.to_dict() for violation in violations[:most]],
        "kinds": {str(kind): count for kind, count in violations.count_kinds().items()},
        "counts": placement and {name: _listed(getattr(placement, name)) for name in _COUNTS},
        "layers": None if checked.layers is None else list(checked.layers),
        "digest": placement and placement.digest,
    }


def _listed(value: int | NDArray[np.int32]) -> int | list[int]:
    """Return a count for JSON: one a layer where it differs by layer."""
    return value if isinstance(value, int) else value.tolist()
