# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps plan`: a placement balanced for a recorded load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expert_maps.cli.aims import AimOptions, BatchOptions
from expert_maps.cli.loading import LoadOptions, LoadsArgument
from expert_maps.cli.options import EpSizeOption, refuse_two_stdins
from expert_maps.cli.planner_options import PlanOptions, ShownOptions

if TYPE_CHECKING:
    from expert_maps.cli.options import Inputs


def plan(
    loads: LoadsArgument,
    ep_size: EpSizeOption,
    asked: PlanOptions = PlanOptions(),  # noqa: B008 - frozen
    aim: AimOptions = AimOptions(),  # noqa: B008 - frozen
    of_batch: BatchOptions = BatchOptions(),  # noqa: B008 - frozen
    shown: ShownOptions = ShownOptions(),  # noqa: B008 - frozen
    said: LoadOptions = LoadOptions(),  # noqa: B008 - frozen
) -> None:
    """Plan which experts get copies and where they sit, and print balancedness before and after.

    Before is the map in use (--current), or the linear layout without redundant experts. Balancedness is mean / max
    rank load; 1 is perfect; over all layers it is the ratio of the sums, as vLLM logs it. The gap, for a load of one
    step, is how far the hottest rank is above a proved lower bound: no plan can gain more than that. A load of several
    steps is planned for the sum over steps of the hottest rank; balancedness over steps is the ratio of those sums.

    Give --redundant or --physical. Without either, the map in use says it, or the least redundancy that divides by the
    ranks is taken, and named.

    A map in use that breaks the plan's rules (an expert twice on a rank, a group on several nodes) is put right first,
    which can make a rank hotter than before; a warning says so.

    --objective activated plans for decode, where a rank waits for the weights of every slot that a batch of --batch-tokens
    needs, and not for tokens: the busiest rank is to activate as few as can be. --redundancy per-layer spends the slots of
    --redundant where they help most; servers that need as many in every layer cannot take such a map, and it says so.
    """
    from expert_maps.cli.loading import inspect_loads
    from expert_maps.cli.plan_layers import LayersAsked
    from expert_maps.cli.planned import Making
    from expert_maps.cli.plotting import check_plot
    from expert_maps.cli.writing import check_output

    inputs: Inputs = {"LOAD": loads, "--map": said.map, "--current": asked.current, "--model": said.model}
    refuse_two_stdins(inputs)
    target = check_output(shown.output, inputs, json=shown.json)
    drawn = check_plot(shown.plot, inputs)
    asked.check()
    aim.check(asked, of_batch, shown)
    loaded = inspect_loads(loads, said)
    before, names = asked.in_use(ep_size, said.experts, loaded)
    if aim.is_per_layer:
        LayersAsked(loaded, said, target, names, ep_size, asked).run(table=shown.table, json=shown.json)
        return
    plans, proposed = asked.planner(loaded, ep_size, before)
    plans = aim.aimed(plans, loaded, of_batch)
    made = Making(
        "plan",
        plans,
        loaded,
        said,
        target,
        asked.groups,
        asked.nodes,
        before,
        asked.expert_bytes,
        proposed,
        names,
        drawn,
    )
    made.run(table=shown.table, json=shown.json)
