# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""How long serving waits while a layer's new placement is committed to vLLM's EPLB state, beside vLLM's own commit.

Asynchronous EPLB does it between two steps, a layer at a time.

python -m harness.bench.commits [--record FILE]
"""

from __future__ import annotations

import statistics
import timeit
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
import typer

from expert_maps import plan
from harness.record import history
from harness.record.tables import Sheet, show
from vllm_ascend_moe.backends import moving
from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.hooks import table as hooks
from vllm_ascend_moe.hooks import wrapping

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_ascend_moe.core.settings import ReplicaChoiceName

# Experts, slots, ranks: DeepSeek-V3 on 32 and on 144 ranks, Qwen3-235B on 16.
_SHAPES = ((256, 288, 32), (256, 288, 144), (128, 144, 16))
_CHOICES: tuple[ReplicaChoiceName, ...] = ("rank_offset", "local", "own_rank")
_COPIES = 1024  # of an expert, in vLLM's table


def _state(num_experts: int, num_slots: int) -> SimpleNamespace:
    """Return what vLLM's commit reads and writes."""
    return SimpleNamespace(
        model=SimpleNamespace(num_logical_experts=num_experts),
        physical_to_logical_map=torch.zeros(1, num_slots, dtype=torch.long),
        logical_to_physical_map=torch.full((1, num_experts, _COPIES), -1),
        logical_replica_count=torch.ones(1, num_experts, dtype=torch.long),
    )


def _tables(state: SimpleNamespace) -> list[torch.Tensor]:
    return [state.physical_to_logical_map, state.logical_to_physical_map, state.logical_replica_count]


def _median_us(commit: Callable[[torch.Tensor], None], rows: list[torch.Tensor]) -> float:
    row = iter(rows)
    return 1e6 * statistics.median(timeit.repeat(lambda: commit(next(row)), number=1, repeat=len(rows)))


def measure(repeats: int = 51) -> list[dict[str, object]]:
    """Check on every shape that both commit the same, then time them; a row a shape."""
    theirs = wrapping.original(hooks.COMMIT_LAYER)
    records: list[dict[str, object]] = []
    for num_experts, num_slots, ep_size in _SHAPES:
        load = np.random.default_rng(0).lognormal(sigma=1.5, size=(repeats, num_experts))
        placement = plan(load, num_physical_experts=num_slots, ep_size=ep_size).placement
        rows = [torch.from_numpy(row.astype(np.int64)) for row in placement.physical_to_logical]
        ours, own = _state(num_experts, num_slots), _state(num_experts, num_slots)

        def commit(
            row: torch.Tensor, choice: ReplicaChoiceName, state: SimpleNamespace = ours, ranks: int = ep_size
        ) -> None:
            moving.commit_layer(SlotRule(choice), state, row, ranks)

        for row in rows:
            # The first rank takes copies in turn from the first on, which is vLLM's table.
            commit(row, "rank_offset")
            theirs(own, row, 0)
            for mine, vllms in zip(_tables(ours), _tables(own), strict=True):
                torch.testing.assert_close(mine, vllms, rtol=0, atol=0)
        vllm_us = _median_us(lambda row, state=own: theirs(state, row, 0), rows)  # type: ignore[misc]
        found = {choice: _median_us(lambda row, name=choice: commit(row, name), rows) for choice in _CHOICES}  # type: ignore[misc]
        records.append(
            {
                "benchmark": f"commit of a layer: {num_experts} experts, {num_slots} slots on {ep_size} ranks",
                "vllm_median_us": round(vllm_us),
                **{f"{choice}_median_us": round(value) for choice, value in found.items()},
                "ratio": round(vllm_us / found["rank_offset"], 1),
                "repeats": repeats,
            }
        )
    return records


def main(
    record: Annotated[Path | None, typer.Option("--record", help="Append the results to this file.")] = None,
) -> None:
    """Time the commit of a layer's placement against vLLM's, after checking that both write the same tables."""
    records = measure()
    names = ["vllm_median_us", *(f"{choice}_median_us" for choice in _CHOICES), "ratio"]
    rows = [[str(found[name]) for name in ("benchmark", *names)] for found in records]
    columns = ["what", "vLLM", *_CHOICES, "vLLM / rank_offset"]
    show(Sheet("A layer's commit on the host, median, µs", "", columns, rows))
    history.keep(record, "commits", "commit of a layer", {"rows": records})


if __name__ == "__main__":
    typer.run(main)
