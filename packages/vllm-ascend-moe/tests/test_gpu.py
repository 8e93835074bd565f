# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""On a GPU: what is done at each step, or between two, does not wait for it."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import generate_placement, read_load
from vllm_ascend_moe.backends import moving
from vllm_ascend_moe.backends.vllm_eplb import VllmEplb
from vllm_ascend_moe.core.recorder import LoadRecorder
from vllm_ascend_moe.core.replicas import SlotRule
from vllm_ascend_moe.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS, EXPERTS, RANKS = 3, 16, 4

ROWS = generate_placement(
    "ring", num_experts=EXPERTS, ep_size=RANKS, num_redundant_experts=4, num_layers=LAYERS
).physical_to_logical

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def model_state(device: str) -> SimpleNamespace:
    """Return a part of vLLM's EPLB state."""
    return SimpleNamespace(
        model=SimpleNamespace(num_logical_experts=EXPERTS),
        physical_to_logical_map=torch.from_numpy(ROWS.astype(np.int64)).to(device),
        logical_to_physical_map=torch.full((LAYERS, EXPERTS, 1024), 7, device=device),
        logical_replica_count=torch.zeros(LAYERS, EXPERTS, dtype=torch.long, device=device),
        expert_load_pass=torch.ones(ROWS.shape, dtype=torch.int32, device=device),
    )


def test_the_guard_sees_a_host_that_waits() -> None:
    tensor = torch.ones(3, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchronizing"):
        bool(tensor.any())


def commit(state: SimpleNamespace) -> None:
    row = torch.from_numpy(np.roll(ROWS[1], 3).astype(np.int64))
    moving.commit_layer(SlotRule("rank_offset", turn=1), state, row, RANKS, layer=1)


def test_a_layers_commit_does_not_wait() -> None:
    state, wanted = model_state("cuda"), model_state("cpu")
    commit(state)  # memory is pinned for the first time
    with no_waiting():
        commit(state)
    commit(wanted)
    for name in ("physical_to_logical_map", "logical_to_physical_map", "logical_replica_count"):
        assert torch.equal(getattr(state, name).cpu(), getattr(wanted, name)), name


def test_recording_a_step_does_not_wait(tmp_path: Path) -> None:
    recorder = LoadRecorder(str(tmp_path / "load.npz"), LAYERS, EXPERTS, interval=1000)
    ranks = SimpleNamespace(counts_tokens=True, share_all_tokens=True)
    session: Any = SimpleNamespace(ranks=ranks, settings=Settings(record_path="load.npz"), recorder=recorder)
    backend = VllmEplb(session)
    backend.main_state = model_state("cuda")
    backend.record(is_dummy=False)
    with no_waiting():
        for is_dummy in (False, True, False):
            backend.record(is_dummy=is_dummy)
    recorder.flush()
    copies = [np.bincount(row, minlength=EXPERTS).tolist() for row in ROWS]
    assert read_load(tmp_path / "load.npz").counts.tolist() == [copies] * 3
