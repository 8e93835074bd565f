# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps check`: is this map a valid placement, and the one that was meant?"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import limits
from expert_maps.cli.model import MODEL_HELP, read_model
from expert_maps.cli.options import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    JsonOption,
    MapArgument,
    refuse_two_stdins,
)
from expert_maps.cli.usage import CHECK_FAILED
from expert_maps.errors import PlacementError

if TYPE_CHECKING:
    from expert_maps.placement import Placement

# Of what --json prints; it is raised when a key goes or changes its meaning.
_JSON_VERSION = 1


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
    layers: Annotated[int | None, typer.Option("--layers", help="Expect this many MoE layers.")] = None,
    ep_size: Annotated[int | None, typer.Option("--ep-size", help="Expect this many ranks.")] = None,
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
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Check a map; list every violation by layer, rank and slot.

    Exit code 0: the map is valid, and as expected. 1: it is not: an expert is missing, stands twice on a rank or is out
    of range, ranks have unequally many slots, or counts or the golden map differ. 2: there is nothing to check: the
    file cannot be read as a map at all, or an option has no meaning.

    --json prints one object with the same keys in every case of 0 and 1, and every violation in it.
    """
    from expert_maps.cli.reading import read_map

    refuse_two_stdins(**{"MAP": file, "--golden": golden})
    expected = _expected_counts(experts, layers, ep_size, redundant, physical, model)
    reference = None if golden is None else read_map(golden, allow_uneven=True, allow_duplicates=True)
    placement, findings = _read(file, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates)
    if placement is not None:
        findings += [
            Finding("count", f"{name} is {getattr(placement, name)}; expected {count}")
            for name, count in expected.items()
            if getattr(placement, name) != count
        ]
        if reference is not None:
            findings += _differences(placement, reference)
    _report(file, placement, findings, show_all=all_violations, json=json)
    if findings:
        raise typer.Exit(CHECK_FAILED)


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


def _read(
    file: Path, *, allow_uneven: bool, allow_duplicates: bool
) -> tuple[Placement | None, list[Finding]]:
    """Return the placement, or the violations; what is no placement at all is raised as bad input."""
    from expert_maps.cli.reading import read_any

    try:
        return read_any(file, allow_uneven=allow_uneven, allow_duplicates=allow_duplicates), []
    except PlacementError as error:
        return None, [Finding(**asdict(violation)) for violation in error.violations]


def _differences(placement: Placement, golden: Placement) -> list[Finding]:
    """Name the first slot that differs from the golden map, and how many do."""
    import numpy as np

    for name in ("num_layers", "num_logical_experts", "ep_size", "num_physical_experts"):
        if getattr(placement, name) != getattr(golden, name):
            text = f"{name} is {getattr(placement, name)}; expected {getattr(golden, name)} (golden)"
            return [Finding("golden", text)]
    if not np.array_equal(placement.slots_per_rank, golden.slots_per_rank):
        return [Finding("golden", "slots_per_rank differs from the golden map's")]
    different = np.argwhere(placement.physical_to_logical != golden.physical_to_logical)
    if not different.size:
        return []
    layer, physical = (int(index) for index in different[0])
    rank, slot = int(placement.slot_rank[physical]), int(placement.slot_index[physical])
    expert = int(placement.physical_to_logical[layer, physical])
    text = (
        f"layer {layer}, rank {rank}, slot {slot}: expert {expert}; expected "
        f"{golden.physical_to_logical[layer, physical]} (golden; {len(different)} slots differ)"
    )
    return [Finding("golden", text, layer, rank, slot, expert)]


def _report(
    file: Path, placement: Placement | None, findings: list[Finding], *, show_all: bool, json: bool
) -> None:
    from expert_maps.cli.output import plural, print_json, say

    if json:
        print_json(_document(file, placement, findings))
    elif findings:
        say(f"{file}: {plural(len(findings), 'violation')}", err=True)
        shown = findings if show_all else findings[: limits.MAX_LISTED]
        say([f"  {finding.message}" for finding in shown], err=True)
        if len(shown) < len(findings):
            say(f"  … and {len(findings) - len(shown)} more; --all lists them", err=True)
    elif placement is not None:
        say(
            f"{file}: ok, {placement.num_layers} layers, {placement.num_logical_experts} experts, "
            f"{placement.num_redundant_experts} redundant, {placement.ep_size} ranks, "
            f"digest {placement.digest[:12]}",
            wrap=True,
        )


def _document(file: Path, placement: Placement | None, findings: list[Finding]) -> dict[str, object]:
    """Return what `--json` prints; what is not known of an invalid map is null."""
    names = ("num_layers", "num_logical_experts", "num_physical_experts", "num_redundant_experts", "ep_size")
    return {
        "version": _JSON_VERSION,
        "file": str(file),
        "ok": not findings,
        "num_violations": len(findings),
        "violations": [asdict(finding) for finding in findings],
        "kinds": dict(Counter(finding.kind for finding in findings)),
        "counts": None if placement is None else {name: getattr(placement, name) for name in names},
        "digest": None if placement is None else placement.digest,
    }
