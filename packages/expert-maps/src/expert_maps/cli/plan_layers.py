# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan --redundancy per-layer`: how many slots each layer has, and what that is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expert_maps.cli.work import work

if TYPE_CHECKING:
    from expert_maps._layers import LayerNames
    from expert_maps.cli.loading import Loaded, LoadOptions
    from expert_maps.cli.planner_options import PlanOptions
    from expert_maps.cli.writing import Output
    from expert_maps.layered import AnyPlacement
    from expert_maps.layered_placement import LayeredPlacement
    from expert_maps.per_layer import PerLayerPlan
    from expert_maps.placement import Placement


@dataclass(frozen=True)
class LayersAsked:
    """What `plan --redundancy per-layer` is asked for.

    Attributes:
        loaded: the load.
        said: how it was read.
        target: where the map goes.
        names: how layers are named.
        ep_size: R.
        asked: the planner's options.
    """

    loaded: Loaded
    said: LoadOptions
    target: Output
    names: LayerNames
    ep_size: int
    asked: PlanOptions

    def run(self, *, table: bool, json: bool) -> None:
        """Plan, write the map and print what it is worth.

        Raises:
            ExpertMapsError: there is no such plan, or it cannot be written.
        """
        from expert_maps.cli.output import print_json, say
        from expert_maps.cli.plan_report import title_of
        from expert_maps.cli.planned import map_text
        from expert_maps.cli.sizing import slots_or_proposal
        from expert_maps.per_layer import plan_per_layer

        trace, asked = self.loaded.load, self.asked
        # What equal slots would take says the budget.
        slots, proposed = slots_or_proposal(
            asked.redundant, asked.physical, trace.num_experts, self.ep_size, None, allow_uneven=True
        )
        plan = work(
            "planning layers",
            lambda progress: plan_per_layer(
                trace,
                ep_size=self.ep_size,
                num_physical_experts=slots,
                num_groups=asked.groups,
                num_nodes=asked.nodes,
                tolerance=asked.tolerance,
                progress=progress,
            ),
        )
        made = {"command": "plan", "policy": "balanced", "redundancy": "per-layer"}
        # Where all layers have as many slots the map is one that every server reads.
        placement = _ordinary(plan.placement) if plan.is_equal else plan.placement
        self.target.write(map_text(placement, self.loaded, self.said, self.names, made))
        err = self.target.is_stdout
        if json:
            print_json(_document(plan, placement, self.names, self.target), err=err)
            return
        say(title_of(plan.placement, trace, "balanced, slots per layer"), err=err, wrap=True)
        if table:
            _print_table(plan, self.names, err=err)
        lines = [] if proposed is None else [proposed]
        say([*lines, *plan.summary().splitlines(), self.target.line], err=err, wrap=True)


def _ordinary(placement: LayeredPlacement) -> Placement:
    """Return the same placement of layers that all have as many slots."""
    import numpy as np

    from expert_maps.placement import Placement

    rows = np.concatenate([layer.physical_to_logical for layer in placement.layers])
    return Placement(rows, placement.ep_size, num_logical_experts=placement.num_logical_experts)


def _document(
    plan: PerLayerPlan, written: AnyPlacement, names: LayerNames, target: Output
) -> dict[str, object]:
    return {
        "policy": "balanced",
        "redundancy": "per-layer",
        "num_layers": plan.load.num_layers,
        "layers": names.listed,
        "num_logical_experts": plan.load.num_experts,
        "ep_size": plan.placement.ep_size,
        "slots_of_a_rank": plan.slots_per_layer.tolist(),
        "num_redundant_experts": plan.placement.num_redundant_experts.tolist(),
        "budget": plan.budget,
        "enough": plan.enough,
        "equal_in_every_layer": plan.is_equal,
        "balancedness": plan.balancedness.tolist(),
        "overall_balancedness": plan.overall_balancedness,
        "max_rank_load": plan.max_rank_load.tolist(),
        "lower_bound": plan.lower_bound.tolist(),
        "cost": plan.cost,
        "cost_with_equal_slots": plan.equal_cost,
        "least_cost": plan.least_cost,
        "gap": plan.gap,
        "digest": written.digest,
        "output": target.name,
        "replaced": target.replaces,
    }


def _print_table(plan: PerLayerPlan, names: LayerNames, *, err: bool) -> None:
    from expert_maps.cli.tables import print_table
    from expert_maps.metrics import balancedness

    equal = balancedness(plan.equal, plan.load)
    columns = [*names.columns, "slots of a rank", "balancedness", "with equal slots"]
    rows = [
        [*names.cells(layer), str(slots), f"{value:.4f}", f"{same:.4f}"]
        for layer, (slots, value, same) in enumerate(
            zip(plan.slots_per_layer.tolist(), plan.balancedness.tolist(), equal.tolist(), strict=True)
        )
    ]
    last = [*names.cells(None), str(int(plan.slots_per_layer.sum())), f"{plan.overall_balancedness:.4f}", ""]
    print_table("", columns, rows, total=last, err=err)
