# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps diff`: what moves from one map to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expert_maps._layers import LayerNames
from expert_maps._words import counted
from expert_maps.cli.mapping import MapOptions
from expert_maps.cli.options import (
    ExpertBytesOption,
    JsonOption,
    TableOption,
    refuse_two_stdins,
)
from expert_maps.cli.schedule_options import ScheduleOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from expert_maps.metrics import Moves
    from expert_maps.placement import Placement


_MOST = 4


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The map in use; - for standard input.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The map to change to.")],
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="List the slots of this MoE layer that change, by row from 0."),
    ] = None,
    expert_bytes: ExpertBytesOption = None,
    table: TableOption = False,
    asked: ScheduleOptions = ScheduleOptions(),  # noqa: B008 - frozen
    said: MapOptions = MapOptions(),  # noqa: B008 - frozen
    json: JsonOption = False,
) -> None:
    """Say which slots hold another expert in B than in A, and which of them must be fetched.

    A changed slot is fetched if its expert was not on that rank before; otherwise it is copied there. Bytes are those
    that are fetched.

    With --schedule, the way from A to B as rounds in which a rank sends one expert at most and receives one at most, into
    room for one more expert on each rank; every expert is served all the time.
    """
    from expert_maps import metrics
    from expert_maps.cli.mapping import MapOfModel, alike, names_of_both, read_any_map
    from expert_maps.cli.output import print_json, say
    from expert_maps.cli.plan_report import moved_line
    from expert_maps.validation import as_index

    refuse_two_stdins({"A": before, "B": after, "--model": said.model})
    asked.check()
    of_both = MapOfModel.of(said)
    was, becomes = (read_any_map(path, of_both) for path in (before, after))
    old, new = alike(was, before), alike(becomes, after)
    names = names_of_both(was.layers, "A", becomes.layers, "B")
    moved = metrics.moves(old, new)
    if expert_bytes is None and of_both.counts is not None:
        expert_bytes = of_both.counts.expert_bytes
    size = None if expert_bytes is None else moved.bytes(expert_bytes)
    chosen = range(old.num_layers) if layer is None else [as_index("layer", layer, old.num_layers)]
    way = asked.way(old, new, expert_bytes)
    if json:
        told = _told(old, new, moved, chosen) | {"layers": names.listed, "fetched_bytes": size}
        print_json(told if way is None else told | {"schedule": way.told(chosen)})
        return
    if layer is not None:
        _print_slots(old, new, moved, layer, names)
    elif table:
        _print_layers(moved, names)
    if way is not None and (table or layer is not None):
        way.print_rounds(chosen, names)
    more = [] if way is None else way.lines()
    say([moved_line(moved, size), *_most_changed(moved, names), *more], wrap=True)


def _told(old: Placement, new: Placement, moved: Moves, layers: Iterable[int]) -> dict[str, object]:
    return {
        "num_layers": old.num_layers,
        "layers": None,
        "slots": moved.changed.size,
        "changed": int(moved.changed.sum()),
        "fetched": int(moved.fetched.sum()),
        "fetched_bytes": None,
        "changed_per_layer": moved.changed.sum(axis=1).tolist(),
        "moves": [move for index in layers for move in _moves_of(old, new, moved, index)],
    }


def _most_changed(moved: Moves, names: LayerNames) -> list[str]:
    import numpy as np

    from expert_maps.cli.plan_report import named_values

    changed = moved.changed.sum(axis=1)
    if len(changed) == 1 or not changed.any():
        return []
    most = [index for index in np.argsort(-changed, kind="stable")[:_MOST] if changed[index]]
    named = named_values([(int(layer), counted(int(changed[layer]), "slot")) for layer in most], names)
    return [f"{np.count_nonzero(changed)} of {counted(len(changed), 'layer')} change, most of all: {named}"]


def _moves_of(old: Placement, new: Placement, moved: Moves, layer: int) -> list[dict[str, int | bool]]:
    import numpy as np

    return [
        {
            "layer": layer,
            "ep_rank": int(old.slot_rank[slot]),
            "slot": int(old.slot_index[slot]),
            "before": int(old.physical_to_logical[layer, slot]),
            "after": int(new.physical_to_logical[layer, slot]),
            "fetched": bool(moved.fetched[layer, slot]),
        }
        for slot in np.nonzero(moved.changed[layer])[0]
    ]


def _print_layers(moved: Moves, names: LayerNames) -> None:
    from expert_maps.cli.tables import print_table

    changed, fetched = moved.changed.sum(axis=1), moved.fetched.sum(axis=1)
    rows = [
        [*names.cells(layer), str(count), str(fetched[layer])] for layer, count in enumerate(changed) if count
    ]
    if rows:
        total = [*names.cells(None), str(changed.sum()), str(fetched.sum())]
        print_table("layers that change", [*names.columns, "changed slots", "fetched"], rows, total=total)


def _print_slots(old: Placement, new: Placement, moved: Moves, layer: int, names: LayerNames) -> None:
    from expert_maps.cli.tables import print_table

    keys = ("ep_rank", "slot", "before", "after")
    rows = [
        [*(str(move[key]) for key in keys), "yes" if move["fetched"] else "no"]
        for move in _moves_of(old, new, moved, layer)
    ]
    if rows:
        columns = ["rank", "slot", "before", "after", "fetched"]
        print_table(f"slots of {names.one(layer)} that change", columns, rows)
