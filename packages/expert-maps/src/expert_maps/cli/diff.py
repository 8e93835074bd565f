# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""`expert-maps diff`: what moves from one map to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.table import Table

from expert_maps import metrics
from expert_maps.cli.common import (
    AllowDuplicatesOption,
    AllowUnevenOption,
    JsonOption,
    bad_input,
    console,
    print_json,
    read_map,
)

if TYPE_CHECKING:
    from expert_maps.metrics import Moves
    from expert_maps.placement import Placement


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The map in use.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The map to change to.")],
    layer: Annotated[
        int | None, typer.Option("--layer", help="List the slots of this layer that change.")
    ] = None,
    expert_bytes: Annotated[
        int | None, typer.Option("--expert-bytes", help="Bytes of one expert's weights, to add up transfers.")
    ] = None,
    allow_uneven: AllowUnevenOption = False,
    allow_duplicates: AllowDuplicatesOption = False,
    json: JsonOption = False,
) -> None:
    """Say which slots hold another expert in B than in A, and which of them must be fetched.

    A changed slot is fetched if its expert was not on that rank before; otherwise it is copied there.
    """
    with bad_input():
        flags = {"allow_uneven": allow_uneven, "allow_duplicates": allow_duplicates}
        old, new = (read_map(path, **flags) for path in (before, after))
        moved = metrics.moves(old, new)
        size = None if expert_bytes is None else moved.bytes(expert_bytes)
        chosen = range(old.num_layers) if layer is None else [_check_layer(old, layer)]
    if json:
        print_json(
            {
                "num_layers": old.num_layers,
                "slots": moved.changed.size,
                "changed": int(moved.changed.sum()),
                "fetched": int(moved.fetched.sum()),
                "fetched_bytes": size,
                "changed_per_layer": moved.changed.sum(axis=1).tolist(),
                "moves": [move for index in chosen for move in _moves_of(old, new, moved, index)],
            }
        )
        return
    if layer is None:
        _print_layers(moved)
    else:
        _print_slots(old, new, moved, layer)
    total = int(moved.changed.sum())
    typer.echo(
        f"{total} of {moved.changed.size} slots change ({total / moved.changed.size:.1%}); "
        f"{int(moved.fetched.sum())} are fetched from another rank"
        + (f", {size:,} bytes" if size is not None else "")
    )


def _check_layer(placement: Placement, layer: int) -> int:
    placement.local_experts(layer, 0)
    return layer


def _moves_of(old: Placement, new: Placement, moved: Moves, layer: int) -> list[dict[str, int | bool]]:
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


def _print_layers(moved: Moves) -> None:
    layers = np.nonzero(moved.changed.any(axis=1))[0]
    if not layers.size:
        return
    table = Table(title="layers that change", title_justify="left")
    for title in ("layer", "changed slots", "fetched"):
        table.add_column(title, justify="right")
    for layer in layers:
        table.add_row(str(layer), str(moved.changed[layer].sum()), str(moved.fetched[layer].sum()))
    console.print(table)


def _print_slots(old: Placement, new: Placement, moved: Moves, layer: int) -> None:
    rows = _moves_of(old, new, moved, layer)
    if not rows:
        return
    table = Table(title=f"slots of layer {layer} that change", title_justify="left")
    for title in ("rank", "slot", "before", "after", "fetched"):
        table.add_column(title, justify="right")
    for row in rows:
        cells = [str(row[key]) for key in ("ep_rank", "slot", "before", "after")]
        table.add_row(*cells, "yes" if row["fetched"] else "no")
    console.print(table)
