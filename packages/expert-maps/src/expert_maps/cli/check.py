# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps check`: is this map a valid placement, and the one that was meant?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import limits
from expert_maps.cli.mapping import FromOption, MapKeyOption
from expert_maps.cli.model import MODEL_HELP, read_model
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    JsonOption,
    MapArgument,
    refuse_two_stdins,
)
from expert_maps.cli.reading import as_input
from expert_maps.cli.usage import CHECK_FAILED
from expert_maps.errors import PlacementError, Violations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from expert_maps.cli.mapping import MapOptions
    from expert_maps.errors import Violation
    from expert_maps.files import AnyPath
    from expert_maps.formats.mapfile import MapFile
    from expert_maps.layered import AnyPlacement
    from expert_maps.placement import Placement

# Of what --json prints; it is raised when a key goes or changes its meaning.
_JSON_VERSION = 1
_MOST_IN_JSON = 100_000


@dataclass(frozen=True)
class Finding:
    """Something that is not as it must be, or not as expected.

    Attributes:
        kind: a kind of `Violation`, ``count`` (another number than expected) or ``golden`` (another slot).
        message: one line.
        layer: where it is, or None.
        rank: as layer.
        slot: as layer.
        expert: the logical expert, or None.
    """

    kind: str
    message: str
    layer: int | None = None
    rank: int | None = None
    slot: int | None = None
    expert: int | None = None


def check(
    file: MapArgument,
    experts: Annotated[int | None, typer.Option("--experts", help="Expect this many experts.")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="N|LIST",
            help="Expect this many MoE layers; or those of these numbers in the model, like 3-60, which chooses them "
            "where a map has dense ones too (SGLang).",
        ),
    ] = None,
    ep_size: Annotated[
        int | None,
        typer.Option(
            "--ep-size", help="Expect this many ranks; what has a map of a format that does not say them."
        ),
    ] = None,
    redundant: Annotated[
        int | None, typer.Option("--redundant", help="Expect this many redundant experts of a layer.")
    ] = None,
    physical: Annotated[
        int | None, typer.Option("--physical", help="Expect this many slots of a layer.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"{MODEL_HELP}: expect its layers and experts.",
        ),
    ] = None,
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Expect exactly this map: an expert map or a golden map.")
    ] = None,
    all_violations: Annotated[
        bool, typer.Option("--all", help=f"List every violation, not only the first {limits.MAX_LISTED}.")
    ] = False,
    source: FromOption = None,
    key: MapKeyOption = None,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Check a map; list every violation by layer, rank and slot.

    Exit code 0: the map is valid, and as expected. 1: it is not: an expert is missing, stands twice on a rank or is out
    of range, ranks have unequally many slots, or counts or the golden map differ. 2: there is nothing to check: the
    file cannot be read as a map at all, or an option has no meaning.

    --json prints one object with the same keys in every case of 0 and 1, with the number of violations, and each of the
    first 100,000; with --all each.
    """
    from expert_maps.cli.mapping import MapOptions

    refuse_two_stdins({"MAP": file, "--golden": golden, "--model": model})
    counts, listed = _as_count_or_layers(layers)
    expected = _expected_counts(experts, counts, ep_size, redundant, physical, model)
    reference = None if golden is None else _reference(golden, ep_size)
    said = MapOptions(
        source,
        ep_size,
        None,
        listed,
        model,
        key,
        allow_uneven=allow_uneven,
        allow_duplicates=allow_duplicates,
    )
    placement, violations = _read(file, said)
    findings: Sequence[Finding | Violation] = violations
    if placement is not None:
        differences = [
            Finding("count", f"{name} is {_count(placement, name)}; expected {count}")
            for name, count in expected.items()
            if _count(placement, name) != count
        ]
        findings = differences + ([] if reference is None else _differences(placement, reference))
    _report(file, placement, findings, show_all=all_violations, json=json)
    if findings:
        raise typer.Exit(CHECK_FAILED)


def _reference(golden: Path, ep_size: int | None) -> AnyPlacement:
    from expert_maps.cli.mapping import MapOptions, read_any_map
    from expert_maps.formats.mapfile import RanksUnsaidError

    either_way = MapOptions(allow_uneven=True, allow_duplicates=True)
    source = as_input(golden)
    try:
        return read_any_map(source, either_way).placement
    except RanksUnsaidError:
        return read_any_map(source, replace(either_way, ep_size=ep_size)).placement


def _expected_counts(
    experts: int | None,
    layers: int | None,
    ep_size: int | None,
    redundant: int | None,
    physical: int | None,
    model: str | None,
) -> dict[str, int]:
    from expert_maps.validation import as_count

    expected: dict[str, int] = {}
    if model is not None:
        counts = read_model(model, layers)
        expected = {"num_logical_experts": counts.num_experts, "num_layers": counts.num_layers}
    for name, option, value, minimum in (
        ("num_logical_experts", "--experts", experts, 1),
        ("num_layers", "--layers", layers, 1),
        ("ep_size", "--ep-size", ep_size, 1),
        ("num_redundant_experts", "--redundant", redundant, 0),
        ("num_physical_experts", "--physical", physical, 1),
    ):
        if value is not None:
            expected[name] = as_count(option, value, minimum)
    return expected


def _as_count_or_layers(text: str | None) -> tuple[int | None, str | None]:
    """Return what `--layers` says: how many, or, where it is a list, which."""
    if text is not None and text.strip().isdecimal():
        return int(text) if len(text) < len(str(2**63)) else 2**63, None
    return None, text


def _read(file: Path, said: MapOptions) -> tuple[AnyPlacement | None, Sequence[Violation]]:
    """Return the placement, or the violations; what is no placement at all is raised as bad input."""
    from expert_maps.cli.output import warn
    from expert_maps.files import describe
    from expert_maps.layered import LayeredPlacement

    source = as_input(file)
    try:
        found = _find(source, said)
    except PlacementError as error:
        return None, error.violations
    for warning in found.warnings:
        warn(f"{describe(source)}: {warning}")
    placement = found.placement
    if isinstance(placement, LayeredPlacement) and not said.allow_uneven:
        return None, placement.differing_layers()
    return placement, ()


def _find(source: AnyPath, said: MapOptions) -> MapFile:
    """Read a map; ranks and layers are told to the reader only where it asks for them: elsewhere they are checked.

    Raises:
        FormatError: it cannot be read as a map.
        PlacementError: it is no valid placement.
    """
    from dataclasses import replace

    from expert_maps.cli.mapping import find_map
    from expert_maps.formats.mapfile import RanksUnsaidError

    bare = replace(said, ep_size=None, layers=None, model=None)
    chooses = said.layers is not None or said.model is not None
    try:
        return find_map(source, bare)
    except RanksUnsaidError:
        if said.ep_size is None:
            raise
    try:
        found = find_map(source, replace(bare, ep_size=said.ep_size))
    except PlacementError:
        # A row of a dense layer is no placement, so the rows that are meant come first.
        if not chooses:
            raise
        return find_map(source, said)
    return find_map(source, said) if found.has_dense_rows and chooses else found


def _count(placement: AnyPlacement, name: str) -> int | str:
    """Return a count; as a range where it differs by layer."""
    value = getattr(placement, name)
    if isinstance(value, int):
        return value
    least, most = int(value.min()), int(value.max())
    return least if least == most else f"{least}…{most}"


def _differences(placement: AnyPlacement, golden: AnyPlacement) -> list[Finding]:
    """Name the first slot that differs from the golden map, and how many do."""
    import numpy as np

    from expert_maps.layered import layers_of

    for name in ("num_layers", "num_logical_experts", "ep_size", "num_physical_experts"):
        found, expected = _count(placement, name), _count(golden, name)
        if found != expected:
            return [Finding("golden", f"{name} is {found}; expected {expected} (golden)")]
    if not np.array_equal(placement.slots_per_rank, golden.slots_per_rank):
        return [Finding("golden", "slots_per_rank differs from the golden map's")]
    first: tuple[int, int, Placement, Placement] | None = None
    count = 0
    for layer, (one, other) in enumerate(zip(layers_of(placement), layers_of(golden), strict=True)):
        different = np.flatnonzero(one.physical_to_logical != other.physical_to_logical)
        count += len(different)
        if len(different) and first is None:
            first = (layer, int(different[0]), one, other)
    if first is None:
        return []
    layer, physical, one, other = first
    rank, slot = int(one.slot_rank[physical]), int(one.slot_index[physical])
    expert = int(one.physical_to_logical[0, physical])
    text = (
        f"layer {layer}, rank {rank}, slot {slot}: expert {expert}; expected "
        f"{other.physical_to_logical[0, physical]} (golden; {count} slots differ)"
    )
    return [Finding("golden", text, layer, rank, slot, expert)]


def _report(
    file: Path,
    placement: AnyPlacement | None,
    findings: Sequence[Finding | Violation],
    *,
    show_all: bool,
    json: bool,
) -> None:
    from expert_maps.cli.output import plural, print_json, say

    if json:
        print_json(_document(file, placement, findings, None if show_all else _MOST_IN_JSON))
    elif findings:
        say(f"{file}: {plural(len(findings), 'violation')}", err=True)
        shown = findings if show_all else findings[: limits.MAX_LISTED]
        say((f"  {finding.message}" for finding in shown), err=True)
        if len(shown) < len(findings):
            say(f"  … and {len(findings) - len(shown)} more; --all lists them", err=True)
    elif placement is not None:
        say(
            f"{file}: ok, {placement.num_layers} layers, {placement.num_logical_experts} experts, "
            f"{_count(placement, 'num_redundant_experts')} redundant, {placement.ep_size} ranks, "
            f"digest {placement.digest[:12]}",
            wrap=True,
        )


def _document(
    file: Path, placement: AnyPlacement | None, findings: Sequence[Finding | Violation], most: int | None
) -> dict[str, object]:
    """Return what `--json` prints; what is not known of an invalid map is null."""
    names = ("num_layers", "num_logical_experts", "num_physical_experts", "num_redundant_experts", "ep_size")
    return {
        "version": _JSON_VERSION,
        "file": str(file),
        "ok": not findings,
        "num_violations": len(findings),
        "violations": [asdict(finding) for finding in findings[:most]],
        "kinds": _kinds(findings),
        "counts": None if placement is None else {name: _listed(getattr(placement, name)) for name in names},
        "digest": None if placement is None else placement.digest,
    }


def _kinds(findings: Sequence[Finding | Violation]) -> Mapping[str, int]:
    if isinstance(findings, Violations):  # perhaps millions
        return {str(kind): count for kind, count in findings.count_kinds().items()}
    return Counter(finding.kind for finding in findings)


def _listed(value: int | NDArray[np.int32]) -> int | list[int]:
    """Return a count for JSON: one a layer where it differs by layer."""
    return value if isinstance(value, int) else value.tolist()
