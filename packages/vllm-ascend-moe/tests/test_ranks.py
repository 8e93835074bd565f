# SPDX-FileCopyrightText: The expert-maps authors
# SPDX-License-Identifier: Apache-2.0
"""Pipeline stages: each takes the rows of its own layers, or all stop."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import fake_vllm
import pytest

from vllm_ascend_moe.backends import ranks as module
from vllm_ascend_moe.backends.ranks import Ranks
from vllm_ascend_moe.eplb import EplbConfigError
from vllm_ascend_moe.hooks import table


class CountsAll:
    """As DeepSeek's in vLLM: it counts the whole model's MoE layers on every stage."""

    num_moe_layers = 6

    def __init__(self, held: int) -> None:
        self.moe_layers = [object()] * held


def stage(monkeypatch: pytest.MonkeyPatch, rank: int, answers: list[Any]) -> Ranks:
    """Be one stage; `answers` is what all of them say."""
    fake_vllm.install(monkeypatch, platform="cuda")
    group = SimpleNamespace(world_size=len(answers), rank_in_group=rank, cpu_group="pipeline")
    fake_vllm.replace(monkeypatch, table.PP_GROUP, lambda: group)

    def gather(value: object, _: object) -> list[Any]:
        assert value == answers[rank]
        return answers

    monkeypatch.setattr(module, "gather", gather)
    return Ranks(SimpleNamespace(parallel_config=SimpleNamespace()))


@pytest.mark.parametrize(("rank", "wanted"), [(0, (0, 2, 6)), (1, (2, 3, 6)), (2, (5, 1, 6))])
def test_a_stage_takes_the_rows_after_those_before_it(
    monkeypatch: pytest.MonkeyPatch, rank: int, wanted: tuple[int, int, int]
) -> None:
    counts = [2, 3, 1]
    assert stage(monkeypatch, rank, counts).stage(counts[rank]) == wanted


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_that_counts_other_stages_layers_is_refused_on_every_stage(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    ranks = stage(monkeypatch, rank, [(6, 0), (6, 6)])
    with pytest.raises(
        EplbConfigError,
        match=r"CountsAll counts 6 MoE layers on pipeline stage 0, which holds 0: .* expected one",
    ):
        ranks.require_own_layers(CountsAll((0, 6)[rank]))


def test_models_that_count_their_own_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(num_moe_layers=2, moe_layers=[1, 2])
    stage(monkeypatch, 1, [(4, 4), (2, 2)]).require_own_layers(own)
    # Without other stages there are none whose layers could be counted.
    stage(monkeypatch, 0, [(6, 5)]).require_own_layers(CountsAll(5))
