# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps check`: is this map a valid placement, and the one that was meant?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps import limits
from expert_maps.cli.mapping import FormOptions
from expert_maps.cli.model import MODEL_HELP
from expert_maps.cli.options import JsonOption, MapArgument, refuse_two_stdins
from expert_maps.cli.usage import CHECK_FAILED

if TYPE_CHECKING:
    from expert_maps.cli.checking import Checked, Expected
    from expert_maps.errors import Violations

_MOST_IN_JSON = 100_000


@dataclass(frozen=True)
class CountOptions:
    """What the map ought to be; None where nothing is expected. The fields are the options' names."""

    experts: Annotated[int | None, typer.Option("--experts", help="Expect this many experts.")] = None
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="N|LIST",
            help="Expect this many MoE layers; or those of these numbers in the model, like 3-60, which chooses them "
            "where a map has dense ones too (SGLang).",
        ),
    ] = None
    ep_size: Annotated[
        int | None,
        typer.Option(
            "--ep-size", help="Expect this many ranks; what has a map of a format that does not say them."
        ),
    ] = None
    redundant: Annotated[
        int | None, typer.Option("--redundant", help="Expect this many redundant experts of a layer.")
    ] = None
    physical: Annotated[int | None, typer.Option("--physical", help="Expect this many slots of a layer.")] = (
        None
    )
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help=f"{MODEL_HELP}: expect its layers and experts.",
        ),
    ] = None

    def expected(self) -> Expected:
        """Put it together.

        Raises:
            ExpertMapsError: an option says what cannot be, or two contradict each other.
        """
        from expert_maps.cli import checking
        from expert_maps.validation import as_count

        counts = (
            ("num_logical_experts", "--experts", self.experts, 1),
            ("ep_size", "--ep-size", self.ep_size, 1),
            ("num_redundant_experts", "--redundant", self.redundant, 0),
            ("num_physical_experts", "--physical", self.physical, 1),
        )
        named = {
            name: as_count(option, value, minimum)
            for name, option, value, minimum in counts
            if value is not None
        }
        return checking.expect(named, self.layers, self.model)


def check(
    file: MapArgument,
    counts: CountOptions = CountOptions(),
    golden: Annotated[
        Path | None, typer.Option("--golden", help="Expect exactly this map: an expert map or a golden map.")
    ] = None,
    all_violations: Annotated[
        bool, typer.Option("--all", help=f"List every violation, not only the first {limits.MAX_LISTED}.")
    ] = False,
    form: FormOptions = FormOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Check a map; list every violation by layer, rank and slot.

    Exit code 0: the map is valid, and as expected. 1: it is not: an expert is missing, stands twice on a rank or is out
    of range, ranks have unequally many slots, the file contradicts itself (a count, a digest, a map that follows from the
    slots, the keys of two formats), or counts, layers or the golden map differ. 2: there is nothing to check: the file
    cannot be read as a map at all, or an option has no meaning.

    --json prints one object with the same keys in every case of 0 and 1, with the number of violations, and each of the
    first 100,000; with --all each.
    """
    from expert_maps.cli import checking
    from expert_maps.formats.mapfile import Asked

    refuse_two_stdins({"MAP": file, "--golden": golden, "--model": counts.model})
    expected = counts.expected()
    reference = None if golden is None else checking.read_golden(golden, counts.ep_size)
    checked = checking.examine(
        file,
        Asked(
            ep_size=counts.ep_size,
            key=form.key,
            allow_uneven=form.allow_uneven,
            allow_duplicates=form.allow_duplicates,
        ),
        form.source,
        expected,
    )
    violations = checking.compare(checked, expected, reference)
    _report(file, checked, violations, show_all=all_violations, json=json)
    if violations:
        raise typer.Exit(CHECK_FAILED)


def _report(file: Path, checked: Checked, violations: Violations, *, show_all: bool, json: bool) -> None:
    from expert_maps._words import counted
    from expert_maps.cli.checking import count_of, document, explain
    from expert_maps.cli.output import print_json, say

    if json:
        print_json(document(str(file), checked, violations, None if show_all else _MOST_IN_JSON))
    elif violations:
        say(f"{file}: {counted(len(violations), 'violation')}", err=True)
        shown = violations if show_all else violations[: limits.MAX_LISTED]
        say((f"  {explain(violation, checked.layers)}" for violation in shown), err=True)
        if len(shown) < len(violations):
            say(f"  … and {len(violations) - len(shown)} more; --all lists them", err=True)
    elif checked.placement is not None:
        placement = checked.placement
        say(
            f"{file}: ok, {counted(placement.num_layers, 'layer')}, {counted(placement.num_logical_experts, 'expert')}, "
            f"{count_of(placement, 'num_redundant_experts')} redundant, {counted(placement.ep_size, 'rank')}, "
            f"digest {placement.digest[:12]}",
            wrap=True,
        )
