# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from expert_maps import Placement, plan, read_load
from vllm_ascend_moe.backends.ascend.recording import Recording
from vllm_ascend_moe.core.meter import Meter
from vllm_ascend_moe.core.recorder import LoadRecorder
from vllm_ascend_moe.core.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS, E, RANKS, REDUNDANT = 2, 6, 2, 2
SLOTS = (E + REDUNDANT) // RANKS


def planned(seed: int) -> Placement:
    load = np.random.default_rng(seed).lognormal(sigma=1.5, size=(LAYERS, E))
    return plan(load, num_physical_experts=E + REDUNDANT, ep_size=RANKS).placement


def rows_of(placement: Placement) -> list[Any]:
    return placement.physical_to_logical.reshape(LAYERS, RANKS, SLOTS).tolist()


class Updator:
    """vllm-ascend's, which adds up what its layers count and forgets it at the end of a cycle."""

    def __init__(self, rank: int, *, by_step: bool = False) -> None:
        self.comm_group = SimpleNamespace(world_size=RANKS, rank_in_group=rank, device_group=rank)
        self.adaptor = self
        # One of its policies wants each step's load by itself.
        self.load = torch.zeros((LAYERS, 3, SLOTS) if by_step else (LAYERS, SLOTS), dtype=torch.int64)
        self.forwards = 0

    def get_rank_expert_workload(self) -> torch.Tensor:
        return self.load

    def serve(self, counts: torch.Tensor) -> None:
        if self.load.dim() == counts.dim():
            self.load += counts
        else:
            self.load[:, self.forwards % 3] += counts

    def forward_end(self) -> str:
        self.forwards += 1
        if self.forwards % 3 == 0:
            self.load.zero_()
        return "ended"


class Ranks:
    """Ranks that are threads; what they add up reaches all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._barrier = threading.Barrier(RANKS, timeout=60)
        self._told: list[Any] = [None] * RANKS
        monkeypatch.setattr(torch.distributed, "all_reduce", self.all_reduce)

    def all_reduce(self, tensor: torch.Tensor, group: int) -> None:
        assert tensor.dtype == torch.int32
        self._told[group] = tensor.clone()
        self._barrier.wait()
        tensor.copy_(sum(self._told))
        self._barrier.wait()

    def run(self, work: Callable[[int], None]) -> None:
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                work(rank)
            except BaseException as error:  # noqa: BLE001 - the test looks at it
                errors.append(error)

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors, errors


def session(rank: int, path: Path | None = None, **options: Any) -> Any:  # noqa: ANN401 - a stand-in
    recorder = None if path is None or rank else LoadRecorder(str(path), LAYERS, E)
    return SimpleNamespace(
        settings=Settings(record_path=None if path is None else str(path), **options),
        recorder=recorder,
        meter=Meter(),
    )


def drawn(seed: int, rank: int) -> torch.Tensor:
    return torch.randint(0, 50, (LAYERS, SLOTS), generator=torch.Generator().manual_seed(10 * seed + rank))


def by_expert(placement: Placement, seed: int, ranks: range = range(RANKS)) -> np.ndarray[Any, Any]:
    """What the router's ids say: each slot's tokens belong to its expert."""
    found = np.zeros((LAYERS, E), dtype=np.int64)
    for layer, rows in enumerate(rows_of(placement)):
        for rank in ranks:
            for expert, tokens in zip(rows[rank], drawn(seed, rank)[layer].tolist(), strict=True):
                found[layer, expert] += tokens
    return found


@pytest.mark.parametrize("by_step", [False, True])
def test_every_step_is_a_row_whatever_is_cleared_and_moved(
    by_step: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before, after = tmp_path / "load.npz", planned(0), planned(5)
    assert before != after
    ranks = Ranks(monkeypatch)
    sessions = [session(rank, path) for rank in range(RANKS)]

    def work(rank: int) -> None:
        recording, updator = Recording(sessions[rank]), Updator(rank, by_step=by_step)

        def forward(seed: int) -> None:
            updator.serve(drawn(seed, rank))
            assert recording.around_forward_end(Updator.forward_end, updator) == "ended"

        # Before vllm-ascend's EPLB is warm, nothing is known.
        forward(0)
        recording.begin(updator, rows_of(before))
        # Warm-up and graphs serve nobody, on all ranks; what they clear is seen.
        recording.around_dummy_run(lambda: forward(1))
        recording.around_dummy_run(updator.load.zero_)
        for seed in range(2, 6):
            forward(seed)
        for layer, row in enumerate(rows_of(after)):
            recording.moved(layer, row)
        forward(6)
        # One rank serves, the other is idle.
        if rank:
            recording.around_dummy_run(lambda: forward(7))
        else:
            forward(7)

    ranks.run(work)
    sessions[0].recorder.flush()
    found = read_load(path).counts
    assert len(found) == 6
    for step, seed in enumerate(range(2, 8)):
        assert np.array_equal(found[step], by_expert(before if seed < 6 else after, seed)), seed


def test_another_engines_forward_is_not_counted() -> None:
    recording, updator = Recording(session(0)), Updator(0)
    recording.begin(updator, rows_of(planned(0)))
    # It would wait for other ranks.
    assert recording.around_forward_end(Updator.forward_end, Updator(0)) == "ended"


def test_balancedness_is_said_as_vllm_says_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = Ranks(monkeypatch)
    monkeypatch.setattr(logging.getLogger("vllm_ascend_moe"), "propagate", True)
    caplog.set_level(logging.INFO)

    def work(rank: int) -> None:
        recording = Recording(session(rank, log_balancedness=True, log_balancedness_interval=2))
        updator = Updator(rank)
        recording.begin(updator, rows_of(planned(0)))
        for seed in range(4):
            updator.serve(drawn(seed, rank))
            recording.around_forward_end(Updator.forward_end, updator)
        recording.around_dummy_run(lambda: recording.around_forward_end(Updator.forward_end, updator))
        recording.around_dummy_run(lambda: recording.around_forward_end(Updator.forward_end, updator))

    ranks.run(work)
    said = [record.getMessage() for record in caplog.records]
    wanted = []
    for step, seed in ((2, 1), (4, 3)):
        tokens = np.array([drawn(seed, rank).sum(dim=1).tolist() for rank in range(RANKS)])  # [R, L]
        mean, peak = tokens.mean(axis=0).sum(), tokens.max(axis=0).sum()
        wanted.append(
            f"EPLB step: {step}: avg_tokens={mean:.2f}, max_tokens={peak}, balancedness={mean / peak:.4f}"
        )
    assert said == wanted
