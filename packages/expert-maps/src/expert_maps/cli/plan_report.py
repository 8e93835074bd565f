# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""What `plan` and `rescale` print of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from expert_maps._layers import UNNUMBERED, LayerNames
from expert_maps._words import counted
from expert_maps.cli.activation_report import activation_document, activation_lines
from expert_maps.cli.output import as_size, print_json, say, warn
from expert_maps.cli.tables import print_table
from expert_maps.evaluate import Evaluation, evaluate
from expert_maps.layouts import generate_placement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from expert_maps.cli.writing import Output
    from expert_maps.layered import AnyPlacement
    from expert_maps.load import ExpertLoad
    from expert_maps.metrics import Moves
    from expert_maps.placement import Placement
    from expert_maps.planning import PlanResult

_WORST = 4


def linear_layout(trace: ExpertLoad, ep_size: int) -> Placement:
    """Return the layout without redundant experts, which a plan is compared with where none is in use."""
    return generate_placement(
        "linear", num_experts=trace.num_experts, ep_size=ep_size, num_layers=trace.num_layers
    )


@dataclass(frozen=True)
class PlanReport:
    """A plan beside the placement before it.

    Attributes:
        result: the plan.
        trace: what was planned for.
        current: the map in use, where it is on as many ranks as the plan; None: the linear layout is before.
        output: where the map was written.
        expert_bytes: bytes of an expert, to add up what is moved; None if unknown.
        proposed: why there are so many slots, where nobody said how many.
        ungrouped: overall balancedness of a plan without groups and nodes; None where there are none.
        names: how layers are named.
        bytes_unknown: why an expert's bytes are not known, where a model was said to know them by.
    """

    result: PlanResult
    trace: ExpertLoad
    current: Placement | None
    output: Output
    expert_bytes: int | None = None
    proposed: str | None = None
    ungrouped: float | None = None
    names: LayerNames = UNNUMBERED
    bytes_unknown: str = ""

    @cached_property
    def before(self) -> Evaluation:
        """The placement that the plan is compared with."""
        return evaluate(self.current or linear_layout(self.trace, self.result.placement.ep_size), self.trace)

    @cached_property
    def after(self) -> Evaluation:
        """The plan."""
        return evaluate(self.result.placement, self.trace)

    @cached_property
    def moved_bytes(self) -> int | None:
        """Bytes that are fetched from other ranks; None where an expert's are unknown, or nothing is moved from."""
        moves = self.result.moves
        return None if self.expert_bytes is None or moves is None else moves.bytes(self.expert_bytes)

    @property
    def _shows_gap(self) -> bool:
        # With several steps it is not the sum that is planned for, and its gap would mislead.
        is_by_tokens = self.result.policy == "balanced" and self.result.activation is None
        return is_by_tokens and self.trace.num_steps == 1

    def warn_of_mended(self) -> None:
        """Say where the map in use breaks a rule that the plan keeps, for which a rank may become hotter."""
        layers = np.nonzero(self.result.mended)[0]
        if not layers.size:
            return
        text = (
            f"the map in use breaks a rule that the plan keeps (no expert twice on a rank, groups on nodes) in "
            f"{layers.size} of {counted(self.result.placement.num_layers, 'layer')}, the first of them {self.names.one(int(layers[0]))}; they are "
            "put right"
        )
        if self.current is not None:
            was = self.before.rank_load.max(axis=1)
            hotter = layers[(self.result.max_rank_load > was * (1 + 1e-9))[layers]]
            text += f", and the hottest rank carries more than before in {hotter.size} of them"
        warn(text)

    def print(self, *, table: bool, json: bool) -> None:
        """Print a summary, with a table of all layers if asked; or one JSON object."""
        err = self.output.is_stdout
        if json:
            print_json(self._document(), err=err)
            return
        say(title_of(self.result.placement, self.trace, self.result.policy), err=err, wrap=True)
        if table:
            self._print_table(err=err)
        say(self._lines(), err=err, wrap=True)

    def _lines(self) -> list[str]:
        result, before, after = self.result, self.before, self.after
        was, now = before.overall_balancedness, after.overall_balancedness
        origin = "the linear layout without redundant experts" if self.current is None else "the map in use"
        lines = [] if self.proposed is None else [self.proposed]
        lines += [
            f"before: {origin}",
            f"balancedness: {was:.4f} before, {now:.4f} after (1 is perfect)",
        ]
        if self.trace.num_steps > 1:
            lines.append(
                f"balancedness over steps: {before.over_steps:.4f} before, {after.over_steps:.4f} after"
            )
        lines.append(f"hottest rank / mean: {1 / was:.3f} before, {1 / now:.3f} after")
        if result.activation is not None:
            lines += activation_lines(result.activation, self.before.placement, self.trace)
        if self._shows_gap:
            lines.append(f"gap to the proved lower bound: {self._overall_gap:.3%}")
        if self.ungrouped is not None:
            lines.append(
                f"groups on nodes: balancedness {now:.4f}; {self.ungrouped:.4f} without --groups and --nodes"
            )
        lines += worst_layers(after.balancedness, self.names)
        copies = result.placement.replica_count
        layer, expert = (int(index) for index in np.unravel_index(int(copies.argmax()), copies.shape))
        if copies[layer, expert] > 1:
            lines.append(
                f"most copies: {copies[layer, expert]}, of expert {expert} in {self.names.one(layer)}"
            )
        if result.moves is not None:
            lines.append(moved_line(result.moves, self.moved_bytes))
            if self.bytes_unknown:
                lines.append(
                    f"bytes that are fetched are unknown ({self.bytes_unknown}): give --expert-bytes"
                )
        return [*lines, self.output.line]

    @property
    def _overall_gap(self) -> float:
        bound = float(self.result.lower_bound.sum())
        return max(float(self.result.max_rank_load.sum()) / bound - 1, 0.0) if bound > 0 else 0.0

    def _print_table(self, *, err: bool) -> None:
        """Print a line for each layer, and what holds for all of them."""
        result, moves = self.result, self.result.moves
        columns = [*self.names.columns, "before", "after", "max/mean before", "max/mean after"]
        columns += ["gap"] * self._shows_gap + ["most copies"] + ["moved slots"] * (moves is not None)
        copies = result.placement.replica_count.max(axis=1)

        def cells(layer: int | None, was: float, now: float, gap: float, most: int, moved: int) -> list[str]:
            row = [*self.names.cells(layer), f"{was:.4f}", f"{now:.4f}", f"{1 / was:.3f}", f"{1 / now:.3f}"]
            row += [f"{gap:.3%}"] * self._shows_gap + [str(most)]
            return [*row, str(moved)] if moves is not None else row

        changed = np.zeros(len(copies), dtype=int) if moves is None else moves.changed.sum(axis=1)
        each = zip(
            self.before.balancedness, self.after.balancedness, result.gap, copies, changed, strict=True
        )
        rows = [cells(layer, *values) for layer, values in enumerate(each)]
        total = cells(
            None,
            self.before.overall_balancedness,
            self.after.overall_balancedness,
            self._overall_gap,
            int(copies.max()),
            int(changed.sum()),
        )
        print_table("", columns, rows, total=total, err=err)

    def _document(self) -> dict[str, object]:
        """Return what `--json` prints: plain numbers and lists, one entry a layer."""
        result, placement = self.result, self.result.placement
        document: dict[str, object] = {
            "policy": result.policy,
            "num_layers": placement.num_layers,
            "layers": self.names.listed,
            "num_logical_experts": placement.num_logical_experts,
            "num_physical_experts": placement.num_physical_experts,
            "num_redundant_experts": placement.num_redundant_experts,
            "redundancy_proposed": self.proposed is not None,
            "ep_size": placement.ep_size,
            "balancedness_before": self.before.balancedness.tolist(),
            "balancedness": self.after.balancedness.tolist(),
            "overall_balancedness_before": self.before.overall_balancedness,
            "overall_balancedness": self.after.overall_balancedness,
            "max_rank_load": result.max_rank_load.tolist(),
            "lower_bound": result.lower_bound.tolist(),
            "gap": result.gap.tolist(),
            "digest": placement.digest,
            "output": self.output.name,
            "replaced": self.output.replaces,
        }
        if self.ungrouped is not None:
            document["overall_balancedness_without_groups"] = self.ungrouped
        if self.trace.num_steps > 1:
            document["balancedness_over_steps_before"] = self.before.over_steps
            document["balancedness_over_steps"] = self.after.over_steps
        if result.activation is not None:
            document |= activation_document(result.activation)
        if result.moves is not None:
            document["mended_layers"] = np.nonzero(result.mended)[0].tolist()
            document["changed_per_layer"] = result.moves.changed.sum(axis=1).tolist()
            document["fetched_per_layer"] = result.moves.fetched.sum(axis=1).tolist()
            document["fetched_bytes"] = self.moved_bytes
        return document


def title_of(placement: AnyPlacement, trace: ExpertLoad, name: str) -> str:
    """Return the counts of a placement and its load on one line."""
    slots = "/".join(map(str, np.unique(placement.slots_per_rank).tolist()))
    redundant = "/".join(map(str, np.unique(placement.num_redundant_experts).tolist()))
    return (
        f"{name}: {counted(placement.num_logical_experts, 'expert')} + {redundant} redundant on "
        f"{counted(placement.ep_size, 'rank')} of {counted(slots, 'slot')}, {counted(placement.num_layers, 'layer')}, "
        f"{counted(trace.num_steps, 'step')} of load"
    )


def worst_layers(balancedness: NDArray[np.float64], names: LayerNames) -> list[str]:
    """Return a line with the layers of the lowest balancedness; none for a single layer."""
    if len(balancedness) == 1:
        return []
    worst = np.argsort(balancedness, kind="stable")[:_WORST]
    return [f"worst layers: {named_values([(int(row), f'{balancedness[row]:.4f}') for row in worst], names)}"]


def named_values(values: Iterable[tuple[int, str]], names: LayerNames) -> str:
    """Return layers each with a value, like ``1 (0.98), 2 (0.99)`` or ``row 1 (layer 4): 0.98, …``."""
    return ", ".join(
        f"{names.short(row)}: {value}" if names.differ else f"{row} ({value})" for row, value in values
    )


def moved_line(moves: Moves, moved_bytes: int | None) -> str:
    """Return how many slots change, and what that sends."""
    changed, fetched = moves.changed, moves.fetched
    return (
        f"{int(changed.sum())} of {counted(changed.size, 'slot')} change ({changed.mean():.1%}); "
        f"{int(fetched.sum())} are fetched from another rank"
        + (f", {as_size(moved_bytes)}" if moved_bytes is not None else "")
    )
